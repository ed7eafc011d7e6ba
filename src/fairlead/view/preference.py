"""The dial between end-to-end latency and time to first token.

There is no single best router but a frontier: sending a long answer elsewhere may cost its first token
and save everybody's last one. The operator chooses a point by one number, `favor`, from 0 (end-to-end
latency) over the default, 0.5 (end-to-end latency, but no long waits for a first token), to 1 (first tokens,
above all the late ones); one policy serves the whole range.
"""

from typing import NamedTuple

from fairlead.compiled import njit
from fairlead.errors import FairleadError

LEAST_TTFT_WEIGHT = 0.5
"""Weight of TTFT at favor 0, relative to a weight of 1 for E2E."""
MOST_TTFT_WEIGHT = 160.0
MOST_TAIL_WEIGHT = 5760.0
"""Weights at favor 1."""
POWER = 4
"""Of favor, by which both grow."""
DIAL = (LEAST_TTFT_WEIGHT, MOST_TTFT_WEIGHT, MOST_TAIL_WEIGHT, POWER)
"""All that tells what a value of favor means."""
DEFAULT_FAVOR = 0.5
"""Where the shipped policy's mean end-to-end latency is nowhere above the best heuristic's, and its p99 TTFT
about as low (docs/results.md)."""


class Weights(NamedTuple):
    """The objective: ttft * TTFT + e2e * E2E + tail * `view.tail.tail_cost`, over all requests."""

    ttft: float
    e2e: float
    tail: float

    def __str__(self) -> str:
        """As `3 TTFT : 1 E2E : 20 tail`."""
        return f"{self.ttft:.4g} TTFT : {self.e2e:.4g} E2E : {self.tail:.4g} tail"


def check_favor(favor: float) -> float:
    """`favor`, if it is in [0, 1].

    Raises:
        FairleadError: if it is not.
    """
    if not 0.0 <= favor <= 1.0:
        raise FairleadError(
            f"favor {favor:g} is not in [0, 1]: 0 favors end-to-end latency, 1 time to first token"
        )
    return favor


@njit(inline=True)
def dial(favor: float) -> tuple[float, float, float]:
    """`weights_of`, for compiled code."""
    ttft = LEAST_TTFT_WEIGHT + (MOST_TTFT_WEIGHT - LEAST_TTFT_WEIGHT) * favor**POWER
    return ttft, 1.0, MOST_TAIL_WEIGHT * favor**POWER


def weights_of(favor: float) -> Weights:
    """The weights at this point of the dial.

    The tail's weight is 0 at favor 0, 360 at 0.5 and 5760 at 1.

    Raises:
        FairleadError: if `favor` is not in [0, 1].
    """
    return Weights(*dial(check_favor(favor)))
