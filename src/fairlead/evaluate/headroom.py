"""Headroom: how much routing can change at all, per scenario and load, before anybody trains on it.

Three steps, each a paired difference over seeds: from round robin to the best heuristic; from there to
`lookahead`, which knows what a router may know and simulates each choice, at the dial that suits the
metric; and from there to lookahead that is told the true lengths of all requests, which no router can
reach. Where neither of the first two steps is worth anything, the setting has no headroom: any router will
do, and training there teaches nothing.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs

import fairlead.workload
from fairlead.compiled import source_digest
from fairlead.evaluate.phrasing import LABELS, listing
from fairlead.evaluate.results import Record
from fairlead.evaluate.statistics import Verdict, compare
from fairlead.evaluate.tournament import simulate
from fairlead.files import keep
from fairlead.policy.catalogue import find_router
from fairlead.policy.heuristics import HEURISTICS
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.metrics import summarise
from fairlead.workload.scenario import Scenario

Values = dict[str, npt.NDArray[np.float64]]
"""By metric: (S,), one value per seed."""

DIALS: dict[str, float] = {"e2e_mean_s": 0.0, "ttft_mean_s": 1.0, "ttft_p99_s": 1.0}
"""The metrics that headroom is measured on, and the dial (`favor`) at which lookahead is asked for each."""

REQUESTS = 2000
"""In each run: several times as long as a cluster takes to fill."""
SEEDS: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
WORTHWHILE = 0.03
"""A step counts as headroom if it lowers a metric by this share or more, and its interval excludes 0."""


class Step(Record):
    """From a reference to a router: the relative difference of one metric, negative where it got better.

    Of the ratios router / reference, one per seed, the geometric mean and its interval are taken: a ratio is
    much steadier over seeds than a latency, which a single backlog can multiply.
    """

    router: str
    value: float
    """The router's mean over the seeds, in seconds."""
    relative: float
    """Geometric mean of router / reference, minus 1."""
    ci_low: float
    """Of `relative`: the 95 % interval over the seeds."""
    ci_high: float
    verdict: Verdict

    @property
    def worthwhile(self) -> bool:
        """Whether the router is better for sure, and by enough to care."""
        return self.verdict == "better" and self.relative <= -WORTHWHILE


class MetricHeadroom(Record):
    """The headroom on one metric."""

    metric: str
    round_robin: float
    """Mean over the seeds, in seconds."""
    heuristic: Step
    """The best heuristic, against round robin. Chosen on the same seeds, so a little flattered."""
    lookahead: Step
    """Lookahead at the metric's dial, against the best heuristic."""
    true_lengths: Step
    """Lookahead told the true lengths of all requests, against lookahead. No router can reach it."""


class Headroom(Record):
    """The headroom of one scenario at one load."""

    scenario: str
    load: float
    """Fraction of capacity."""
    rate_rps: float
    metrics: tuple[MetricHeadroom, ...]

    @property
    def places(self) -> list[str]:
        """The metrics on which routing is worth something."""
        return [m.metric for m in self.metrics if m.heuristic.worthwhile or m.lookahead.worthwhile]

    @property
    def in_words(self) -> str:
        """Where routing is worth something, as in `has headroom on mean TTFT`."""
        if self.places:
            return f"has headroom on {listing([LABELS[metric] for metric in self.places])}"
        steps = [step for m in self.metrics for step in (m.heuristic, m.lookahead)]
        if any(step.verdict == "undecided" and step.relative <= -WORTHWHILE for step in steps):
            return "may have headroom, but the intervals are too wide to tell: take more seeds or requests"
        return f"has no headroom: no step of {100 * WORTHWHILE:g} % or more, so any router will do"


def cache_directory() -> Path:
    """Where measured headroom is kept between runs."""
    return Path(platformdirs.user_cache_dir("fairlead")) / "headroom"


def measure(scenario: Scenario, load: float, seeds: Sequence[int], requests: int) -> Headroom:
    """The headroom of one setting, measured anew.

    Raises:
        FairleadError: fewer than two seeds, and as `simulate`.
    """
    found = {name: _values(scenario, load, name, seeds, requests) for name in HEURISTICS}
    metrics = []
    for metric, dial in DIALS.items():
        best = min(found, key=lambda name: float(np.log(found[name][metric]).mean()))
        ahead, told = f"lookahead@{dial:g}", f"lookahead:true-lengths@{dial:g}"
        looking = _values(scenario, load, ahead, seeds, requests)[metric]
        knowing = _values(scenario, load, told, seeds, requests)[metric]
        metrics.append(
            MetricHeadroom(
                metric=metric,
                round_robin=float(found["round_robin"][metric].mean()),
                heuristic=_step(best, found[best][metric], found["round_robin"][metric]),
                lookahead=_step(ahead, looking, found[best][metric]),
                true_lengths=_step(told, knowing, looking),
            )
        )
    rate = load * capacity_rps(scenario)
    return Headroom(scenario=scenario.name, load=load, rate_rps=rate, metrics=tuple(metrics))


def headroom(
    scenario: Scenario, load: float, *, seeds: Sequence[int] = SEEDS, requests: int = REQUESTS
) -> Headroom:
    """As `measure`, from the cache if the same was measured before by the same version.

    Raises:
        FairleadError: as `measure`, and if the result cannot be kept.
    """
    path = _path(scenario, load, seeds, requests)
    known = _read(path)
    if known is not None:
        return known
    found = measure(scenario, load, seeds, requests)
    keep(path, found.model_dump_json(), "headroom")
    return found


def is_known(
    scenario: Scenario, load: float, *, seeds: Sequence[int] = SEEDS, requests: int = REQUESTS
) -> bool:
    """Whether `headroom` would answer from its cache."""
    return _read(_path(scenario, load, seeds, requests)) is not None


def headroom_of_all(
    scenarios: Iterable[Scenario],
    *,
    seeds: Sequence[int] = SEEDS,
    requests: int = REQUESTS,
    progress: Callable[[str, float, float], None] | None = None,
) -> list[Headroom]:
    """The headroom of each scenario at each of its loads; each is kept as soon as it is known."""
    settings = [(scenario, load) for scenario in scenarios for load in scenario.loads]
    missing = [not is_known(scenario, load, seeds=seeds, requests=requests) for scenario, load in settings]
    found = []
    for (scenario, load), slow in zip(settings, missing, strict=True):
        found.append(headroom(scenario, load, seeds=seeds, requests=requests))
        if progress is not None and slow:
            progress("measuring headroom", sum(missing[: len(found)]), sum(missing))
    return found


def _values(scenario: Scenario, load: float, router: str, seeds: Sequence[int], requests: int) -> Values:
    runs = simulate(scenario, load, find_router(router), seeds, requests)
    rows = [summarise(outcomes, scenario.slo.ttft_s, scenario.slo.tpot_s) for outcomes in runs]
    return {metric: np.array([row[metric] for row in rows]) for metric in DIALS}


def _step(router: str, values: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> Step:
    # All of these metrics are times above 0, so ratios and their logarithms exist.
    found = compare(np.log(values), np.log(reference), lower_is_better=True)
    return Step(
        router=router,
        value=float(values.mean()),
        relative=math.expm1(found.difference),
        ci_low=math.expm1(found.ci_low),
        ci_high=math.expm1(found.ci_high),
        verdict=found.verdict,
    )


def _path(scenario: Scenario, load: float, seeds: Sequence[int], requests: int) -> Path:
    """Where a result is kept: another simulator, workload, router or setting is another file."""
    digest = hashlib.sha256(source_digest().encode())
    for source in [Path(__file__), *sorted(Path(fairlead.workload.__file__).parent.glob("*.py"))]:
        digest.update(source.read_bytes())
    digest.update(json.dumps([scenario.name, scenario.hash(), load, list(seeds), requests]).encode())
    return cache_directory() / f"{digest.hexdigest()[:32]}.json"


def _read(path: Path) -> Headroom | None:
    try:
        return Headroom.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Absent, or half written by something else: measuring again is always right.
        return None
