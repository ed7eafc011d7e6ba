"""Does a policy use what it sees? Three answers, on requests that no training saw.

*Load gap*: how often the least busy replica is chosen, by how much the others have more in flight.
*Permutation*: the share of decisions that change when one feature is exchanged between decisions. *Ablation*:
what a run costs more when a block of features is frozen at its mean.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.evaluate.files import DEPENDENCE_FILE
from fairlead.files import write_text
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.features import FEATURES, features_batch
from fairlead.view.schema import IN_FLIGHT
from fairlead.workload.scenario import Scenario, check_runs, generate

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]

GAPS = (0, 1, 2, 4, 8, 16)
"""Lower ends of the classes of the load gap, in requests; the last is open."""
BLOCKS: dict[str, tuple[str, ...]] = {
    "requests in flight": ("in_flight", "awaiting_", "decoding_requests", "batch_fraction"),
    "prefill work": (
        "pending_prefill",
        "request_prefill",
        "prefill_",
        "decodes_delayed",
        "oldest_wait",
        "uncached_",
    ),
    "prefix cache": ("expected_hit", "hit_below", "prefix_", "prompts_that_fit"),
    "conversations": ("session_home", "moving_time"),
    "decode work": ("expected_remaining", "expected_decode", "context_tokens", "kv_"),
    "trends": ("ttft_ewma", "ttft_tail", "itl_ewma", "in_flight_trend"),
    "scraped": ("scrape",),
    "declared speed": ("decode_iteration", "speed"),
    "how many replicas": ("replicas",),
    "estimated cost": ("tail_cost", "cost_above_least", "sticky_work"),
    "the request itself": ("prompt_", "expected_output"),
    "the dial": ("favor",),
}
"""Names of features, or how they begin; what fits none of them is `other`."""


class Policy(Protocol):
    """What is examined: an exported policy or a network."""

    favor: float
    name: str

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """A run begins."""
        ...

    def logits(self, features: Features) -> Features:
        """(K, R, F) -> (K, R)."""
        ...


REQUESTS, SEEDS = 600, (0, 1, 2, 3)
"""Of the runs that are looked at."""


class Gap(NamedTuple):
    """Decisions at which the busiest replica had so many requests more in flight than the least busy one."""

    least: int
    """Lower end of the class."""
    decisions: int
    to_least_busy: float
    """Share that went to a replica with the fewest in flight."""
    by_chance: float
    """The same share, had the choice been random."""


class Influence(NamedTuple):
    """A feature or a block, and what it moves."""

    name: str
    value: float


class Dependence(NamedTuple):
    """What a policy depends on, in one setting."""

    router: str
    scenario: str
    load: float
    gaps: list[Gap]
    permutation: list[Influence]
    """By feature: share of decisions that change. Most important first."""
    ablation: list[Influence]
    """By block: mean E2E without it divided by mean E2E with it, minus one. Most important first."""

    @property
    def depends_on_state(self) -> bool:
        """Whether any feature but the dial moves more than one decision in a hundred."""
        return any(each.value > 0.01 for each in self.permutation if each.name != "favor")


def block_of(feature: str) -> str:
    """The block that a feature belongs to."""
    for name, beginnings in BLOCKS.items():
        if feature.startswith(beginnings):
            return name
    return "other"


def check(policies: Sequence[Policy], scenarios: Sequence[Scenario], loads: Sequence[float] | None) -> None:
    """Refuse what `examine` would refuse, before anything else has been run.

    Args:
        policies: to examine.
        scenarios: where.
        loads: fractions of capacity; None: each scenario's own.

    Raises:
        FairleadError: for a policy with a memory, and a recorded trace that is too short.
    """
    for policy in policies:
        _refuse_memory(policy)
    for scenario in scenarios if policies else ():
        for load in loads or scenario.loads:
            check_runs(scenario, requests=REQUESTS, rate=load * capacity_rps(scenario), seeds=SEEDS)


def _refuse_memory(policy: Policy) -> None:
    if getattr(policy, "has_memory", False):
        raise FairleadError(
            f"{policy.name} has a memory: what such a policy depends on cannot be told by exchanging features"
        )


def examine(
    policy: Policy,
    scenario: Scenario,
    load: float,
    *,
    requests: int = REQUESTS,
    seeds: Sequence[int] = SEEDS,
    features: tuple[str, ...] = FEATURES,
) -> Dependence:
    """Run `policy` greedily and see what its decisions hang on.

    Args:
        policy: to examine; one with a memory is not supported, since exchanging features breaks its past.
        scenario: where.
        load: fraction of capacity.
        requests: of each run.
        seeds: of the `evaluate` split, one run each.
        features: names of the last axis of what the policy sees.

    Raises:
        FairleadError: for a policy with a memory, and more seeds than a recorded trace has runs for.
    """
    _refuse_memory(policy)
    rate = load * capacity_rps(scenario)
    check_runs(scenario, requests=requests, rate=rate, seeds=seeds)
    arrivals = [
        generate(scenario, requests=requests, rate=rate, seed=seed, split="evaluate") for seed in seeds
    ]
    clusters = Clusters([build_fleet(scenario)] * len(arrivals), arrivals)

    def run(frozen: dict[int, float]) -> tuple[float, list[Any]]:
        """Mean E2E with some features frozen, and what was seen and done."""
        clusters.load(arrivals, 0)
        policy.reset(clusters.K, clusters.R, 0)
        seen = []
        while True:
            view = clusters.observe()
            if clusters.done:
                break
            x = features_batch(view, policy.favor)
            for column, value in frozen.items():
                x[:, :, column] = value
            actions = policy.logits(x).argmax(-1).astype(np.int64)
            here = clusters.deciding
            seen.append((x[here], view.replicas[here, :, IN_FLIGHT], actions[here]))
            clusters.route(actions)
        clusters.drain()
        rows = clusters.state.requests
        return float((rows["finish"] - rows["arrival"]).mean()), seen

    whole, seen = run({})
    x, in_flight, actions = (np.concatenate(each) for each in zip(*seen, strict=True))
    means = x.mean((0, 1))
    ablation = []
    for block in dict.fromkeys(map(block_of, features)):
        columns = [i for i, name in enumerate(features) if block_of(name) == block and name != "available"]
        if columns:
            without, _ = run({i: float(means[i]) for i in columns})
            ablation.append(Influence(block, without / whole - 1.0))
    return Dependence(
        policy.name,
        scenario.name,
        load,
        load_gaps(in_flight, actions),
        _sorted(permutation_importance(policy, x, features)),
        _sorted(ablation),
    )


def write_dependence(directory: Path, found: Sequence[Dependence]) -> None:
    """Write `dependence.json`, which the report shows."""
    plain = [
        each._asdict()
        | {key: [row._asdict() for row in getattr(each, key)] for key in ("gaps", "permutation", "ablation")}
        for each in found
    ]
    write_text(directory / DEPENDENCE_FILE, json.dumps(plain, indent=1) + "\n")


def read_dependence(directory: Path) -> list[Dependence]:
    """What `write_dependence` wrote there; nothing if it wrote nothing.

    Raises:
        FairleadError: if the file is damaged.
    """
    path = directory / DEPENDENCE_FILE
    if not path.exists():
        return []
    try:
        return [
            Dependence(
                **each
                | {
                    "gaps": [Gap(**row) for row in each["gaps"]],
                    "permutation": [Influence(**row) for row in each["permutation"]],
                    "ablation": [Influence(**row) for row in each["ablation"]],
                }
            )
            for each in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise FairleadError(f"{path} is damaged ({error}); remove it") from None


def _sorted(found: list[Influence]) -> list[Influence]:
    return sorted(found, key=lambda each: -abs(each.value))


def load_gaps(in_flight: Floats, actions: npt.NDArray[np.int64]) -> list[Gap]:
    """Choices by load gap: `in_flight` (N, R) at each decision, `actions` (N,)."""
    least = in_flight.min(1)
    gap = in_flight.max(1) - least
    lightest = in_flight == least[:, None]
    chosen = lightest[np.arange(len(actions)), actions]
    classes = np.searchsorted(GAPS, gap, side="right") - 1
    return [
        Gap(lower, int(here.sum()), float(chosen[here].mean()), float(lightest[here].mean()))
        for i, lower in enumerate(GAPS)
        if (here := classes == i).any()
    ]


def permutation_importance(policy: Policy, x: Features, features: Sequence[str]) -> list[Influence]:
    """Share of decisions (N, R, F) that change when one feature is exchanged between decisions."""
    order = rng.stream(0, "evaluate", "dependence").permutation(len(x))
    before = policy.logits(x).argmax(-1)
    found = []
    for i, name in enumerate(features):
        if name == "available":  # a mask, not something to be weighed
            continue
        exchanged = x.copy()
        exchanged[:, :, i] = x[order, :, i]
        found.append(Influence(name, float((policy.logits(exchanged).argmax(-1) != before).mean())))
    return found
