"""The tail of a router's TTFTs: a histogram that forgets, and the quantile where the tail begins.

What a p99 is made of is waiting beyond the quantile: with q the 1 - a quantile of T, E[(T - q)+] / a + q is
the mean of the worst share a, the conditional value at risk (Rockafellar and Uryasev 2000, Optimization of
Conditional Value-at-Risk). So a router that knows where its own tail begins can tell which choice would
lengthen it.

Counts do not depend on the order in which tokens of different replicas are noticed, and forgetting happens at
decisions only: simulator and gateway come to the same numbers.
"""

import math

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit

TAIL_SHARE = 0.02
"""The share of requests with the longest TTFT that makes up the tail."""
TAIL_PRIOR_S = 1.0
"""Where it is taken to begin before any first token has been seen, s."""
BINS = 64
_LEAST_S = 0.005
_LOG_LEAST = math.log(_LEAST_S)
_LOG_STEP = math.log(1.2)
"""Each bin is 20 % wide, from 5 ms to 9 minutes; what lies outside counts in the first or the last one."""
_KEEP = 1.0 - 1.0 / 1024.0
"""What is left of each count after one more decision: the last thousand requests count."""


@njit(inline=True)
def tail_bin(ttft: float) -> int:
    """The bin in which a TTFT (s) is counted."""
    if ttft <= _LEAST_S:
        return 0
    return min(int((math.log(ttft) - _LOG_LEAST) / _LOG_STEP), BINS - 1)


@njit(inline=True)
def tail_cost(ttft: float, begins: float) -> float:
    """What a TTFT adds to the tail, in s, where the tail is taken to begin at `begins`.

    Over many requests the mean is least, and `TAIL_SHARE` times the mean of the worst ones, where `begins` is
    their quantile. Without its first term late TTFTs would soon be free: they move the beginning, and what
    comes after them exceeds it by less.
    """
    return TAIL_SHARE * begins + excess(ttft, begins)


@njit(inline=True)
def excess(wait: float, begins: float) -> float:
    """How much longer a wait (s) is than where the tail begins."""
    return max(0.0, wait - begins)


@njit(allocates=False)
def forget_and_find(counts: npt.NDArray[np.float64]) -> float:
    """Forget a little of `counts` (BINS,), then say where the tail begins, in s; once per decision.

    Within a bin the counts are taken to be spread evenly over the logarithm.
    """
    total = 0.0
    for b in range(BINS):
        counts[b] *= _KEEP
        total += counts[b]
    if total == 0.0:
        return TAIL_PRIOR_S
    beyond = TAIL_SHARE * total
    for back in range(BINS):
        b = BINS - 1 - back
        if counts[b] > 0.0 and counts[b] >= beyond:
            return math.exp(_LOG_LEAST + _LOG_STEP * (b + 1.0 - beyond / counts[b]))
        beyond -= counts[b]
    return _LEAST_S
