"""Rules that weigh a cached prefix against load, as public gateways do; compiled.

They read `expected_prefix_hit_tokens`, the router's own belief, and write a score per replica: least wins,
infinity is no choice at all.
"""

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view import work
from fairlead.view.prefixes import mixed
from fairlead.view.schema import (
    AVAILABLE,
    EXPECTED_PREFIX_HIT_TOKENS,
    IN_FLIGHT,
    PENDING_PREFILL_TOKENS,
    PREFILL_TOKENS_PER_S,
    PROMPT_TOKENS,
    SESSION,
    SESSION_HOME,
)

IMBALANCE_REQUESTS = 64.0
IMBALANCE_RATIO = 1.5
"""`prefix_then_load` goes by load alone when the most loaded replica has this many requests more than the
least loaded one, and this many times as many (SGLang's cache-aware router and its successor smg: defaults of
--balance-abs-threshold and --balance-rel-threshold)."""
LEAST_MATCH = 0.3
"""Otherwise it goes by the prefix if more than this share of the prompt should hit (--cache-threshold)."""

STICKY_MATCH = 0.8
"""`sticky_until_saturated` keeps to replicas where this share of the prompt is expected to hit (llm-d router,
prefix-cache-affinity-filter: affinityThreshold)."""
SATURATED_S = 5.0
"""It lets go of them when the prompts pending there take this much longer than elsewhere (maxTTFTPenaltyMs:
5,000 until June 2026, 18,000 since, for a coarser estimate)."""

TIE = 1.0 / 65536.0
"""An outstanding request counts for less than one token, so that requests only break ties of tokens."""


@njit()
def by_prefix_then_load(
    replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
) -> None:
    """The longest expected hit; the least loaded if loads differ too much or hardly anything would hit."""
    least, most, hit = np.inf, 0.0, 0.0
    for r in range(replicas.shape[0]):
        if replicas[r, AVAILABLE] != 0.0:
            least = min(least, replicas[r, IN_FLIGHT])
            most = max(most, replicas[r, IN_FLIGHT])
            hit = max(hit, replicas[r, EXPECTED_PREFIX_HIT_TOKENS])
    balanced = most - least <= IMBALANCE_REQUESTS or most <= IMBALANCE_RATIO * least
    by_prefix = balanced and hit > LEAST_MATCH * request[PROMPT_TOKENS]
    for r in range(replicas.shape[0]):
        scores[r] = replicas[r, IN_FLIGHT]
        if by_prefix:
            scores[r] = TIE * scores[r] - replicas[r, EXPECTED_PREFIX_HIT_TOKENS]


@njit()
def by_session(
    replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
) -> None:
    """The same replica for all turns of a conversation; least loaded for a request without one.

    Rendezvous hashing (Thaler and Ravishankar, IEEE/ACM Trans. Networking 6(1), 1998): when a replica goes,
    only its own conversations move.
    """
    session = np.uint64(np.int64(request[SESSION]))
    for r in range(replicas.shape[0]):
        if request[SESSION] == 0.0:
            scores[r] = replicas[r, IN_FLIGHT]
        else:
            word = mixed(session ^ mixed(np.uint64(r + 1)))
            scores[r] = np.float64(word >> np.uint64(11))


@njit()
def by_home(replicas: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> None:
    """Where the conversation is at home; the least loaded for its first turn, or if its home is gone.

    As `manual` with `--assignment-mode min_load` of sglang-router and smg, and `sticky_least_loaded` of
    vllm-router. A request without a conversation goes to the least loaded, too.
    """
    for r in range(replicas.shape[0]):
        scores[r] = replicas[r, IN_FLIGHT] if replicas[r, SESSION_HOME] == 0.0 else -1.0


@njit()
def by_stickiness(
    replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
) -> None:
    """Fewest uncached tokens among the replicas that hold the prefix, unless all these are saturated."""
    sticky, any_replica = np.inf, np.inf
    for r in range(replicas.shape[0]):
        if replicas[r, AVAILABLE] == 0.0:
            continue
        wait = replicas[r, PENDING_PREFILL_TOKENS] / replicas[r, PREFILL_TOKENS_PER_S]
        any_replica = min(any_replica, wait)
        if replicas[r, EXPECTED_PREFIX_HIT_TOKENS] >= STICKY_MATCH * request[PROMPT_TOKENS]:
            sticky = min(sticky, wait)
    stick = sticky <= any_replica + SATURATED_S
    for r in range(replicas.shape[0]):
        scores[r] = work.uncached(replicas[r], request) + TIE * replicas[r, IN_FLIGHT]
        if stick and replicas[r, EXPECTED_PREFIX_HIT_TOKENS] < STICKY_MATCH * request[PROMPT_TOKENS]:
            scores[r] = np.inf
