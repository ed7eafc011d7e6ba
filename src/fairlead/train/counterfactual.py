"""Counterfactuals: what would each choice have cost in this very run?

For each choice the cluster is copied, the request at hand goes there, and the run goes on for a while: the
same arrivals and the same true lengths, routed by a base policy; then everything is let finish. The sum of
what all requests have cost is the choice's price. That is the rollout algorithm (Bertsekas, Tsitsiklis and
Wu, "Rollout algorithms for combinatorial optimization", 1997) with common random numbers: a policy that takes
the choices with the least *expected* price is no worse than the base policy. One price is a sample, and it
knows the future; a student that only sees its view learns the mean.

The base policy of a cluster is whatever does best on what is coming there: a heuristic, or the student itself
where it is clearly better than all of them. So the prices also cover what a lookahead without further
arrivals leaves out: caches that are filled or displaced, storms that begin, memory that runs out.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead import rng
from fairlead.compiled import njit, prange, signed
from fairlead.env.vector import dear_where_away
from fairlead.policy.export import architecture
from fairlead.policy.forward import Actor, best_of, pack
from fairlead.policy.heuristics import HEURISTICS, choose
from fairlead.simulator.block_pool import Pool
from fairlead.simulator.decisions import drain_one, observe_one, route_one
from fairlead.simulator.state import NONE, State
from fairlead.view.features import NUM_FEATURES, features
from fairlead.view.prefixes import PrefixMemory
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS
from fairlead.view.tail import tail_cost

Floats = npt.NDArray[np.float64]
Copies = tuple[npt.NDArray[np.uint8], ...]

BASES = (
    "lor",
    "least_kv",
    "kv_bulkhead",
    "least_prefill",
    "least_work",
    "weighted_lor",
    "prefix_affinity",
    "session_sticky",
    "sticky_least_loaded",
    "sticky_until_saturated",
    "sticky_least_work",
    "lmetric",
)
"""The heuristics that a run may go on with."""
STUDENT = -1
"""In the place of a heuristic's code: the student goes on."""
TRIAL = 512
"""Decisions by which base policies are compared."""
CLEARLY = 0.98
"""The student goes on where its cost in the trial is below this times the best heuristic's: its decisions
take several times as long."""
LOST_S = 100.0
"""What a request that never finished is taken to need: one whose replica died, when the run ended."""

_FIXED = ("timing", "tables", "table_values", "static", "contents", "events")
"""Fields of `State` that no run changes."""
_OF_CACHING = len(Pool._fields) + len(PrefixMemory._fields)
"""The last fields of `State`: pools of blocks, and what routers remember of prefixes."""


@njit()
def _copy(source: Copies, to: Copies, rows: npt.NDArray[np.int64], c: int, caching: bool) -> None:
    """Cluster `c`, byte by byte; `rows[j]` rows of the j-th array belong to each cluster.

    The last arrays are those of prefix caching: large, and only needed where there is some.
    """
    for j in range(len(source) if caching else len(source) - _OF_CACHING):
        for row in range(c * rows[j], (c + 1) * rows[j]):
            ours, theirs = to[j][row], source[j][row]
            for i in range(len(theirs)):
                ours[i] = theirs[i]


@njit()
def _go_on(
    twin: State,
    c: int,
    count: int,
    decisions: int,
    code: int,
    word: int,
    actor: Actor,
    favor: float,
) -> None:
    """Route the next `decisions` requests of cluster `c` by the base policy `code`; let all finish.

    What was lost is routed again, if that takes no more than three times as many decisions beyond that.
    """
    view, request = np.empty((count, NUM_REPLICA_COLUMNS)), np.empty(NUM_REQUEST_COLUMNS)
    seen, scores = np.empty((1, count, NUM_FEATURES), np.float32), np.empty(count)
    words = np.empty(1, np.uint64)
    words[0] = word
    turn = 0
    while turn < decisions or (twin.clusters[c].retry_head != NONE and turn < 4 * decisions):
        if not observe_one(twin, c, view, request):
            break
        if code == STUDENT:
            features(view, request, favor, seen[0])
            action = best_of(actor, seen)
        else:
            action = choose(code, view, request, turn, words, scores)
        route_one(twin, c, count, action)
        turn += 1
    drain_one(twin, c, count)


@njit()
def _cost(twin: State, c: int, requests: int, since: float, weights: Floats) -> float:
    """What the first `requests` requests of cluster `c` cost from `since` on, those that finish after it."""
    cost = 0.0
    for i in range(requests):
        request = twin.requests[c, i]
        if request.finish <= since:
            continue
        finish = since + LOST_S if math.isnan(request.finish) else request.finish
        first = since + LOST_S if math.isnan(request.first_token) else request.first_token
        cost += weights[0] * (first - since) + weights[1] * (finish - since)
        cost += weights[2] * tail_cost(first - request.arrival, twin.clusters[c].tail_begins)
    return cost


@njit(parallel=True)
def _try_all(
    state: State,
    twin: State,
    source: Copies,
    to: Copies,
    rows: npt.NDArray[np.int64],
    here: npt.NDArray[np.bool_],
    choices: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int64],
    words: npt.NDArray[np.uint64],
    weights: Floats,
    favor: Floats,
    actor: Actor,
    decisions: int,
    out: Floats,
) -> None:
    """Write to `out` (K, n) what n ways to go on cost in the clusters that are `here`, from now on.

    In way j the request at hand goes to replica `choices[j]`, or where the base policy wants it (NONE), and
    the base policy `codes[c, j]` routes the next `decisions`. A dead replica costs inf.
    """
    count = len(state.replicas) // len(state.clusters)
    for index in prange(out.shape[0]):
        c = signed(index)
        cluster = state.clusters[c]
        if not here[c] or cluster.at_hand == NONE:
            continue
        for j in range(out.shape[1]):
            choice = choices[j]
            if choice != NONE and not state.replicas[c * count + choice].available:
                out[c, j] = np.inf
                continue
            _copy(source, to, rows, c, state.replicas[c * count].caching)
            until = cluster.next_request + decisions
            if choice != NONE:
                route_one(twin, c, count, choice)
                until += 1
            _go_on(twin, c, count, decisions, codes[c, j], words[c], actor, favor[c])
            out[c, j] = _cost(twin, c, min(until, state.requests.shape[1]), cluster.now, weights[c])


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The same memory as (rows, bytes)."""
    flat = array.view(np.ndarray)
    return flat.reshape(len(flat), math.prod(flat.shape[1:])).view(np.uint8)


def _as_large_as(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Zeros in place of another array's values; memory is taken only for what is written to."""
    return np.zeros(array.shape, array.dtype).view(type(array))


class Twin:
    """A second copy of an environment's clusters, to try things in."""

    def __init__(self, state: State) -> None:
        """Allocates it; what runs do not change is shared."""
        self.of = state
        theirs: dict[str, Any] = state._asdict()
        ours = {name: each if name in _FIXED else _as_large_as(each) for name, each in theirs.items()}
        self.state = State(**ours)
        copied = [name for name in theirs if name not in _FIXED]
        self.to: Copies = tuple(_bytes(ours[name]) for name in copied)
        self.source: Copies = tuple(_bytes(theirs[name]) for name in copied)
        self.rows = np.array([len(each) // len(state.clusters) for each in self.to])
        self.episode = -1
        self.codes = np.zeros(len(state.clusters), np.int64)


class Counterfactual:
    """Prices the decisions at hand of simulated clusters."""

    def __init__(self, decisions: int) -> None:
        """Runs go on for so many `decisions` after the one that is priced."""
        self.decisions = decisions
        self._student: Any = None
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin anew with a seed."""
        self._seed = seed
        self._twins: dict[int, Twin] = {}

    def meet(self, student: Any) -> None:
        """`student` (a `RouterNetwork`) drives from now on."""
        self._student = student

    def _actor(self) -> Actor | None:
        """The student as it is now; None if it has a memory, which compiled code does not run."""
        if self._student is None:
            return None
        parameters = {n: p.detach().cpu().numpy() for n, p in self._student.state_dict().items()}
        turned = {n: p.T if p.ndim == 2 else p for n, p in parameters.items()}
        return pack(architecture(self._student), turned)

    def __call__(self, env: Any, here: npt.NDArray[np.bool_]) -> Floats:
        """Costs (K, R) in the clusters that are `here` (K,); zero elsewhere.

        In the unit of `view.preference`'s objective, each cluster at its own point on the dial. A replica
        that is not available costs a little more than the worst of the others.
        """
        state, (clusters, replicas) = env.clusters.state, (env.num_envs, env.clusters.R)
        twin = self._twins.get(id(env))
        if twin is None or twin.of is not state:
            twin = self._twins[id(env)] = Twin(state)
        actor = self._actor()
        words = rng.stream(self._seed, "train", "counterfactual").integers(1, 2**62, clusters)
        common = (state, twin.state, twin.source, twin.to, twin.rows, here)
        weights = (words.astype(np.uint64), env.weights, env.favor, _NOBODY if actor is None else actor)
        if twin.episode != env.episode:
            twin.episode = env.episode
            codes = np.array([HEURISTICS[name] for name in BASES] + [STUDENT] * (actor is not None))
            costs = np.zeros((clusters, len(codes)))
            wherever = np.full(len(codes), NONE)
            _try_all(*common, wherever, np.tile(codes, (clusters, 1)), *weights, TRIAL, costs)
            costs[:, len(BASES) :] /= CLEARLY
            twin.codes = codes[costs.argmin(1)]
        out = np.zeros((clusters, replicas))
        bases = np.repeat(twin.codes[:, None], replicas, 1)
        _try_all(*common, np.arange(replicas), bases, *weights, self.decisions, out)
        return dear_where_away(out)


_NOBODY = Actor(np.zeros(1, np.float32), np.zeros(1, np.float32), 0, 0, 0, False, 0, 0, 1, -1)
"""For base policies that are all heuristics."""
