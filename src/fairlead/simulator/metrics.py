"""The metrics of one run: pure functions of its outcomes, O(N log N) in the number of requests.

Percentiles are those of the individual requests (linear interpolation between order statistics), never of a
running mean. Requests at both ends of a run are left out: the first ones found an empty cluster, and the last
ones had no successors to share their batches with.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import FairleadError
from fairlead.simulator.outcomes import FloatArray, Outcomes
from fairlead.view.tail import TAIL_SHARE

METRICS: tuple[str, ...] = (
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p90_s",
    "e2e_p99_s",
    "throughput_rps",
    "goodput_rps",
    "imbalance",
    "retries_mean",
    "prefix_hit_rate",
    "scheduling_delay_p99_s",
    "ttft_worst_mean_s",
)
"""The names that `summarise` returns, in this order."""


WARMUP, COOLDOWN = 0.1, 0.05
"""Shares of a run's requests, at its start and at its end, that are not measured."""


def measured_window(requests: int, warmup: float, cooldown: float) -> slice:
    """The indices i with warmup * requests <= i < (1 - cooldown) * requests.

    Raises:
        FairleadError: the window is empty.
        ValueError: `warmup` or `cooldown` is negative.
    """
    if warmup < 0 or cooldown < 0:
        raise ValueError("warmup and cooldown must not be negative")
    # Rounding keeps 0.1 * 30 = 3.0000000000000004 from excluding request 3.
    first = math.ceil(round(warmup * requests, 6))
    end = math.ceil(round((1.0 - cooldown) * requests, 6))
    if first >= end:
        raise FairleadError(
            f"{requests} requests are too few to measure after {warmup:.0%} of warm-up and {cooldown:.0%} of "
            "cool-down: run more requests"
        )
    return slice(first, end)


def tpot_s(outcomes: Outcomes) -> FloatArray:
    """(N,) time per output token after the first: (finish - first token) / (output tokens - 1).

    A request of one output token has no such time; its entry is 0 and means nothing.
    """
    return (outcomes.finish_s - outcomes.first_token_s) / np.maximum(outcomes.output_tokens - 1, 1)


def meets_slo(outcomes: Outcomes, slo_ttft_s: float, slo_tpot_s: float) -> NDArray[np.bool_]:
    """(N,) whether a request met both objectives; one output token has no TPOT that could miss."""
    tpot_met = (outcomes.output_tokens == 1) | (tpot_s(outcomes) <= slo_tpot_s)
    met: NDArray[np.bool_] = (outcomes.ttft_s <= slo_ttft_s) & tpot_met
    return met


def arrival_imbalance(outcomes: Outcomes) -> FloatArray:
    """(N,) coefficient of variation over the replicas of the requests in flight that each arrival finds.

    In flight at the arrival t of request i: the earlier requests (j < i) with finish > t. The coefficient is
    the population standard deviation divided by the mean, and 0 in an empty cluster; its maximum, everything
    on one of R replicas, is sqrt(R - 1).

    Every arrival and every finish changes one replica's count n by one, so the sum of n and the sum of n
    squared follow from one sort of the 2 N events, whatever the number of replicas.
    """
    size = len(outcomes)
    # A request that takes no time at all is never in flight; without it, no request finishes at its arrival.
    counted = np.flatnonzero(outcomes.finish_s > outcomes.arrival_s)
    time = np.concatenate([outcomes.arrival_s, outcomes.finish_s[counted]])
    change = np.zeros(len(time), dtype=np.int64)
    change[counted] = 1
    change[size:] = -1
    replica = np.concatenate([outcomes.replica, outcomes.replica[counted]])
    # At equal times finishes come first (finish > t is needed to be in flight), then arrivals in their order.
    order = np.lexsort((np.arange(len(time)), np.arange(len(time)) < size, time))
    change, replica = change[order], replica[order]

    by_replica = np.argsort(replica, kind="stable")
    grouped = change[by_replica]
    after = np.cumsum(grouped)
    starts = np.flatnonzero(np.diff(replica[by_replica], prepend=-1))
    lengths = np.diff(starts, append=len(time))
    after -= np.repeat(after[starts] - grouped[starts], lengths)
    square_change = np.empty_like(change)
    square_change[by_replica] = after**2 - (after - grouped) ** 2

    arrivals = np.flatnonzero(order < size)
    total = (np.cumsum(change) - change)[arrivals]
    squares = (np.cumsum(square_change) - square_change)[arrivals]
    # std / mean = sqrt(R * sum n^2 - (sum n)^2) / sum n, in exact integers up to the root.
    spread = np.sqrt((outcomes.num_replicas * squares - total**2).astype(np.float64))
    coefficient = np.zeros(size)
    np.divide(spread, total, out=coefficient, where=total > 0)
    return coefficient


def worst_mean_s(ttft_s: FloatArray) -> FloatArray:
    """Mean of the longest TTFTs, `TAIL_SHARE` of them and at least one: (..., N) -> (...).

    The conditional value at risk (Rockafellar and Uryasev 2000): what the tail that the dial weighs costs.
    """
    size = max(1, round(TAIL_SHARE * ttft_s.shape[-1]))
    mean: FloatArray = np.sort(ttft_s, axis=-1)[..., -size:].mean(-1)
    return mean


def _window_s(outcomes: Outcomes, window: slice) -> tuple[float, float]:
    """Start and end of the time in which completions are counted, in seconds."""
    arrival_s = outcomes.arrival_s
    start = float(arrival_s[window.start])
    end = float(arrival_s[min(window.stop, len(outcomes) - 1)])
    if end <= start:  # everything arrived at once: count until the last request has finished
        end = float(np.nextafter(outcomes.finish_s.max(), np.inf))
    return start, end


def _hit_rate(outcomes: Outcomes, window: slice) -> float:
    """Prompt tokens found in the prefix cache, of all prompt tokens; 0 where that was not recorded."""
    if outcomes.cached_tokens is None:
        return 0.0
    return float(outcomes.cached_tokens[window].sum() / outcomes.prompt_tokens[window].sum())


def _scheduling_delay_s(outcomes: Outcomes, window: slice) -> float:
    """The 99th percentile, in seconds; 0 where first batches were not recorded."""
    if outcomes.scheduled_s is None:
        return 0.0
    return float(np.percentile(outcomes.scheduling_delay_s[window], 99))


def summarise(
    outcomes: Outcomes,
    slo_ttft_s: float,
    slo_tpot_s: float,
    warmup: float = WARMUP,
    cooldown: float = COOLDOWN,
) -> dict[str, float]:
    """The metrics of one run, keyed by `METRICS`, all finite.

    Latencies and `imbalance` are taken over the measured requests, those whose index lies in
    [warmup * N, (1 - cooldown) * N). TPOT is (finish - first token) / (output tokens - 1) over those of them
    with more than one output token; it is 0 where no request has a second token. `imbalance` is the mean of
    `arrival_imbalance`.

    `throughput_rps` counts completions of *any* request in the measured time, from the arrival of the first
    measured request to that of the first one after them (the last of the run where none is left), per second
    of that time. So it equals the arrival rate in a stable cluster and the capacity in an overloaded one; the
    drain at the end does not dilute it. Where all requests arrive at the same moment, the time ends with the
    last completion. `goodput_rps` counts only the completions that met both objectives.

    `prefix_hit_rate` is the share of the measured prompt tokens that were found in the prefix cache.
    `scheduling_delay_p99_s` is that of the times from arrival to the first batch. Both are 0 where the run
    did not record them, as on live servers. `ttft_worst_mean_s` is `worst_mean_s`.

    Args:
        outcomes: the run.
        slo_ttft_s: objective for the time to first token, in seconds.
        slo_tpot_s: objective for the time per output token, in seconds.
        warmup: share of the requests to leave out at the start.
        cooldown: share of the requests to leave out at the end.

    Raises:
        FairleadError: no request is left to measure.
    """
    window = measured_window(len(outcomes), warmup, cooldown)
    ttft = outcomes.ttft_s[window]
    e2e = outcomes.e2e_s[window]
    tpot = tpot_s(outcomes)[window][outcomes.output_tokens[window] > 1]
    if not len(tpot):
        tpot = np.zeros(1)

    start, end = _window_s(outcomes, window)
    completed = (outcomes.finish_s >= start) & (outcomes.finish_s < end)
    good = completed & meets_slo(outcomes, slo_ttft_s, slo_tpot_s)

    ttft_p50, ttft_p90, ttft_p99 = np.percentile(ttft, (50, 90, 99))
    e2e_p50, e2e_p90, e2e_p99 = np.percentile(e2e, (50, 90, 99))
    summary: Mapping[str, float] = {
        "ttft_mean_s": ttft.mean(),
        "ttft_p50_s": ttft_p50,
        "ttft_p90_s": ttft_p90,
        "ttft_p99_s": ttft_p99,
        "tpot_mean_s": tpot.mean(),
        "tpot_p99_s": np.percentile(tpot, 99),
        "e2e_mean_s": e2e.mean(),
        "e2e_p50_s": e2e_p50,
        "e2e_p90_s": e2e_p90,
        "e2e_p99_s": e2e_p99,
        "throughput_rps": completed.sum() / (end - start),
        "goodput_rps": good.sum() / (end - start),
        "imbalance": arrival_imbalance(outcomes)[window].mean(),
        "retries_mean": outcomes.retried[window].mean(),
        "prefix_hit_rate": _hit_rate(outcomes, window),
        "scheduling_delay_p99_s": _scheduling_delay_s(outcomes, window),
        "ttft_worst_mean_s": float(worst_mean_s(ttft)),
    }
    return {name: float(summary[name]) for name in METRICS}
