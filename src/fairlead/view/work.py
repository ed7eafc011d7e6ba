"""Seconds of work on the back of an envelope: what lies ahead of a request, and what it costs others."""

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view.schema import (
    AVAILABLE,
    DECODE_ITERATION_S,
    EXPECTED_OUTPUT_TOKENS,
    EXPECTED_PREFIX_HIT_TOKENS,
    EXPECTED_REMAINING_TOKENS,
    PENDING_PREFILL_TOKENS,
    PREFILL_TOKENS_PER_S,
    PROMPT_TOKENS,
    SESSION_HOME,
)

SHARED_BATCH = 40.0
"""Decodes that share one iteration's fixed time: a token of decode work costs the iteration time of a batch
of one divided by this."""


@njit()
def uncached(row: npt.NDArray[np.float64], request: npt.NDArray[np.float64]) -> float:
    """Prompt tokens that the replica is expected to have to compute if the request comes: its own too."""
    own = request[PROMPT_TOKENS] - row[EXPECTED_PREFIX_HIT_TOKENS]
    return float(row[PENDING_PREFILL_TOKENS] + own)


@njit()
def ahead_s(row: npt.NDArray[np.float64], request: npt.NDArray[np.float64]) -> float:
    """Pending prefill with the request's own, and expected decode work, of one replica (a `row`)."""
    tokens = uncached(row, request)
    decodes = row[EXPECTED_REMAINING_TOKENS] + request[EXPECTED_OUTPUT_TOKENS]
    return float(tokens / row[PREFILL_TOKENS_PER_S] + decodes * row[DECODE_ITERATION_S] / SHARED_BATCH)


@njit()
def has_home(replicas: npt.NDArray[np.float64]) -> bool:
    """Whether the conversation is at home on a replica that takes requests."""
    for r in range(replicas.shape[0]):
        if replicas[r, SESSION_HOME] != 0.0 and replicas[r, AVAILABLE] != 0.0:
            return True
    return False


@njit()
def moving_s(row: npt.NDArray[np.float64], request: npt.NDArray[np.float64], home: bool) -> float:
    """What others pay for tokens that are not cached there, and for a conversation that leaves its home.

    Tokens to compute delay whoever is there and displace what is cached: once more their prefill time. What a
    home has cached of a conversation is of no use any more when it moves: the prompt's prefill time.
    """
    tokens = request[PROMPT_TOKENS] - row[EXPECTED_PREFIX_HIT_TOKENS]
    if home and row[SESSION_HOME] == 0.0:
        tokens += request[PROMPT_TOKENS]
    return float(tokens / row[PREFILL_TOKENS_PER_S])
