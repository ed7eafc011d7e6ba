"""How fast replicas are, from what passes through a router: what is declared, corrected by what is seen.

For each replica a router adds up how long its iterations took, and how long they should have taken by what is
declared. Their ratio is the replica's pace; that of the fastest one is taken to be 1, since only what tells
replicas apart matters for routing. Declared speeds are divided by it. Where all replicas are as fast as
declared, a pace is noise: a small one is ignored (docs/experiments.md has what that is worth).
"""

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view.schema import DECODE_ITERATION_S, PREFILL_TOKENS_PER_S, SPEED

KEPT = 1.0 - 1.0 / 100.0
"""Of both sums, what is left after one more iteration."""
PER_REQUEST = 0.005
"""By how much an iteration lasts longer for each decoding request: the arithmetic of one more token, beside
reading the weights. For any model bandwidth (bytes/s) by arithmetic (flop/s), A100: 2.0e12 by 3.1e14."""
WEIGHTS_IN_TOKENS = 120_000.0
"""Context tokens whose keys and values take as long to read as the weights, on any hardware: Llama 3 8B has
16 GB of weights and 131 kB of KV cache a token. Of Llama 3 70B (141 GB, 328 kB) it would be 430,000."""
ENOUGH_ITERATIONS = 30.0
"""Of a replica of which less was seen, the rest is taken to be at the pace of all replicas together."""
IGNORED, BELIEVED, MOST = 1.3, 1.6, 10.0
"""Up to the first nothing is corrected, from the second on all of it, and nothing beyond the third."""
FASTEST = 0.01
"""No pace is less: tokens that were held up somewhere come with no time between them."""


@njit(inline=True)
def due_of_iteration(decode_iteration_s: float, decoding: float, context_tokens: float) -> float:
    """How long an iteration of so many decoding requests should take, prompts in it aside, s."""
    return decode_iteration_s * (1.0 + PER_REQUEST * decoding + context_tokens / WEIGHTS_IN_TOKENS)


@njit(inline=True)
def due_growth(decode_iteration_s: float, decoding: float) -> float:
    """How much longer the next iteration should take, s: each request has one more token of context."""
    return decode_iteration_s * decoding / WEIGHTS_IN_TOKENS


@njit(inline=True)
def common_pace(took: float, due: float) -> float:
    """The pace of replicas of which `took` and `due` (s) are the sums; 1 before anything was seen."""
    return max(FASTEST, took / due) if due > 0.0 else 1.0


@njit(inline=True)
def pace(took: float, due: float, decode_iteration_s: float, common: float) -> float:
    """How many times as long as declared a replica takes; `common`: all of them together."""
    unseen = max(0.0, ENOUGH_ITERATIONS * decode_iteration_s - due)
    return max(FASTEST, (took + unseen * common) / (due + unseen))


@njit(inline=True)
def believed(relative: float) -> float:
    """What is corrected of a pace relative to the fastest replica's."""
    share = min(1.0, max(0.0, (relative - IGNORED) / (BELIEVED - IGNORED)))
    return min(MOST, 1.0 + share * (relative - 1.0))


@njit(inline=True)
def slow_down(row: npt.NDArray[np.float64], relative: float) -> None:
    """Correct the declared speed in a replica's row of a view by its pace relative to the fastest one's."""
    slower = believed(relative)
    row[SPEED] /= slower
    row[PREFILL_TOKENS_PER_S] /= slower
    row[DECODE_ITERATION_S] *= slower


@njit()
def correct_speeds(rows: npt.NDArray[np.float64], sums: npt.NDArray[np.float64]) -> None:
    """Correct the declared speeds in a view.

    Args:
        rows: (R, replica columns), of replicas that take requests.
        sums: (R, 2): how long their iterations took, and should have taken as declared, s.
    """
    common = common_pace(sums[:, 0].sum(), sums[:, 1].sum())
    paces = np.empty(rows.shape[0])
    for r in range(rows.shape[0]):
        paces[r] = pace(sums[r, 0], sums[r, 1], rows[r, DECODE_ITERATION_S], common)
    fastest = paces.min()
    for r in range(rows.shape[0]):
        slow_down(rows[r], paces[r] / fastest)
