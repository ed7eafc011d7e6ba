"""The routers that people use today, and stronger simple ones: the bar for a learned policy.

Each is a score per replica (the least wins, ties are broken at random), except `random`,
`round_robin` and `p2c`; those that weigh prefixes against load are in `affinity`, the one for full KV caches
in `bulkhead`. None chooses a replica that is not available. They are compiled, so that a tournament runs at
the simulator's own speed.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fairlead import rng
from fairlead.compiled import njit
from fairlead.errors import FairleadError
from fairlead.policy import affinity, bulkhead
from fairlead.view import work
from fairlead.view.preference import Weights
from fairlead.view.privilege import NOTHING
from fairlead.view.schema import (
    AVAILABLE,
    EXPECTED_PREFIX_HIT_TOKENS,
    IN_FLIGHT,
    PENDING_PREFILL_TOKENS,
    SPEED,
    View,
)

RANDOM, ROUND_ROBIN, LOR, P2C, LEAST_KV, LEAST_PREFILL, LEAST_WORK, WEIGHTED_LOR, LOOKAHEAD = range(9)
PREFIX_AFFINITY, PREFIX_THEN_LOAD, SESSION_STICKY, STICKY_UNTIL_SATURATED, LMETRIC = range(9, 14)
STICKY_LEAST_LOADED, KV_BULKHEAD, STICKY_LEAST_WORK = 14, 15, 16

HEURISTICS: Mapping[str, int] = {
    "random": RANDOM,
    "round_robin": ROUND_ROBIN,
    "lor": LOR,
    "p2c": P2C,
    "least_kv": LEAST_KV,
    "kv_bulkhead": KV_BULKHEAD,
    "least_prefill": LEAST_PREFILL,
    "least_work": LEAST_WORK,
    "weighted_lor": WEIGHTED_LOR,
    "prefix_affinity": PREFIX_AFFINITY,
    "prefix_then_load": PREFIX_THEN_LOAD,
    "session_sticky": SESSION_STICKY,
    "sticky_least_loaded": STICKY_LEAST_LOADED,
    "sticky_until_saturated": STICKY_UNTIL_SATURATED,
    "sticky_least_work": STICKY_LEAST_WORK,
    "lmetric": LMETRIC,
}
"""Name -> code of the heuristics that read the view alone."""

COUNTING = (RANDOM, ROUND_ROBIN, LOR, P2C, LEAST_PREFILL, SESSION_STICKY, STICKY_LEAST_LOADED)
"""Those that read nothing but counts of requests and their prompt tokens."""

DESCRIPTIONS: Mapping[str, str] = {
    "random": "a replica at random",
    "round_robin": "one after the other",
    "lor": "least outstanding requests (running + waiting)",
    "p2c": "the less loaded of two random replicas, by outstanding requests",
    "least_kv": "the smallest fraction of the KV cache in use or spoken for",
    "kv_bulkhead": "the same, but a prompt that fits nowhere goes where most is waiting already",
    "least_prefill": "fewest pending prompt tokens, ties by outstanding requests",
    "least_work": "least pending prefill time + expected remaining decode time",
    "weighted_lor": "outstanding requests (with the new one) divided by the declared speed",
    "prefix_affinity": "the longest prefix expected to be cached, ties by outstanding requests",
    "prefix_then_load": "the longest expected prefix while loads are balanced, else least outstanding",
    "session_sticky": "all turns of a conversation to one replica, by hashing; others: least outstanding",
    "sticky_least_loaded": "a conversation's first turn: least outstanding; later ones to the same replica",
    "sticky_until_saturated": "where the prefix is cached until prompts pile up there, else fewest uncached",
    "sticky_least_work": "least_work, and a price on uncached tokens and on leaving a conversation's home",
    "lmetric": "uncached prompt tokens, pending and own, times outstanding requests with the new one",
    "lookahead": "simulate each choice with expected output lengths, take the least added cost",
}


@njit()
def next_random(state: npt.NDArray[np.uint64]) -> np.uint64:
    """Next word of a xorshift64* generator (Vigna, ACM TOMS 42(4), 2016); `state` is (1,), non-zero."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(2685821657736338717)


@njit()
def random_below(state: npt.NDArray[np.uint64], n: int) -> int:
    """A uniform integer in [0, n)."""
    # Signed at once: Numba turns a mixture of signed and unsigned integers into a float.
    return np.int64((next_random(state) >> np.uint64(33)) % np.uint64(n))  # type: ignore[return-value]


@njit()
def score(code: int, row: npt.NDArray[np.float64], request: npt.NDArray[np.float64]) -> float:
    """The score of one replica (`row` of the view) for one request: least wins."""
    if code == LOR:
        return row[IN_FLIGHT]
    if code == LEAST_KV:
        return bulkhead.kv_in_use(row)
    if code == LEAST_PREFILL:
        # Outstanding requests count for less than one token, so that they only break ties.
        return row[PENDING_PREFILL_TOKENS] + affinity.TIE * row[IN_FLIGHT]
    if code == PREFIX_AFFINITY:
        return affinity.TIE * row[IN_FLIGHT] - row[EXPECTED_PREFIX_HIT_TOKENS]
    if code == LMETRIC:
        # Zhang et al., "LMetric" (arXiv 2603.15202): new prefill tokens x batch size.
        return work.uncached(row, request) * (row[IN_FLIGHT] + 1.0)
    if code == LEAST_WORK:
        return work.ahead_s(row, request)
    return (row[IN_FLIGHT] + 1.0) / row[SPEED]


@njit()
def least(scores: npt.NDArray[np.float64], state: npt.NDArray[np.uint64]) -> int:
    """Index of the least score; ties are broken at random. An infinite one is that of no choice at all."""
    best = 0
    ties = 1
    for r in range(1, scores.shape[0]):
        if scores[r] < scores[best]:
            best = r
            ties = 1
        elif scores[r] == scores[best]:
            ties += 1
            if random_below(state, ties) == 0:
                best = r
    return best


@njit()
def _available(replicas: npt.NDArray[np.float64], n: int) -> int:
    """Index of the n-th available replica, counted from 0."""
    for r in range(replicas.shape[0]):
        if replicas[r, AVAILABLE] != 0.0:
            if n == 0:
                return r
            n -= 1
    return 0


@njit()
def choose(
    code: int,
    replicas: npt.NDArray[np.float64],
    request: npt.NDArray[np.float64],
    turn: int,
    state: npt.NDArray[np.uint64],
    scores: npt.NDArray[np.float64],
) -> int:
    """The heuristic's choice for one view, among the available replicas, of which there is at least one.

    `turn` counts the router's decisions, `scores` (R,) is scratch space.
    """
    count = replicas.shape[0]
    if code == ROUND_ROBIN:
        for skip in range(count):
            if replicas[(turn + skip) % count, AVAILABLE] != 0.0:
                return (turn + skip) % count
    for r in range(replicas.shape[0]):
        count -= replicas[r, AVAILABLE] == 0.0
    if code == RANDOM:
        return _available(replicas, random_below(state, count))
    if code == P2C:
        if count == 1:
            return _available(replicas, 0)
        a = random_below(state, count)
        b = random_below(state, count - 1)
        if b >= a:
            b += 1
        a, b = _available(replicas, a), _available(replicas, b)
        return a if replicas[a, IN_FLIGHT] <= replicas[b, IN_FLIGHT] else b
    if code == PREFIX_THEN_LOAD:
        affinity.by_prefix_then_load(replicas, request, scores)
    elif code == SESSION_STICKY:
        affinity.by_session(replicas, request, scores)
    elif code == STICKY_LEAST_LOADED:
        affinity.by_home(replicas, scores)
    elif code == STICKY_UNTIL_SATURATED:
        affinity.by_stickiness(replicas, request, scores)
    elif code == STICKY_LEAST_WORK:
        home = work.has_home(replicas)
        for r in range(replicas.shape[0]):
            scores[r] = work.ahead_s(replicas[r], request) + work.moving_s(replicas[r], request, home)
    elif code == KV_BULKHEAD:
        bulkhead.by_bulkhead(replicas, request, scores)
    else:
        for r in range(replicas.shape[0]):
            scores[r] = score(code, replicas[r], request)
    for r in range(replicas.shape[0]):
        if replicas[r, AVAILABLE] == 0.0:
            scores[r] = np.inf
    return least(scores, state)


@njit()
def _choose_all(
    code: int,
    replicas: npt.NDArray[np.float64],
    request: npt.NDArray[np.float64],
    turn: int,
    states: npt.NDArray[np.uint64],
    out: npt.NDArray[np.int64],
) -> None:
    scores = np.empty(replicas.shape[1])
    for c in range(replicas.shape[0]):
        out[c] = choose(code, replicas[c], request[c], turn, states[c], scores)


def random_states(seed: int, clusters: int) -> npt.NDArray[np.uint64]:
    """States (K, 1) of the compiled generators, one stream per cluster."""
    return np.array([[rng.word(seed, "router", c)] for c in range(clusters)], np.uint64)


class Heuristic:
    """A named heuristic as a `Router`."""

    weights = Weights(0.0, 0.0, 0.0)
    """Only `Lookahead` weighs."""
    knows = NOTHING

    def __init__(self, name: str) -> None:
        """Looks the heuristic up.

        Raises:
            FairleadError: for an unknown name.
        """
        if name not in HEURISTICS:
            raise FairleadError(f"unknown router {name!r}: known are {', '.join(DESCRIPTIONS)}")
        self.name = name
        self.code = HEURISTICS[name]
        self.reset(1, 1, 0)

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Start the random streams and the turn anew."""
        self.states = random_states(seed, clusters)
        self._turn = 0

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """A replica for each cluster's request, (K,)."""
        out = np.empty(len(view.request), np.int64)
        _choose_all(self.code, view.replicas, view.request, self._turn, self.states, out)
        self._turn += 1
        return out


class Lookahead:
    """Simulates each choice with expected output lengths and takes the least added cost.

    The costs come from a forecast that whoever runs the router supplies (`simulator.forecast`): they
    need more than the view's columns, namely every request in flight. It uses only what a router may
    know, at a cost that grows with the number of requests in flight: it is the teacher and the bar.
    """

    name = "lookahead"
    code = LOOKAHEAD

    def __init__(self, weights: Weights, knows: int = NOTHING) -> None:
        """Routes for the objective with these weights.

        `knows` adds up what the forecast is told that no router can know (`view.privilege`).
        """
        self.knows = knows
        self.weights = weights
