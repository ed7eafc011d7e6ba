"""The dial between end-to-end latency and time to first token.

There is no single best router but a frontier: sending a long answer elsewhere may cost its first token
and save everybody's last one. The operator chooses a point by one number, `favor`, from 0 (end-to-end
latency) to 1 (time to first token); one policy serves the whole range.
"""

from fairlead.errors import FairleadError

LEAST_TTFT_WEIGHT = 0.5
"""Weight of TTFT at favor 0, relative to a weight of 1 for E2E."""
TTFT_WEIGHT_RANGE = 100.0
"""Ratio of the TTFT weights at favor 1 and at favor 0."""
DEFAULT_FAVOR = 0.5


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


def weights(favor: float) -> tuple[float, float]:
    """(w_ttft, w_e2e): the objective is w_ttft * TTFT + w_e2e * E2E, summed over requests.

    w_e2e is 1 and w_ttft grows geometrically from 0.5 to 50, because the two latencies differ by an
    order of magnitude: equal steps of the dial are equal ratios.
    """
    return LEAST_TTFT_WEIGHT * TTFT_WEIGHT_RANGE ** check_favor(favor), 1.0
