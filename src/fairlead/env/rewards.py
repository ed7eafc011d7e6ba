"""Rewards for the time between two decisions, with what is logged about them.

`sojourn` (default): between two arrivals the cluster pays `w_ttft` for each second that a request spends
without its first token, `w_e2e` for each second that it spends in the system, and `w_tail` for what it costs
by the tail of TTFTs while it waits (`fairlead.view.tail.tail_cost`; where that begins: `fairlead.env.tails`).
By Little's law the sum over a run is exactly w_ttft * (total TTFT) + w_e2e * (total E2E) + w_tail * (total
cost by the tail): dense, unbiased and unsaturated.

`hybrid` (`fairlead.env.hybrid`): a weighted sum of many components.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.env import hybrid
from fairlead.env.hybrid import Hybrid, Objectives
from fairlead.env.interval import Interval
from fairlead.env.reward_config import HybridReward, SojournReward
from fairlead.env.statistics import RewardLog
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.decisions import waiting_areas

Floats = npt.NDArray[np.float64]


def waiting_cost(clusters: Clusters, weights: Floats) -> Floats:
    """(K,) weighted request-seconds since the last decision; `weights` (K, 3) as in `Objectives`."""
    areas = np.empty((clusters.K, 3))
    waiting_areas(clusters.state, clusters.state.clusters["now"], areas)
    return np.einsum("kj,kj->k", weights, areas)


class Sojourn:
    """Minus the weighted waiting between two decisions."""

    def __init__(self, objectives: Objectives, log: RewardLog) -> None:
        """An episode begins."""
        self._weights, self._log = objectives.weights, log

    def routed(self) -> None:
        """Nothing to do."""

    def __call__(self, clusters: Clusters, interval: Interval) -> Floats:
        """(K,) rewards in weighted request-seconds, for the time up to the decision at hand."""
        reward = -waiting_cost(clusters, self._weights)
        self._log.add(reward[None], reward[None], np.zeros(len(reward), np.bool_))
        return reward


class Shadow:
    """A heuristic that serves each group's arrivals in a cluster of its own, step by step beside it."""

    def __init__(self, clusters: Clusters, router: str, seed: int) -> None:
        """`clusters` has one freshly loaded cluster for each group."""
        self._clusters, self._router = clusters, Heuristic(router)
        self._router.reset(clusters.K, clusters.R, seed)
        self._view = clusters.observe()

    def routed(self) -> None:
        """Take the same decision."""
        self._clusters.route(self._router.route(self._view))

    def cost(self, weights: Floats) -> Floats:
        """Weighted request-seconds up to the next arrival, (groups,); `weights` (groups, 3)."""
        self._view = self._clusters.observe()
        return waiting_cost(self._clusters, weights)


class HybridSum:
    """The hybrid reward, its shadow and its log."""

    def __init__(
        self, config: HybridReward, objectives: Objectives, log: RewardLog, shadow: Shadow | None, group: int
    ) -> None:
        """An episode begins; `shadow` has one cluster for each `group` of clusters."""
        self._parts = Hybrid(config, objectives)
        self._weights, self._log, self._shadow, self._group = objectives.weights, log, shadow, group

    def routed(self) -> None:
        """The shadow takes its decision."""
        if self._shadow is not None:
            self._shadow.routed()

    def __call__(self, clusters: Clusters, interval: Interval) -> Floats:
        """(K,) for the time up to the decision at hand."""
        other = None
        if self._shadow is not None:
            other = np.repeat(self._shadow.cost(self._weights[:: self._group]), self._group)
        raw = self._parts.components(interval, waiting_cost(clusters, self._weights), other)
        scaled, total, saturated = self._parts.total(raw)
        self._log.add(raw, scaled, saturated)
        return total


def component_names(config: SojournReward | HybridReward) -> tuple[str, ...]:
    """Names of the components that a reward is made of."""
    return ("sojourn",) if config.kind == "sojourn" else hybrid.COMPONENTS


def shadow_router(config: SojournReward | HybridReward) -> str | None:
    """The heuristic that the reward compares with, if any."""
    if config.kind == "sojourn" or config.baseline_weight == 0.0 or config.baseline == "moving_average":
        return None
    return config.baseline


def make_reward(
    config: SojournReward | HybridReward,
    objectives: Objectives,
    log: RewardLog,
    shadow: Shadow | None,
    group: int,
) -> Any:
    """The reward of one episode."""
    if config.kind == "sojourn":
        return Sojourn(objectives, log)
    return HybridSum(config, objectives, log, shadow, group)
