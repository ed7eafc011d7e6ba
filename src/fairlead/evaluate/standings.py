"""How routers stand over many scenarios: against the best heuristic of each, unknown beforehand."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fairlead.evaluate.contest import FRONTIER, Contest, Values
from fairlead.evaluate.results import Record
from fairlead.evaluate.statistics import paired_interval


class Standing(Record):
    """One router and metric over all scenarios; 0.1 is 10 % above the best heuristic of the scenario."""

    mean: float
    """Geometric mean over the scenarios."""
    ci_low: float
    """Lower end of its 95 % interval over the scenarios."""
    ci_high: float
    worst: float
    """In the scenario where it stands worst."""
    worst_in: str
    """The name of that scenario."""


def standings(contests: Sequence[Contest]) -> dict[str, dict[str, Standing]]:
    """By router and metric of the frontier; of the learned one at each setting, `learned, favor 0.75`.

    Only routers that took part everywhere. The best heuristic is chosen for each scenario and metric on the
    very runs, so no heuristic can stand at 0 unless it is the best everywhere.

    Raises:
        FairleadError: for a single scenario, which says nothing about others.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for contest in contests:
        for metric in FRONTIER:
            best = contest.heuristics[contest.best(metric)][metric]
            for name, runs in _routers(contest).items():
                ratio = np.mean([np.log(values[metric] / best).mean() for values in runs])
                found.setdefault(name, {}).setdefault(metric, []).append(float(ratio))
    names = [contest.scenario for contest in contests]
    return {
        router: {metric: _standing(logs, names) for metric, logs in by_metric.items()}
        for router, by_metric in found.items()
        if all(len(logs) == len(names) for logs in by_metric.values())
    }


def _standing(logs: Sequence[float], names: Sequence[str]) -> Standing:
    worst = int(np.argmax(logs))
    low, high, _ = paired_interval(np.array(logs))
    return Standing(
        mean=math.expm1(float(np.mean(logs))),
        ci_low=math.expm1(low),
        ci_high=math.expm1(high),
        worst=math.expm1(logs[worst]),
        worst_in=names[worst],
    )


def _routers(contest: Contest) -> Mapping[str, Sequence[Values]]:
    heuristics = {name: [values] for name, values in contest.heuristics.items()}
    lookahead = {f"lookahead, favor {dial:g}": [values] for dial, values in contest.lookahead.items()}
    return {**heuristics, **lookahead, **{f"learned, favor {d:g}": r for d, r in contest.learned.items()}}
