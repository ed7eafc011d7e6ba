"""What to do when a prompt fits into no replica's KV cache: a bulkhead.

A replica that is out of KV blocks preempts: it throws away what it has computed and computes it again, so
that it serves less the more it is given, and may not get out of that for a thousand requests. When a prompt
fits nowhere, whoever gets it has to let it wait. The least loaded replica would be the next one to fall, and
soon all of them would have. The fullest one has nothing to lose: with all such prompts there, the others go
on at their best, and it catches up as soon as there is room elsewhere.
"""

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view.schema import AVAILABLE, CONTEXT_TOKENS, KV_CAPACITY_TOKENS, PENDING_PREFILL_TOKENS
from fairlead.view.work import uncached

ROOM = -1
"""The prompt fits somewhere."""


@njit()
def kv_in_use(row: npt.NDArray[np.float64]) -> float:
    """The fraction of a replica's KV cache that is in use or spoken for; above 1 some of it waits."""
    return float((row[CONTEXT_TOKENS] + row[PENDING_PREFILL_TOKENS]) / row[KV_CAPACITY_TOKENS])


@njit()
def fullest_of_full(replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]) -> int:
    """The replica with the fullest KV cache if the prompt fits into none of them, else `ROOM`.

    Args:
        replicas: of one view, (R, columns).
        request: its columns.
    """
    fullest, most = ROOM, -np.inf
    for r in range(replicas.shape[0]):
        row = replicas[r]
        if row[AVAILABLE] == 0.0:
            continue
        if row[CONTEXT_TOKENS] + uncached(row, request) <= row[KV_CAPACITY_TOKENS]:
            return ROOM
        if kv_in_use(row) > most:
            fullest, most = r, kv_in_use(row)
    return fullest


@njit()
def by_bulkhead(
    replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
) -> None:
    """As `least_kv`, except that a prompt that fits nowhere goes to the fullest replica."""
    fullest = fullest_of_full(replicas, request)
    for r in range(replicas.shape[0]):
        scores[r] = kv_in_use(replicas[r])
    if fullest != ROOM:
        scores[fullest] = -1.0


@njit()
def _fullest_all(
    replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64], out: npt.NDArray[np.int64]
) -> None:
    for c in range(replicas.shape[0]):
        out[c] = fullest_of_full(replicas[c], request[c])


def contained(
    costs: npt.NDArray[np.float64], replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The costs (K, R) of all choices, with the bulkhead where a prompt fits nowhere.

    There the fullest replica costs what the cheapest did, and all others what the dearest did.

    Args:
        costs: of each choice.
        replicas: of K views, (K, R, columns).
        request: (K, columns).
    """
    fullest = np.empty(len(costs), np.int64)
    _fullest_all(replicas, request, fullest)
    full = fullest != ROOM
    found = costs.copy()
    found[full] = costs[full].max(-1, keepdims=True)
    found[full, fullest[full]] = costs[full].min(-1)
    return found
