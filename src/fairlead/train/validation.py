"""Held-out evaluation during training: how a policy does against the best simple heuristic.

Every scenario is run at several loads and several points on the dial, on arrivals of the `validate`
split, which neither training nor the final evaluation sees (of a recorded trace, training replays the same
rows, and only the final evaluation has its own). For each of these settings the policy's
objective (`fairlead.view.preference`) is divided by that of the best heuristic there (`lookahead` aside);
the mean of these ratios is what the best checkpoint is chosen by. Below 1 the policy wins.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fairlead.env.run import run
from fairlead.evaluate.quality import REPLICAS_PER_RUN
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.heuristics import HEURISTICS, Heuristic
from fairlead.policy.network import NetworkRouter
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.metrics import worst_mean_s
from fairlead.train.config import ValidationConfig
from fairlead.view.features import features_batch
from fairlead.view.preference import weights_of
from fairlead.view.tail import TAIL_SHARE
from fairlead.workload.scenario import Scenario, generate

Floats = npt.NDArray[np.float64]

AT_ONCE = 256
"""Clusters that are run together, unless one scenario has more: with prefix caches each takes tens of MB."""


def objective(ttft: Floats, e2e: Floats, weights: Floats) -> Floats:
    """What runs cost per request, (K,): TTFTs and E2Es are (K, N) in s, weights (K, 3).

    The weighted sum of mean TTFT, mean E2E and the tail: the share of the worst requests times their mean
    TTFT. That is the mean of what a TTFT exceeds the beginning of the run's own tail by, plus the share times
    that beginning, so that a router gains nothing by a tail that begins later (Rockafellar and Uryasev 2000).
    """
    tail = TAIL_SHARE * worst_mean_s(ttft)
    cost: Floats = np.einsum("kj,jk->k", weights, np.stack([ttft.mean(1), e2e.mean(1), tail]))
    return cost


class Scorer(Protocol):
    """What is validated: a network or an exported policy."""

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(K, R, F) -> (K, R)."""
        ...


class Setting(NamedTuple):
    """One point to be good at."""

    scenario: str
    load: float
    favor: float


class Report(NamedTuple):
    """What a validation found."""

    objective: float
    """Mean over the settings of the ratio to the best heuristic."""
    ratios: dict[Setting, float]
    against: dict[str, float]
    """The mean ratio to each heuristic by itself."""

    @property
    def beaten(self) -> float:
        """Share of the settings in which every heuristic is beaten."""
        return float(np.mean([ratio < 1.0 for ratio in self.ratios.values()]))


class Validation:
    """The settings, their arrivals, and what the heuristics reach there."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        loads: Sequence[float] | None,
        favors: Sequence[float],
        *,
        seeds: int,
        requests: int,
        seed: int = 0,
    ) -> None:
        """Prepare `seeds` runs of `requests` requests for each scenario and load (None: its own loads).

        Raises:
            FairleadError: for scenarios that cannot be run together.
        """
        points = [(scenario, load) for scenario in scenarios for load in loads or scenario.loads]
        self._settings = [Setting(s.name, load, f) for s, load in points for f in favors]
        arrivals = [
            generate(s, requests=requests, rate=load * capacity_rps(s), seed=seed + i, split="validate")
            for s, load in points
            for i in range(seeds)
        ]
        fleets = [build_fleet(s) for s, _ in points for _ in range(seeds)]
        self.requests = requests
        self._arrivals, self._fleets = arrivals, fleets
        # Cluster order: scenario and load, then seed, then favor.
        self._favor = np.tile(np.array(favors), len(arrivals))
        self._shape = (len(points), seeds, len(favors))
        self._measured = slice(requests // 10, requests - requests // 20)
        self._weights = np.array([weights_of(f) for f in self._favor])
        # Heuristics do not look at the dial: one run of each serves all its points.
        alike = self._clusters(1)
        self.heuristics = {name: self._of_heuristic(alike, name) for name in HEURISTICS}
        self.best_heuristic = np.min(list(self.heuristics.values()), axis=0)

    def _clusters(self, group: int) -> Clusters:
        """`group` of them for each run, empty; made when they are needed, as together they are large."""
        return Clusters(self._fleets, self._arrivals, group=group)

    def _objectives(self, clusters: Clusters) -> Floats:
        """The objective per setting, (points, favors), of a run that has just been drained."""
        requests = clusters.state.requests
        ttft = (requests["first_token"] - requests["arrival"])[:, self._measured]
        e2e = (requests["finish"] - requests["arrival"])[:, self._measured]
        repeats = len(self._weights) // clusters.K
        cost = objective(np.repeat(ttft, repeats, 0), np.repeat(e2e, repeats, 0), self._weights)
        means: Floats = cost.reshape(self._shape).mean(1)
        return means

    def _of_heuristic(self, clusters: Clusters, name: str) -> Floats:
        clusters.load(self._arrivals, 0)
        run(clusters, Heuristic(name))
        return self._objectives(clusters)

    def __call__(self, scorer: Scorer) -> Report:
        """Run the policy, greedily, in all settings at once."""
        clusters = self._clusters(self._shape[2])
        # What was remembered of another run must not reach into this one.
        if isinstance(scorer, NetworkRouter | OnnxRouter):
            scorer.reset(clusters.K, clusters.R, 0)
        features = None
        while True:
            view = clusters.observe()
            if clusters.done:
                break
            features = features_batch(view, self._favor, features)
            clusters.route(scorer.logits(features).argmax(-1).astype(np.int64))
        clusters.drain()
        return self._report(self._objectives(clusters))

    def _report(self, objectives: Floats) -> Report:
        ratios = (objectives / self.best_heuristic).ravel()
        against = {name: float((objectives / each).mean()) for name, each in self.heuristics.items()}
        by_setting = dict(zip(self._settings, ratios.tolist(), strict=True))
        return Report(float(ratios.mean()), by_setting, against)


class Validations:
    """The same for scenarios of several sizes: means over all settings."""

    def __init__(
        self, scenarios: Sequence[Scenario], settings: ValidationConfig, favors: Sequence[float]
    ) -> None:
        """Prepare a `Validation` for each number of replicas, larger ones with requests in proportion.

        `favors` are the points of `settings` that are trained. Of many scenarios only some run at a time.
        """
        parts: list[list[Scenario]] = []
        clusters = 0
        for scenario in sorted(scenarios, key=lambda scenario: scenario.num_replicas):
            its = len(settings.loads or scenario.loads) * settings.seeds * len(favors)
            clusters += its
            if not parts or parts[-1][0].num_replicas != scenario.num_replicas or clusters > AT_ONCE:
                parts.append([])
                clusters = its
            parts[-1].append(scenario)
        self.parts = [
            Validation(
                part,
                settings.loads,
                favors,
                seeds=settings.seeds,
                requests=settings.requests * max(1, part[0].num_replicas // REPLICAS_PER_RUN),
            )
            for part in parts
        ]

    def __call__(self, scorer: Scorer) -> Report:
        """Run the policy, greedily, in all settings."""
        reports = [part(scorer) for part in self.parts]
        ratios = {setting: ratio for report in reports for setting, ratio in report.ratios.items()}
        sizes = [len(report.ratios) for report in reports]
        against = {
            name: float(np.average([report.against[name] for report in reports], weights=sizes))
            for name in reports[0].against
        }
        return Report(float(np.average([r.objective for r in reports], weights=sizes)), ratios, against)
