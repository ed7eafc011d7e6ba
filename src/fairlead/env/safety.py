"""Safety monitors: limits that are watched at every decision, counted, and may end an episode."""

import numpy as np
import numpy.typing as npt

from fairlead.env.interval import Interval
from fairlead.env.reward_config import SafetyConfig

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MONITORS: tuple[str, ...] = (
    "latency_cutoff",
    "scheduling_delay_p99",
    "starvation",
    "queue_growth",
    "kv_exhaustion",
)
"""In the order of the arrays that `Monitors.crossed` returns."""

GROWING_WINDOWS = 3
"""Windows in a row over which the number in the system must grow to count as unbounded."""


class Monitors:
    """The limits of K clusters; everything remembered here begins anew with each episode."""

    def __init__(self, config: SafetyConfig, slo_ttft_s: Floats) -> None:
        """An episode begins; `slo_ttft_s` is (K,)."""
        clusters = len(slo_ttft_s)
        self._config, self._slo_ttft_s = config, slo_ttft_s
        self._delays = np.zeros((clusters, config.window))
        self._delays_seen = np.zeros(clusters, np.int64)
        self._in_system = np.zeros(clusters)
        self._steps = 0
        self._means = np.zeros((GROWING_WINDOWS + 1, clusters))
        self._preemptions = np.zeros(clusters, np.int64)

    def crossed(self, x: Interval, preemptions: npt.NDArray[np.int64]) -> Flags:
        """(5, K) which limits were crossed in the interval.

        Args:
            x: what happened.
            preemptions: (K,) requests that have lost their KV blocks so far, over all replicas.
        """
        config, clusters = self._config, len(x.elapsed_s)
        limit = config.latency_cutoff * self._slo_ttft_s
        late = x.ttft_s > limit[x.cluster]
        cutoff = (np.bincount(x.cluster[late], minlength=clusters) > 0) | (x.oldest_wait_s > limit)
        exhausted = preemptions > self._preemptions
        self._preemptions = preemptions.copy()
        starved = x.overtaken & (x.oldest_wait_s > config.starvation_s)
        return np.stack([cutoff, self._slow_starts(x), starved, self._growth(x), exhausted])

    def _slow_starts(self, x: Interval) -> Flags:
        """P99 of scheduling delay above its limit, judged where a window of completions has filled."""
        config = self._config
        found = np.zeros(len(x.elapsed_s), np.bool_)
        # Several completions of one cluster go to consecutive places of its window.
        order = np.argsort(x.cluster, kind="stable")
        cluster = x.cluster[order]
        counts = np.bincount(cluster, minlength=len(found))
        rank = np.arange(len(cluster)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._delays[cluster, (self._delays_seen[cluster] + rank) % config.window] = x.delay_s[order]
        before = self._delays_seen // config.window
        self._delays_seen += counts
        filled = np.flatnonzero(self._delays_seen // config.window > before)
        if len(filled):
            p99 = np.percentile(self._delays[filled], 99, axis=1)
            found[filled] = p99 > config.scheduling_delay_p99_s
        return found

    def _growth(self, x: Interval) -> Flags:
        """Whether the mean number in the system has grown window after window."""
        config = self._config
        self._in_system += x.in_flight.sum(1)
        self._steps += 1
        if self._steps % config.window:
            return np.zeros(len(x.elapsed_s), np.bool_)
        self._means = np.concatenate([self._means[1:], self._in_system[None] / config.window])
        self._in_system = np.zeros(len(x.elapsed_s))
        if self._steps < (GROWING_WINDOWS + 1) * config.window:
            return np.zeros(len(x.elapsed_s), np.bool_)
        grew: Flags = np.logical_and.reduce(self._means[1:] > config.queue_growth * self._means[:-1])
        return grew
