"""K clusters of R replicas, advanced together from decision to decision.

The loop is: `observe` (everything up to the next decision happens, the view is written), `route`
(the request at hand goes to the chosen replica), and so on until no cluster is `deciding`; then `drain`.

Without faults there is one decision for each arrival. A request whose replica dies is decided anew, so that
clusters in lock-step may differ in their number of decisions: one that has none left idles.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.simulator.batch_time import NO_TABLE, pack
from fairlead.simulator.batching import longest_request
from fairlead.simulator.block_pool import new_pool
from fairlead.simulator.decisions import drain_all, observe_all, observe_few, route_all
from fairlead.simulator.fleet import Fleet
from fairlead.simulator.outcomes import Outcomes
from fairlead.simulator.scheduler_vidur_v1 import AHEAD
from fairlead.simulator.schedulers import VIDUR_V1
from fairlead.simulator.state import NONE, clear, new_state, no_events, no_homes
from fairlead.simulator.tables import TOO_FEW_ROWS, Limits, OperatorTables, StepTable
from fairlead.view.prefixes import MOST
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View
from fairlead.workload.faults import Faults
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
        self._routers = [f.routers for f in fleets]
        # A cluster behind fewer routers leaves the other ledgers empty.
        self.M = max(self._routers)
        self.N = len(requests[0])
        self.K = len(fleets) * group
        self.group = group
        if any(f.num_replicas != self.R for f in fleets) or any(len(q) != self.N for q in requests):
            raise FairleadError("clusters that run together need the same number of replicas and of requests")
        slots = max(f.max_num_seqs for f in fleets)
        block = max(f.block_size for f in fleets)
        # One copy of each table, however many replicas use it.
        tables = {id(table): table for fleet in fleets for table in fleet.tables if table is not None}
        remembered = max(int(f.memory_blocks.max()) for f in fleets)
        self.state = new_state(
            self.K, self.R, slots, block, self.N, self.M, pack(list(tables.values())), remembered
        )
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
        first = np.repeat(np.arange(rows.start, rows.stop, self.R), self.R)
        state.replicas["declared"][rows] = first + np.tile(fleet.declared, width)
        state.replicas["kv_blocks"][rows] = np.tile(fleet.kv_blocks, width)
        state.replicas["token_budget"][rows] = fleet.token_budget
        state.replicas["max_seqs"][rows] = fleet.max_num_seqs
        state.replicas["block_size"][rows] = fleet.block_size
        state.replicas["scheduler"][rows] = fleet.scheduler.code
        state.replicas["padded"][rows] = fleet.scheduler.padded
        state.replicas["restart_loses_prompt"][rows] = fleet.scheduler.restart_loses_prompt
        watermarks = [fleet.scheduler.watermark_blocks(int(blocks)) for blocks in fleet.kv_blocks]
        state.replicas["watermark"][rows] = np.tile(watermarks, width)
        state.replicas["caching"][rows] = fleet.prefix_caching
        memories = slice(rows.start * self.M, rows.stop * self.M)
        shares = np.zeros((self.R, self.M), np.int32)
        shares[:, : fleet.routers] = fleet.memory_blocks[:, None]
        state.sent_ends[memories, MOST] = np.tile(shares.ravel(), width)

    def load(self, requests: Sequence[Requests], seed: int) -> None:
        """Empty the clusters and give each group a new list of requests."""
        self._prepare_caching(requests)
        state, width = self.state, self.group
        clear(state)
        self._requests = list(requests)
        longest = np.array([longest_request(replica) for replica in state.replicas])
        capacity = longest.reshape(self.K, self.R).min(axis=1)
        for g, arrivals in enumerate(requests):
            rows = slice(g * width, (g + 1) * width)
            _check_fits(arrivals, int(capacity[g * width]))
            _check_routers(arrivals, self._routers[g])
            self._check_tables(g, arrivals)
            state.requests["arrival"][rows] = arrivals.arrival_s
            state.requests["prompt"][rows] = arrivals.prompt_tokens
            state.requests["output"][rows] = arrivals.output_tokens
            state.requests["router"][rows] = 0 if arrivals.router is None else arrivals.router
            estimate = arrivals.prompt_tokens if arrivals.estimate is None else arrivals.estimate
            state.requests["estimate"][rows] = estimate
        self._load_sessions(requests)
        self._load_faults([arrivals.faults for arrivals in requests])
        words = [rng.word(seed, "cluster", c) for c in range(self.K)]
        state.clusters["random"] = np.array(words, np.uint64)

    def _prepare_caching(self, requests: Sequence[Requests]) -> None:
        """What the blocks of all requests contain, and block tables that are wide enough for the longest."""
        replicas = self.state.replicas
        contents: list[npt.NDArray[np.int32]] = []
        begin = 0
        for g, arrivals in enumerate(requests):
            rows = slice(g * self.group, (g + 1) * self.group)
            first = replicas[rows.start * self.R]
            if first.caching:
                last_token = bool(first.scheduler == VIDUR_V1)
                content = arrivals.content_of_blocks(int(first.block_size), last_token=last_token)
                self.state.requests["content"][rows] = begin + content.offsets[:-1]
                contents.append(content.ids)
                begin += len(content.ids)
        if not contents:
            return
        blocks = int((replicas["kv_blocks"] * replicas["caching"]).max())
        tokens = max(int((q.prompt_tokens + q.output_tokens - 1).max(initial=1)) for q in requests)
        size = int(replicas["block_size"][replicas["caching"]].min())
        width = -(-tokens // size)
        if (replicas["scheduler"] == VIDUR_V1).any():
            width += 1 + AHEAD
        if self.state.blocks.shape[1] == 0 or self.state.block_tables.shape[2] < width:
            slots, sizes = self.state.slots.shape[1], self.state.phases.shape[1]
            pool = new_pool(len(replicas), blocks, slots, width, sizes)
            self.state = self.state._replace(**pool._asdict())
        self.state = self.state._replace(contents=np.concatenate(contents))

    def _load_sessions(self, requests: Sequence[Requests]) -> None:
        """Conversations as each router knows them, numbered from 1."""
        session, home = self.state.requests["session"], self.state.requests["home"]
        session[:] = home[:] = 0
        for g, arrivals in enumerate(requests):
            if arrivals.session is None:
                continue
            rows = slice(g * self.group, (g + 1) * self.group)
            router = np.zeros(len(arrivals), np.int64) if arrivals.router is None else arrivals.router
            _, number = np.unique(np.stack([arrivals.session, router]), axis=1, return_inverse=True)
            session[rows] = arrivals.session
            home[rows] = np.where(arrivals.session == 0, 0, 1 + number.reshape(-1))
        room = 1 + int(home.max(initial=0))
        if room > self.state.homes.shape[1]:
            self.state = self.state._replace(homes=no_homes(self.K, room))

    def _check_tables(self, g: int, requests: Requests) -> None:
        """No batch of this run may be larger than what a table covers.

        One thing shows only as it runs (`_check_reach`): together the prompts of a batch may have more tokens
        before their chunks than the longest request has, if their beginnings are found in the prefix cache.
        """
        longest = int((requests.prompt_tokens + requests.output_tokens).max(initial=1))
        for replica in self.state.replicas[g * self.group * self.R :][: self.R]:
            if replica.table != NO_TABLE:
                tokens = max(int(replica.token_budget), int(replica.max_seqs))
                self._tables[replica.table].check(Limits(tokens, int(replica.max_seqs), longest))

    def _check_reach(self) -> None:
        """No batch so far was larger than what a table covers."""
        if self._tables and self.state.replicas["beyond_table"].any():
            k = int(np.argmax(self.state.replicas["beyond_table"]))
            raise FairleadError(
                f"the table prefill_s of replica {k % self.R} of cluster {k // self.R} {TOO_FEW_ROWS}"
            )

    def _load_faults(self, faults: Sequence[Faults | None]) -> None:
        """The events of each group; the last one, at infinity, is never reached."""
        room = 1 + max(0 if each is None else len(each) for each in faults)
        if room > self.state.events.shape[1]:
            self.state = self.state._replace(events=no_events(self.K, room))
        events = self.state.events
        events["time"] = np.inf
        for g, each in enumerate(faults):
            if each is None:
                continue
            each.check(self.R)
            rows = slice(g * self.group, (g + 1) * self.group)
            for field, column in zip(
                ("time", "replica", "pace", "up"),
                (each.time_s, each.replica, each.pace, each.up),
                strict=True,
            ):
                events[field][rows, : len(each)] = column

    @property
    def deciding(self) -> npt.NDArray[np.bool_]:
        """(K,) whether a request is at hand, as of the last `observe`."""
        at_hand: npt.NDArray[np.int64] = self.state.clusters["at_hand"]
        return at_hand != NONE

    @property
    def done(self) -> bool:
        """Whether no cluster has a decision left, as of the last `observe`."""
        return not self.deciding.any()

    def observe(self) -> View:
        """Let everything up to the next decision happen; the view of that moment (reused arrays).

        The rows of a cluster that has no decision left stay as they were.

        Raises:
            FairleadError: if an iteration needed a time beyond a replica's table.
        """
        advance = observe_all if self.K >= _WORTH_A_THREAD else observe_few
        advance(self.state, self.view.replicas, self.view.request)
        self._check_reach()
        return self.view

    def route(self, actions: npt.NDArray[np.int64]) -> None:
        """Send each cluster's request at hand to replica `actions[c]` (K,); clusters without one ignore it.

        Raises:
            FairleadError: if an action is not a replica, or one that is not available.
        """
        if actions.shape != (self.K,) or actions.min() < 0 or actions.max() >= self.R:
            raise FairleadError(f"actions must be ({self.K},) integers in [0, {self.R}), got {actions!r}")
        refused = route_all(self.state, self.R, actions)
        if refused != NONE:
            raise FairleadError(
                f"cluster {refused} sent a request to replica {actions[refused]}, which is not available: "
                "choose one whose column `available` is 1"
            )

    def drain(self) -> None:
        """Run until every routed request has finished.

        Raises:
            FairleadError: if a replica dies meanwhile and requests have to be decided anew, or an iteration
                needed a time beyond a replica's table.
        """
        if self.state.events.shape[1] > 1:
            self.observe()
            if not self.done:
                raise FairleadError(
                    f"cluster {int(np.argmax(self.deciding))} has requests to decide before it can be drained"
                )
        drain_all(self.state, self.R)
        self._check_reach()

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
            retries=row["retries"].astype(np.int64),
            cached_tokens=row["cached"].astype(np.int64),
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
