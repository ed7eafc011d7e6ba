"""Fairlead and the real Vidur, router by router, on the same requests and the same hardware.

    python benchmarks/vidur_comparison.py --page docs/vidur.md

Needs Vidur (`pip install 'fairlead[vidur]'`). Each router serves the same arrivals in both simulators, seed
by seed, with the same random stream of its own. The page's section between the markers is replaced; without
--page the section is printed.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from fairlead.env.run import run
from fairlead.evaluate import vidur
from fairlead.policy.catalogue import Entry, find_routers
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.metrics import summarise
from fairlead.simulator.outcomes import Outcomes
from fairlead.workload.scenario import Scenario, generate, load_scenario

METRICS = {
    "ttft_mean_s": "mean TTFT",
    "ttft_p99_s": "p99 TTFT",
    "e2e_mean_s": "mean E2E",
    "e2e_p99_s": "p99 E2E",
}
RANKED = ("ttft_mean_s", "e2e_mean_s")
ROUTERS = ("random", "round_robin", "lor", "p2c", "least_kv", "least_prefill", "least_work", "weighted_lor")
BEGIN, END = "<!-- comparison: made by benchmarks/vidur_comparison.py -->", "<!-- end of the comparison -->"


class Setting(NamedTuple):
    """A cluster, its engine's options and its load."""

    scenario: str
    scheduler: str
    tokens: int
    load: float


SETTINGS = (
    Setting("chat-equal", "sarathi", 512, 0.7),
    Setting("chat-unequal", "sarathi", 512, 0.7),
    Setting("chat-unequal", "vllm_v0", 16_384, 0.6),
)


def in_fairlead(scenario: Scenario, load: float, entry: Entry, seed: int, requests: int) -> Outcomes:
    """One run; vllm_v0 adds the prompts of a batch up, as PyPI's Vidur does."""
    rate = load * capacity_rps(scenario)
    arrivals = generate(scenario, requests=requests, rate=rate, seed=seed, split="evaluate")
    fleet = build_fleet(scenario)
    fleet = dataclasses.replace(fleet, scheduler=dataclasses.replace(fleet.scheduler, padded=False))
    clusters = Clusters([fleet], [arrivals], seed=seed)
    run(clusters, entry.router, seed=seed)
    return clusters.outcomes(0)


def compare(
    setting: Setting, entries: Sequence[Entry], seeds: Sequence[int], requests: int
) -> dict[str, Any]:
    """By router: each metric in both simulators (means over the seeds), CPU seconds, equal decisions."""
    engine = {
        "scheduler": setting.scheduler,
        "max_num_batched_tokens": setting.tokens,
        "max_num_seqs": 128,
    }
    scenario = load_scenario(setting.scenario).replace(engine=engine)
    found: dict[str, Any] = {}
    for entry in entries:
        rows: dict[str, list[dict[str, float]]] = {"fairlead": [], "vidur": []}
        same, seconds = [], 0.0
        for seed in seeds:
            ours = in_fairlead(scenario, setting.load, entry, seed, requests)
            started = time.process_time()
            (theirs,) = vidur.simulate(scenario, setting.load, entry, [seed], requests)
            seconds += time.process_time() - started
            same.append(float((ours.replica == theirs.replica).mean()))
            for name, outcomes in (("fairlead", ours), ("vidur", theirs)):
                rows[name].append(summarise(outcomes, scenario.slo.ttft_s, scenario.slo.tpot_s))
        found[entry.name] = {
            **{
                name: {metric: float(np.mean([row[metric] for row in each])) for metric in METRICS}
                for name, each in rows.items()
            },
            "same_decisions": float(np.mean(same)),
            "vidur_cpu_s": seconds,
        }
        print(f"{setting}: {entry.name}", file=sys.stderr, flush=True)
    return {**setting._asdict(), "routers": found}


def swapped(found: dict[str, Any], metric: str) -> list[tuple[str, str]]:
    """Pairs of routers that the two simulators rank differently."""
    pairs = itertools.combinations(found, 2)
    sign = [
        (a, b, *(found[a][s][metric] - found[b][s][metric] for s in ("fairlead", "vidur"))) for a, b in pairs
    ]
    return [(a, b) for a, b, one, other in sign if one * other < 0]


def section(results: Sequence[dict[str, Any]], seeds: int, requests: int) -> str:
    """The Markdown between the markers."""
    lines = [
        f"Means over {seeds} seeds of {requests:,} requests each (the first 10 % and the last 5 % are not "
        "measured), TTFT in ms and E2E in s, Fairlead / Vidur, and Vidur's difference. *Same* is the share "
        "of the requests that went to the same replica in both.",
        "",
    ]
    for result in results:
        found = result["routers"]
        lines += [
            f"**{result['scenario']}, {result['scheduler']} with {result['tokens']:,} tokens, load "
            f"{100 * result['load']:.0f} %**",
            "",
            "| router | " + " | ".join(METRICS.values()) + " | same |",
            "|---|" + "---|" * (len(METRICS) + 1),
        ]
        for router, each in found.items():
            cells = []
            for metric in METRICS:
                ours, theirs = each["fairlead"][metric], each["vidur"][metric]
                scale, digits = (1e3, 0) if metric.startswith("ttft") else (1.0, 2)
                change = f"{100 * (theirs / ours - 1):+.1f} %"
                cells.append(f"{scale * ours:,.{digits}f} / {scale * theirs:,.{digits}f} ({change})")
            lines.append(f"| {router} | {' | '.join(cells)} | {100 * each['same_decisions']:.0f} % |")
        lines += ["", *(_ranking(found, metric) for metric in RANKED), ""]
    cpu = sum(each["vidur_cpu_s"] for result in results for each in result["routers"].values())
    count = sum(len(result["routers"]) for result in results) * seeds * requests
    lines.append(f"Vidur served {count / cpu:,.0f} requests per CPU second with its view and router.")
    return "\n".join(lines)


def _ranking(found: dict[str, Any], metric: str) -> str:
    differ = swapped(found, metric)
    total = len(found) * (len(found) - 1) // 2
    best = [min(found, key=lambda name: found[name][s][metric]) for s in ("fairlead", "vidur")]
    text = f"- By {METRICS[metric]}, {total - len(differ)} of {total} pairs of routers are ranked alike"
    if differ:
        apart = max(abs(found[a]["vidur"][metric] / found[b]["vidur"][metric] - 1) for a, b in differ)
        text += f" (the others differ by at most {100 * apart:.1f} % in Vidur)"
    return text + (
        f"; both find {best[0]} best." if best[0] == best[1] else f"; best: {best[0]} / {best[1]}."
    )


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--routers", default=",".join(ROUTERS), help="names or policy files, by commas")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path, help="put the section into this page, for example docs/vidur.md")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    entries = find_routers(options.routers.split(","))
    results = [compare(s, entries, range(options.seeds), options.requests) for s in SETTINGS]
    text = section(results, options.seeds, options.requests)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.page:
        before, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
