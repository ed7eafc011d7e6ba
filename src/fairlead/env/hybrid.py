"""The `hybrid` reward: a weighted sum of components, each logged raw and scaled.

Request-level components are sums over the completions of an interval, never averages since the start, so a
request that is late by ten seconds costs the same at the end of an episode as at its beginning.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.env.interval import Interval
from fairlead.env.reward_config import HybridReward, LatencyPenalty

Floats = npt.NDArray[np.float64]

COMPONENTS: tuple[str, ...] = (
    "sojourn",
    "absolute_score",
    "delta_score",
    "latency_penalty",
    "served",
    "imbalance_penalty",
    "low_latency_bonus",
    "p99_bonus",
    "p95_improvement",
    "baseline",
    "goodput",
    "shaping",
    "least_busy_bonus",
)
"""In the order of the arrays that `Hybrid.components` returns."""


class Objectives(NamedTuple):
    """What K clusters are judged by."""

    weights: Floats
    """(K, 3) of waiting for the first token, of being in the system and of the tail (`view.preference`)."""
    slo_ttft_s: Floats
    """(K,)."""
    slo_tpot_s: Floats
    """(K,)."""


def latency_penalty(latency_s: Floats, threshold_s: float, config: LatencyPenalty) -> Floats:
    """What each completion costs, non-negative; see `LatencyPenalty` for the shapes."""
    ratio = latency_s / threshold_s
    if config.shape == "linear":
        cost = config.scale * ratio
    elif config.shape == "logistic":
        cost = config.scale / (1.0 + np.exp(-config.steepness * (ratio - config.centre)))
    else:
        beyond = np.maximum(ratio - 1.0, 0.0)
        cost = config.scale * (np.minimum(ratio, 1.0) + config.excess_slope * beyond)
    return cost if config.cap is None else np.minimum(cost, config.cap)


def imbalance(in_flight: npt.NDArray[np.int64], measure: str) -> Floats:
    """Spread (K,) of requests in flight (K, R), relative to (replicas + their mean)."""
    load = in_flight.astype(np.float64)
    spread = load.std(1) if measure == "std" else load.max(1) - load.min(1)
    relative: Floats = spread / (load.shape[1] + load.mean(1))
    return relative


def low_latency_bonus(latency_s: Floats, threshold_s: float, margin: float) -> Floats:
    """From 0 at margin x threshold to 1 at no latency at all."""
    return np.maximum(1.0 - latency_s / (margin * threshold_s), 0.0)


class Hybrid:
    """The components of K clusters; everything remembered here begins anew with each episode."""

    def __init__(self, config: HybridReward, objectives: Objectives) -> None:
        """An episode begins."""
        clusters = len(objectives.slo_ttft_s)
        self.config, self.objectives = config, objectives
        self.weights = np.array(
            [
                config.sojourn_weight,
                config.absolute_weight,
                config.delta_weight,
                -1.0,  # the penalty has a scale of its own
                config.served_weight,
                -config.imbalance_weight,
                config.low_latency_bonus,
                config.p99_bonus,
                config.p95_improvement_weight,
                config.baseline_weight,
                config.goodput_weight,
                1.0,  # potentials have weights of their own
                config.least_busy_bonus,
            ]
        )
        self._score_average: Floats | None = None
        self._recent = np.zeros((4, clusters))  # completions, their latencies, arrivals, seconds; decayed
        self._own_past: Floats | None = None
        self._potential = np.zeros(clusters)
        self._tail: Floats = np.zeros((clusters, config.tail_window))
        self._tail_filled = np.zeros(clusters, np.int64)
        self._p95 = np.full(clusters, np.nan)

    def components(self, x: Interval, cost: Floats, shadow_cost: Floats | None) -> Floats:
        """Raw components (13, K) of the interval.

        Args:
            x: what happened.
            cost: (K,) weighted request-seconds in it.
            shadow_cost: (K,) those of the shadow cluster, where there is one.
        """
        config = self.config
        latency = x.e2e_s if config.latency == "e2e" else x.ttft_s
        absolute = self._absolute(x, latency)
        p99_bonus, p95_improvement = self._tails(x, latency)
        penalty = latency_penalty(latency, config.latency_threshold_s, config.latency_penalty)
        bonus = low_latency_bonus(latency, config.latency_threshold_s, config.low_latency_margin)
        good = (x.ttft_s <= self.objectives.slo_ttft_s[x.cluster]) & (
            x.tpot_s <= self.objectives.slo_tpot_s[x.cluster]
        )
        rows = np.arange(len(cost))
        chosen = x.in_flight_before[rows, x.actions]
        return np.stack(
            [
                -cost,
                absolute,
                self._delta(absolute),
                x.sums(penalty),
                x.completions,
                imbalance(x.in_flight, config.imbalance),
                x.sums(bonus),
                p99_bonus,
                p95_improvement,
                self._relative(cost, shadow_cost),
                x.sums(good.astype(np.float64)),
                self._shaping(x),
                (chosen == x.in_flight_before.min(1)).astype(np.float64),
            ]
        )

    def total(self, components: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """(scaled components (13, K), reward (K,), whether it was clipped (K,))."""
        scaled = components * (self.config.scale_factor * self.weights)[:, None]
        total = scaled.sum(0)
        if self.config.clip is None:
            return scaled, total, np.zeros(len(total), np.bool_)
        low, high = self.config.clip
        return scaled, np.clip(total, low, high), (total < low) | (total > high)

    def _absolute(self, x: Interval, latency: Floats) -> Floats:
        """Throughput against its target minus latency against its threshold, both recent; 0 at first."""
        config = self.config
        new = np.stack([x.completions, x.sums(latency), np.ones(len(x.elapsed_s)), x.elapsed_s])
        self._recent = np.exp(-x.elapsed_s / config.window_s) * self._recent + new
        completions, latencies, arrivals, seconds = self._recent
        offered = config.throughput_target == "offered"
        target = arrivals if offered else float(config.throughput_target) * seconds
        ratio = np.clip(
            completions / np.maximum(target, 1e-12), 1.0 - config.throughput_loss_cap, config.throughput_cap
        )
        mean = latencies / np.maximum(completions, 1e-12)
        score = config.throughput_weight * ratio - config.latency_weight * mean / config.latency_threshold_s
        return np.where(completions > 0, score, 0.0)

    def _delta(self, absolute: Floats) -> Floats:
        before = absolute if self._score_average is None else self._score_average
        delta = absolute - before
        self._score_average = before + self.config.alpha * delta
        return delta

    def _relative(self, cost: Floats, shadow_cost: Floats | None) -> Floats:
        """Request-seconds saved against the shadow cluster, or against the cluster's own past."""
        if shadow_cost is not None:
            return shadow_cost - cost
        past = cost if self._own_past is None else self._own_past
        self._own_past = past + self.config.alpha * (cost - past)
        return past - cost

    def _shaping(self, x: Interval) -> Floats:
        """Discount x potential of the new state - potential of the old one (Ng, Harada and Russell 1999)."""
        config = self.config
        potential = -config.queue_variance_weight * x.in_flight.var(1) - config.waiting_weight * x.waiting
        shaping: Floats = np.exp(-x.elapsed_s / config.potential_horizon_s) * potential - self._potential
        self._potential = potential
        return shaping

    def _tails(self, x: Interval, latency: Floats) -> tuple[Floats, Floats]:
        """P99 below its margin, and the relative fall of P95, at the end of each window of completions."""
        config, clusters = self.config, len(x.elapsed_s)
        bonus, improvement = np.zeros(clusters), np.zeros(clusters)
        if config.p99_bonus == 0.0 and config.p95_improvement_weight == 0.0:
            return bonus, improvement
        for c, value in zip(x.cluster.tolist(), latency.tolist(), strict=True):
            self._tail[c, self._tail_filled[c]] = value
            self._tail_filled[c] += 1
            if self._tail_filled[c] == config.tail_window:
                self._tail_filled[c] = 0
                p95, p99 = np.percentile(self._tail[c], (95, 99))
                bonus[c] += p99 < config.p99_margin * config.latency_threshold_s
                if not np.isnan(self._p95[c]):
                    improvement[c] += (self._p95[c] - p95) / self._p95[c]
                self._p95[c] = p95
        return bonus, improvement
