"""K clusters of R replicas, advanced together from decision to decision.

The loop is: `observe` (everything up to the next arrival happens, the view is written), `route`
(the waiting request goes to the chosen replica), and so on until `drain`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead import rng
from fairlead.compiled import njit, prange, signed
from fairlead.errors import FairleadError
from fairlead.simulator import engine, ledger
from fairlead.simulator.batch_time import NO_TABLE, pack
from fairlead.simulator.batching import longest_request
from fairlead.simulator.fleet import Fleet
from fairlead.simulator.outcomes import Outcomes
from fairlead.simulator.state import State, clear, new_state
from fairlead.simulator.tables import Limits, OperatorTables, StepTable
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View
from fairlead.workload.requests import Requests

_WORTH_A_THREAD = 16
"""Below this many clusters, a step is over before another thread has woken up."""


class Clusters:
    """K clusters of R replicas; groups of `group` neighbouring clusters share fleet and arrivals."""

    def __init__(
        self,
        fleets: Sequence[Fleet],
        requests: Sequence[Requests],
        *,
        group: int = 1,
        seed: int = 0,
    ) -> None:
        """One fleet and one list of requests for each group; all of the same R and N.

        Raises:
            FairleadError: if sizes differ, or a request can never fit into a KV cache.
        """
        if len(fleets) != len(requests) or not fleets:
            raise FairleadError(
                f"there are {len(fleets)} fleets and {len(requests)} request lists: give one per group"
            )
        self.R = fleets[0].num_replicas
        self.M = fleets[0].routers
        self.N = len(requests[0])
        self.K = len(fleets) * group
        self.group = group
        if any(f.num_replicas != self.R for f in fleets) or any(len(q) != self.N for q in requests):
            raise FairleadError("clusters that run together need the same number of replicas and of requests")
        if any(f.routers != self.M for f in fleets):
            raise FairleadError("clusters that run together need the same number of routers")
        slots = max(f.max_num_seqs for f in fleets)
        block = max(f.block_size for f in fleets)
        # One copy of each table, however many replicas use it.
        tables = {id(table): table for fleet in fleets for table in fleet.tables if table is not None}
        self.state = new_state(self.K, self.R, slots, block, self.N, self.M, pack(list(tables.values())))
        self._tables = list(tables.values())
        for g, fleet in enumerate(fleets):
            self._configure(g, fleet)
        self.load(requests, seed)
        self.view = View(
            np.zeros((self.K, self.R, NUM_REPLICA_COLUMNS)), np.zeros((self.K, NUM_REQUEST_COLUMNS))
        )

    def _configure(self, g: int, fleet: Fleet) -> None:
        state, width = self.state, self.group
        state.clusters["scrape_interval"][g * width : (g + 1) * width] = fleet.scrape_interval_s
        state.clusters["max_tokens"][g * width : (g + 1) * width] = fleet.max_tokens
        rows = slice(g * width * self.R, (g + 1) * width * self.R)
        state.timing[rows] = np.tile(fleet.timing, (width, 1))
        places = [NO_TABLE if t is None else _place(t, self._tables) for t in fleet.tables]
        state.replicas["table"][rows] = np.tile(places, width)
        state.static[rows] = np.tile(fleet.static, (width, 1))
        state.replicas["kv_blocks"][rows] = np.tile(fleet.kv_blocks, width)
        state.replicas["token_budget"][rows] = fleet.token_budget
        state.replicas["max_seqs"][rows] = fleet.max_num_seqs
        state.replicas["block_size"][rows] = fleet.block_size
        state.replicas["scheduler"][rows] = fleet.scheduler.code
        state.replicas["padded"][rows] = fleet.scheduler.padded
        state.replicas["restart_loses_prompt"][rows] = fleet.scheduler.restart_loses_prompt
        watermarks = [fleet.scheduler.watermark_blocks(int(blocks)) for blocks in fleet.kv_blocks]
        state.replicas["watermark"][rows] = np.tile(watermarks, width)

    def load(self, requests: Sequence[Requests], seed: int) -> None:
        """Empty the clusters and give each group a new list of requests."""
        state, width = self.state, self.group
        clear(state)
        self._requests = list(requests)
        longest = np.array([longest_request(replica) for replica in state.replicas])
        capacity = longest.reshape(self.K, self.R).min(axis=1)
        for g, arrivals in enumerate(requests):
            rows = slice(g * width, (g + 1) * width)
            _check_fits(arrivals, int(capacity[g * width]))
            _check_routers(arrivals, self.M)
            self._check_tables(g, arrivals)
            state.requests["arrival"][rows] = arrivals.arrival_s
            state.requests["prompt"][rows] = arrivals.prompt_tokens
            state.requests["output"][rows] = arrivals.output_tokens
            state.requests["router"][rows] = 0 if arrivals.router is None else arrivals.router
        words = [rng.word(seed, "cluster", c) for c in range(self.K)]
        state.clusters["random"] = np.array(words, np.uint64)

    def _check_tables(self, g: int, requests: Requests) -> None:
        """No batch of this run may be larger than what a table covers."""
        longest = int((requests.prompt_tokens + requests.output_tokens).max(initial=1))
        for replica in self.state.replicas[g * self.group * self.R :][: self.R]:
            if replica.table != NO_TABLE:
                tokens = max(int(replica.token_budget), int(replica.max_seqs))
                self._tables[replica.table].check(Limits(tokens, int(replica.max_seqs), longest))

    @property
    def remaining(self) -> int:
        """Requests not yet routed, in each cluster."""
        return self.N - int(self.state.clusters["next_request"][0])

    def observe(self) -> View:
        """Let everything up to the next arrival happen; the view of that moment (reused arrays)."""
        advance = observe_all if self.K >= _WORTH_A_THREAD else observe_few
        advance(self.state, self.view.replicas, self.view.request)
        return self.view

    def route(self, actions: npt.NDArray[np.int64]) -> None:
        """Send each cluster's waiting request to replica `actions[c]` (K,).

        Raises:
            FairleadError: if an action is not a replica.
        """
        if actions.shape != (self.K,) or actions.min() < 0 or actions.max() >= self.R:
            raise FairleadError(f"actions must be ({self.K},) integers in [0, {self.R}), got {actions!r}")
        route_all(self.state, self.R, actions)

    def drain(self) -> None:
        """Run until every routed request has finished."""
        drain_all(self.state, self.R)

    def outcomes(self, c: int) -> Outcomes:
        """What happened to the requests of cluster `c`, once drained."""
        row = self.state.requests[c]
        asked = self._requests[c // self.group]
        return Outcomes(
            arrival_s=row["arrival"].copy(),
            prompt_tokens=asked.prompt_tokens,
            output_tokens=asked.output_tokens,
            replica=row["replica"].astype(np.int64),
            scheduled_s=row["scheduled"].copy(),
            first_token_s=row["first_token"].copy(),
            finish_s=row["finish"].copy(),
            preemptions=row["preemptions"].astype(np.int64),
            num_replicas=self.R,
        )


def _place(table: StepTable | OperatorTables, tables: list[StepTable | OperatorTables]) -> int:
    return next(i for i, other in enumerate(tables) if other is table)


def _check_fits(requests: Requests, capacity: int) -> None:
    """A request whose tokens exceed the smallest KV cache could never finish."""
    tokens = requests.prompt_tokens + requests.output_tokens - 1
    if len(tokens) and tokens.max() > capacity:
        i = int(np.argmax(tokens > capacity))
        raise FairleadError(
            f"request {i} needs {tokens[i]} tokens of KV cache ({requests.prompt_tokens[i]} prompt, "
            f"{requests.output_tokens[i]} output), but a replica holds {capacity}: "
            "shorten the requests, or use a larger device or more memory for the KV cache (scheduler "
            "vllm_v0: or raise max_num_batched_tokens)"
        )


def _check_routers(requests: Requests, routers: int) -> None:
    """Requests that come to a router that is not there could never be placed."""
    if requests.router is not None and len(requests) and requests.router.max() >= routers:
        i = int(np.argmax(requests.router >= routers))
        raise FairleadError(
            f"request {i} comes to router {requests.router[i]}, but there are {routers}: number them from 0"
        )


@njit()
def observe_one(
    state: State, c: int, replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> None:
    """Bring cluster `c` to its next arrival and write its view."""
    cluster = state.clusters[c]
    count = replicas.shape[0]
    cluster.now = state.requests[c, cluster.next_request].arrival
    advance_cluster(state, c, count, cluster.now)
    ledger.write_view(state, c, replicas, request)


@njit()
def last_multiple(interval: float, now: float) -> float:
    """The last whole multiple of `interval` that is not after `now`."""
    j = math.floor(now / interval)
    # The quotient may have been rounded to either side of a whole number.
    if j * interval > now:
        j -= 1
    elif (j + 1) * interval <= now:
        j += 1
    return j * interval


@njit()
def advance_cluster(state: State, c: int, count: int, now: float) -> None:
    """Bring all `count` replicas of cluster `c` to `now`, with the scrapes that fall before it.

    Only the last scrape before `now` is materialised: nobody sees the others.
    """
    cluster = state.clusters[c]
    interval = cluster.scrape_interval
    at = last_multiple(interval, now)
    if at > cluster.scraped_at:
        for k in range(c * count, (c + 1) * count):
            engine.advance(state, k, c, at)
            ledger.scrape(state, k)
        cluster.scraped_at = at
    for k in range(c * count, (c + 1) * count):
        engine.advance(state, k, c, now)


@njit()
def route_one(state: State, c: int, count: int, action: int) -> None:
    """Send cluster `c`'s waiting request to its replica `action`."""
    cluster = state.clusters[c]
    k = c * count + action
    i = cluster.next_request
    state.requests[c, i].replica = action
    engine.enqueue(state, k, c, i)
    ledger.routed(state, k, c, i)
    cluster.next_request += 1
    cluster.decided = cluster.now
    cluster.awaiting += 1 - cluster.first_tokens
    cluster.in_system += 1 - cluster.finishes
    cluster.first_tokens = 0
    cluster.first_token_times = 0.0
    cluster.finishes = 0
    cluster.finish_times = 0.0


@njit(parallel=True)
def observe_all(state: State, replicas: npt.NDArray[Any], request: npt.NDArray[Any]) -> None:
    """`observe_one` for every cluster."""
    for index in prange(state.clusters.shape[0]):
        c = signed(index)
        observe_one(state, c, replicas[c], request[c])


@njit()
def observe_few(state: State, replicas: npt.NDArray[Any], request: npt.NDArray[Any]) -> None:
    """`observe_one` for every cluster, on one thread."""
    for c in range(state.clusters.shape[0]):
        observe_one(state, c, replicas[c], request[c])


@njit()
def route_all(state: State, count: int, actions: npt.NDArray[np.int64]) -> None:
    """`route_one` for every cluster."""
    for c in range(state.clusters.shape[0]):
        route_one(state, c, count, actions[c])


@njit()
def drain_one(state: State, c: int, count: int) -> None:
    """Let every replica of cluster `c` finish what it has."""
    for k in range(c * count, (c + 1) * count):
        engine.advance(state, k, c, np.inf)


@njit(parallel=True)
def drain_all(state: State, count: int) -> None:
    """`drain_one` for every cluster."""
    for index in prange(state.clusters.shape[0]):
        c = signed(index)
        drain_one(state, c, count)


@njit()
def waiting_areas(state: State, now: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> None:
    """Integrals since the last decision of (requests awaiting their first token, requests in system).

    `now` (K,) is the time up to which the clusters were advanced; `out` is (K, 2), in request-seconds.
    Exact: a count that falls by one at time x contributes (now - x) less than had it not fallen.
    """
    for c in range(state.clusters.shape[0]):
        cluster = state.clusters[c]
        span = now[c] - cluster.decided
        out[c, 0] = cluster.awaiting * span - cluster.first_tokens * now[c] + cluster.first_token_times
        out[c, 1] = cluster.in_system * span - cluster.finishes * now[c] + cluster.finish_times
