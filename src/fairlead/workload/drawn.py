"""Whole scenarios drawn at random: `drawn~17`, or `drawn~1000..1023` for a range of them.

What a router learnt on scenarios that somebody thought of says little about a cluster that nobody did. These
are drawn from what a fleet can be: hardware, sizes, engines, lengths, arrivals, conversations, other routers,
faults. A policy that is trained on some of them has to learn what they have in common (*domain
randomisation*: Tobin et al., 2017, arXiv:1703.06907), and others say what it does where it has never been.
"""

import re
from typing import Any

import numpy as np

from fairlead.errors import FairleadError
from fairlead.rng import stream
from fairlead.workload.scenario import Scenario

DRAWN = "drawn"
"""In front of the tilde, where shipped scenarios have their name."""

MODELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "llama-3-8b": (1, ("a10", "l40s", "a100-80g", "h100", "h200")),
    "qwen2.5-7b": (1, ("a10", "l40s", "a100-80g", "h100", "h200")),
    "qwen2.5-32b": (2, ("a100-80g", "h100", "h200")),
    "llama-3-70b": (4, ("h100", "h200")),
}
"""Tensor parallelism, and the devices that the model is served on."""

REPLICAS = (2, 3, 4, 4, 5, 6, 8, 8, 12, 16)
TABLES = ("azure-conversation-2023", "azure-code-2023", "arxiv-summarization")
LONGEST_PROMPT, LONGEST_OUTPUT = 24_000, 4_000
"""Tokens; together they fit into the smallest KV cache drawn (a Llama-3-8B on an A10)."""
MOST_BLOCKS = {"a10": 2_000, "l40s": 12_000}
"""KV blocks that a KV cache may be cut to, where the device's memory has less than 16,000 for some model."""
MOST_PER_CALL = 1000


def split_range(text: str) -> list[str]:
    """`drawn~3..5` as `drawn~3`, `drawn~4` and `drawn~5`; any other text alone.

    Raises:
        FairleadError: for a range that runs backwards or names more than a thousand.
    """
    found = re.fullmatch(rf"({DRAWN}~)([0-9]+)\.\.([0-9]+)(@[0-9.]+)?", text)
    if not found:
        return [text]
    first, last = int(found[2]), int(found[3])
    if not first <= last < first + MOST_PER_CALL:
        raise FairleadError(
            f"{text}: a range goes from a number to a higher one and has at most {MOST_PER_CALL} scenarios, "
            f"for example {DRAWN}~1000..1023"
        )
    return [f"{found[1]}{number}{found[4] or ''}" for number in range(first, last + 1)]


def drawn_scenario(number: int) -> Scenario:
    """Scenario `number` of those drawn at random, named `drawn~number`: a pure function of its number."""
    random = stream(number, "scenario")
    replicas, hardware, declared = _replicas(random)
    workload, engine, requests = _workload(random, [group["device"] for group in replicas["replicas"]])
    routers = int(random.choice([2, 3, 4])) if random.random() < 0.2 else 1
    view: dict[str, Any] = {} if declared else {"speeds_declared": False}
    if random.random() < 0.3:
        view["scrape_interval_s"] = float(random.choice([0.25, 3.0, 10.0]))
    if random.random() < 0.2:
        view["prompt_estimate_error"] = 0.3
    faults = [_fault(random)] if random.random() < 0.15 else []
    varying = "arrivals" in workload and workload["arrivals"]["kind"] in ("mmpp", "flash_crowd")
    seen = [f"{key} {value:g}" for key, value in view.items() if key != "speeds_declared"]
    described = [hardware, requests, *(f"{each['kind']} faults" for each in faults), *seen]
    described += [f"{routers} routers"] if routers > 1 else []
    described += [f"{key} {value}" for key, value in engine.items() if key != "enable_prefix_caching"]
    return Scenario.model_validate(
        {
            "name": f"{DRAWN}~{number}",
            "description": f"Drawn at random: {'; '.join(described)}.",
            **replicas,
            "routers": routers,
            "engine": engine,
            "workload": workload,
            "faults": faults,
            "loads": (0.4, 0.6, 0.8) if faults or varying else (0.5, 0.7, 0.9),
            "view": view,
        }
    )


def _replicas(random: np.random.Generator) -> tuple[dict[str, Any], str, bool]:
    """Model and groups of replicas, what they are in words, and whether their speeds are declared."""
    model = str(random.choice(list(MODELS)))
    parallel, devices = MODELS[model]
    count = int(random.choice(REPLICAS))
    device = str(random.choice(devices))
    kind = str(random.choice(["equal", "equal", "devices", "declared", "undeclared"]))
    first = {"device": device, "count": count, "tensor_parallel": parallel}
    if kind == "equal":
        return {"model": model, "replicas": [first]}, f"{count} {device}, {model}", True
    fast = int(random.integers(1, count))
    first["count"] = fast
    second = {**first, "count": count - fast}
    if kind == "devices":
        second["device"] = str(random.choice([each for each in devices if each != device]))
        hardware = f"{fast} {device} and {count - fast} {second['device']}, {model}"
    else:
        second["slowdown"] = round(float(np.exp(random.uniform(np.log(1.3), np.log(4.0)))), 1)
        hardware = (
            f"{fast} {device} and {count - fast} of them {second['slowdown']:g} times slower, {kind}, {model}"
        )
    return {"model": model, "replicas": [first, second]}, hardware, kind != "undeclared"


def _workload(random: np.random.Generator, devices: list[str]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Workload, engine and what is asked, in words."""
    engine: dict[str, Any] = {}
    if random.random() < 0.3:
        engine["max_num_batched_tokens"] = int(random.choice([512, 1024, 4096, 8192]))
    if random.random() < 0.3:
        engine["max_num_seqs"] = int(random.choice([32, 64, 128]))
    kind = str(random.choice(["table", "table", "table", "lognormal", "mixture", "conversations", "agents"]))
    if kind in ("conversations", "agents"):
        engine["enable_prefix_caching"] = True
        blocks = int(random.choice([0, 0, 4000, 8000, 16_000]))
        if blocks and all(blocks <= MOST_BLOCKS.get(device, blocks) for device in devices):
            engine["num_gpu_blocks"] = blocks
        return {"sessions": _sessions(random, kind == "agents")}, engine, kind
    arrivals, rhythm = _arrivals(random)
    if kind == "table":
        table = str(random.choice(TABLES))
        lengths: dict[str, Any] = {"kind": "empirical", "table": table}
        asked = table
    elif kind == "lognormal":
        prompt, output = int(random.choice([200, 600, 1500, 4000])), int(random.choice([60, 200, 500, 1000]))
        lengths = {
            "kind": "lognormal",
            "prompt": _tokens(random, prompt, LONGEST_PROMPT),
            "output": _tokens(random, output, LONGEST_OUTPUT),
            "rank_correlation": round(float(random.uniform(0.0, 0.5)), 1),
        }
        asked = f"prompts of {prompt} and outputs of {output} tokens"
    else:
        chat, code, long = (int(random.integers(*bounds)) for bounds in ((20, 80), (20, 80), (1, 8)))
        documents = {"mean": 12_000, "median": 10_000, "max": LONGEST_PROMPT}
        answers = {"mean": 400, "median": 300, "max": 2_000}
        lengths = {
            "kind": "mixture",
            "parts": [
                {"weight": chat, "lengths": {"kind": "empirical", "table": TABLES[0]}},
                {"weight": code, "lengths": {"kind": "empirical", "table": TABLES[1]}},
                {"weight": long, "lengths": {"kind": "lognormal", "prompt": documents, "output": answers}},
            ],
        }
        asked = "chat, code and long documents"
    return {"arrivals": arrivals, "lengths": lengths}, engine, f"{asked}, {rhythm}"


def _tokens(random: np.random.Generator, mean: int, most: int) -> dict[str, int]:
    return {"mean": mean, "median": int(mean * random.uniform(0.4, 0.9)), "max": min(8 * mean, most)}


def _arrivals(random: np.random.Generator) -> tuple[dict[str, Any], str]:
    """When requests come, and the same in words."""
    kind = str(random.choice(["poisson", "poisson", "gamma", "mmpp", "flash_crowd", "diurnal"]))
    if kind == "gamma":
        cv = round(float(random.uniform(1.5, 4.0)), 1)
        return {"kind": kind, "cv": cv}, f"bursts (cv {cv:g})"
    if kind == "mmpp":
        return {"kind": kind, "states": [{"rate": 1, "mean_s": 20}, {"rate": 3, "mean_s": 10}]}, "spells"
    if kind == "flash_crowd":
        return {"kind": kind, "multiplier": 3, "duration_s": 5, "every_s": 40}, "flash crowds"
    if kind == "diurnal":
        return {"kind": kind, "period_s": 120, "amplitude": 0.5}, "days of two minutes"
    return {"kind": kind}, "steady"


def _sessions(random: np.random.Generator, agents: bool) -> dict[str, Any]:
    output = int(random.choice([100, 250]))
    think_s = float(random.choice([5, 20, 60]))
    return {
        "turns": {"kind": "geometric", "mean": int(random.choice([3, 6, 10])), "max": 40},
        "lengths": {
            "kind": "lognormal",
            "prompt": {"mean": 200, "median": 100, "max": 2048},
            "output": {"mean": output, "median": int(0.7 * output), "max": 1024},
        },
        "think_time": {"mean_s": think_s, "median_s": think_s / 2, "max_s": 300},
        "max_context": 8192,
        "system_prompts": {
            "count": int(random.choice([1, 8, 40])),
            "tokens": int(random.choice([2000, 4000])) if agents else 500,
            "zipf": round(float(random.uniform(0.5, 1.1)), 1),
        },
    }


def _fault(random: np.random.Generator) -> dict[str, Any]:
    if random.random() < 0.5:
        return {"kind": "outage", "replica": "any", "start_s": 10, "duration_s": 10, "every_s": 40}
    factor = round(float(random.uniform(2.0, 4.0)), 1)
    return {
        "kind": "slowdown",
        "replica": "any",
        "factor": factor,
        "start_s": 10,
        "duration_s": 15,
        "every_s": 25,
    }
