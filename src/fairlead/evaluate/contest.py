"""A contest: what heuristics, lookahead and policies made of the same requests in one scenario.

Values are compared as logarithms of ratios, run by run: a ratio is much steadier over seeds than a latency,
which a single backlog can multiply, and several loads of a scenario can be put together without the highest
drowning the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from fairlead.evaluate.results import Record
from fairlead.evaluate.statistics import paired_interval
from fairlead.view.preference import weights_of
from fairlead.view.tail import TAIL_SHARE

Floats = npt.NDArray[np.float64]
Values = Mapping[str, Floats]
"""By metric: (L, S) values above 0, for each load and evaluation seed."""

METRICS: tuple[str, ...] = ("e2e_mean_s", "ttft_mean_s", "e2e_p99_s", "ttft_p99_s")
"""What a contest is about."""
NEEDED: tuple[str, ...] = (*METRICS, "ttft_worst_mean_s")
"""What the values of a router have to have: those, and what the objective is made of."""
FRONTIER: tuple[str, str] = ("e2e_mean_s", "ttft_p99_s")
"""The two that a router's frontier is drawn over."""
OBJECTIVE = "objective"
"""Beside the metrics: what the dial weighs, per request (`fairlead.view.preference.Weights`).

The weighted sum of mean TTFT, mean E2E and the tail, which is the share of the worst requests times their
mean TTFT: what they exceed the beginning of the tail by, plus a share of that beginning, so that a router
gains nothing by a tail that begins later (Rockafellar and Uryasev 2000).
"""

Over = Literal["evaluation seeds", "training seeds"]


class Difference(Record):
    """A router against another: the geometric mean of their ratios minus 1; negative is better."""

    relative: float
    ci_low: float
    """Lower end of its 95 % interval."""
    ci_high: float
    over: Over
    """What the interval is over: the evaluation seeds of one policy, or several training seeds, each
    averaged over the evaluation seeds."""

    @property
    def better(self) -> bool:
        """For sure: the interval lies below 0."""
        return self.ci_high < 0.0

    @property
    def worse(self) -> bool:
        """For sure: the interval lies above 0."""
        return self.ci_low > 0.0

    @property
    def not_above(self) -> bool:
        """Whether the estimate itself is no worse, however wide the interval."""
        return self.relative <= 0.0


@dataclass(frozen=True)
class Contest:
    """One scenario. Every router served the same requests under each load and seed."""

    scenario: str
    loads: tuple[float, ...]
    replicas: int
    unequal: bool
    """Whether replicas differ in hardware or speed."""
    heuristics: Mapping[str, Values]
    learned: Mapping[float, Sequence[Values]]
    """By setting of the dial: one for each training seed."""
    lookahead: Mapping[float, Values] = field(default_factory=dict)
    """By setting of the dial; empty if it did not take part."""
    specialist: Mapping[float, Values] = field(default_factory=dict)
    """A policy trained for this scenario alone; empty if there is none."""

    def at(self, load: float) -> "Contest":
        """The same at one load only."""
        row = [self.loads.index(load)]

        def cut(values: Values) -> Values:
            return {metric: each[row] for metric, each in values.items()}

        return Contest(
            self.scenario,
            (load,),
            self.replicas,
            self.unequal,
            {name: cut(values) for name, values in self.heuristics.items()},
            {dial: [cut(values) for values in those] for dial, those in self.learned.items()},
            {dial: cut(values) for dial, values in self.lookahead.items()},
            {dial: cut(values) for dial, values in self.specialist.items()},
        )

    def best(self, metric: str, dial: float | None = None) -> str:
        """The heuristic with the least geometric mean of a metric; chosen on the same seeds, so flattered."""
        return min(
            self.heuristics,
            key=lambda name: float(np.log(value(self.heuristics[name], metric, dial)).mean()),
        )

    @cached_property
    def best_heuristics(self) -> dict[str, str]:
        """By metric: the best heuristic."""
        return {metric: self.best(metric) for metric in METRICS}


def value(values: Values, metric: str, dial: float | None = None) -> Floats:
    """(L, S) of a metric, or of the objective at a setting of the dial."""
    if metric != OBJECTIVE:
        return values[metric]
    assert dial is not None
    weights, tail = weights_of(dial), TAIL_SHARE * values["ttft_worst_mean_s"]
    return weights.ttft * values["ttft_mean_s"] + weights.e2e * values["e2e_mean_s"] + weights.tail * tail


def differ(
    ours: Sequence[Values],
    theirs: Values | Sequence[Values],
    metric: str,
    dial: float | None = None,
    confidence: float = 0.95,
) -> Difference:
    """How much lower a metric is under `ours`, one for each training seed, than under `theirs`.

    `theirs` is one router, or as many as `ours`, each of the same training seed.

    Logarithms of the ratios are averaged over the loads, then paired over evaluation seeds or, where there
    are several training seeds, averaged over those and compared over the training seeds.

    Raises:
        FairleadError: for a single seed, which says nothing about the spread.
    """
    references = [theirs] * len(ours) if isinstance(theirs, Mapping) else theirs
    ratios = np.stack(  # (T, S)
        [
            np.log(value(one, metric, dial) / value(other, metric, dial)).mean(0)
            for one, other in zip(ours, references, strict=True)
        ]
    )
    over: Over = "evaluation seeds" if len(ours) == 1 else "training seeds"
    paired = ratios[0] if len(ours) == 1 else ratios.mean(1)
    paired = np.where(np.abs(paired) <= 1e-12, 0.0, paired)  # rounding in the last digits is no difference
    low, high, _ = paired_interval(paired, confidence)
    return Difference(
        relative=math.expm1(float(paired.mean())), ci_low=math.expm1(low), ci_high=math.expm1(high), over=over
    )
