"""The slow, obvious twin of the compiled engine: one cluster, one engine iteration at a time.

The scheduler is in `reference_replica`; here are the cluster, what its router sees, and `simulate`.
Tests require the compiled engine to agree with it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator.fleet import Fleet
from fairlead.simulator.reference_replica import (
    TTFT_EDGES_S,
    InFlight,
    Iteration,
    Replica,
    ReplicaSpec,
    Slot,
)
from fairlead.simulator.reference_schedulers import make_replica
from fairlead.view.prefixes import answered, expected_hit, new_memory, remember
from fairlead.view.schema import (
    DECODE_ITERATION_S,
    NUM_REPLICA_COLUMNS,
    NUM_REQUEST_COLUMNS,
    PREFILL_TOKENS_PER_S,
    SPEED,
    View,
)
from fairlead.workload.faults import Faults
from fairlead.workload.requests import Requests

__all__ = [
    "Cluster",
    "InFlight",
    "Iteration",
    "Replica",
    "ReplicaSpec",
    "Result",
    "Slot",
    "from_fleet",
    "simulate",
]

IN_FLIGHT_TIME_CONSTANT_S = 5.0
"""Time constant of `in_flight_ewma`."""
PRIOR_REQUESTS = 8
PRIOR_OUTPUT_TOKENS = 256
"""The expected output length starts as if 8 requests of 256 tokens had finished."""
LEAST_REMAINING_SHARE = 0.3
"""However long a request has run, this share of the expected output is expected to come."""
TAIL_SHARE = 0.02
"""Of the recent TTFTs, the longest make up the tail."""
TAIL_UNKNOWN_S = 1.0
"""Where it is taken to begin before any first token was seen."""
TAIL_MEMORY = 1024
"""At each decision, one part in so many of what was seen is forgotten."""


@dataclass(frozen=True)
class Result:
    """What happened to the N requests of a run."""

    replica: npt.NDArray[np.int64]
    """That served it."""
    scheduled_s: npt.NDArray[np.float64]
    first_token_s: npt.NDArray[np.float64]
    finish_s: npt.NDArray[np.float64]
    preemptions: npt.NDArray[np.int64]
    retries: npt.NDArray[np.int64]
    decisions: npt.NDArray[np.int64]
    """(D,) the request of each decision: each request once, and once more whenever its replica died."""
    cached_tokens: npt.NDArray[np.int64]
    view: View | None
    """What the router saw at the D decisions, if recorded: here K is the decision."""
    iterations: list[Iteration] = field(repr=False)
    """In order of start per replica, replica after replica; empty unless recorded."""


Choose = Callable[[View], int]
"""A router for one cluster: sees a `View` with K = 1 and returns a replica."""


@dataclass
class Scrape:
    """What was read from one replica's metrics endpoint."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    """Since the start."""
    new_preemptions: int = 0
    """Since the scrape before."""
    queried_tokens: int = 0
    hit_tokens: int = 0
    """Since the start."""
    hit_rate: float = 0.0
    """Since the last scrape before which there were other queries."""


class Cluster:
    """The replicas of one cluster, and what its routers know about them."""

    def __init__(
        self,
        replicas: Sequence[ReplicaSpec],
        scrape_interval_s: float,
        max_tokens: int,
        log: list[Iteration] | None,
        routers: int,
    ) -> None:
        """An idle cluster at time 0."""
        self.replicas = [make_replica(r, spec, log, routers) for r, spec in enumerate(replicas)]
        self.scrape_interval_s = scrape_interval_s
        self.max_tokens = max_tokens
        self.scrapes = [Scrape() for _ in replicas]
        self.up = [True for _ in replicas]
        self.last_scrape_s = -math.inf
        self.scraped_s = [0.0 for _ in replicas]
        """When each replica last answered; before that, nothing was all there was to know."""
        self.decided_s = [0.0] * routers
        self.memories = [[new_memory(1, spec.memory_blocks) for spec in replicas] for _ in range(routers)]
        """The prompts that each router remembers having sent to each replica, and their answers."""
        for replica in self.replicas:
            replica.on_token = partial(self.saw_token, replica)
        self.in_flight_ewma = [[0.0 for _ in replicas] for _ in range(routers)]
        self.homes: list[dict[int, int]] = [{} for _ in range(routers)]
        """Where each router sent the last request of each conversation."""

    def advance(self, now_s: float) -> None:
        """Runs all replicas up to `now_s`, stopping at the last scrape on the way."""
        scrape_s = last_multiple(self.scrape_interval_s, now_s)
        if scrape_s > self.last_scrape_s:
            for r, replica in enumerate(self.replicas):
                replica.advance(scrape_s)
                if self.up[r]:
                    self.scrapes[r] = self.scrape(replica, self.scrapes[r])
                    self.scraped_s[r] = scrape_s
            self.last_scrape_s = scrape_s
        for replica in self.replicas:
            replica.advance(now_s)

    def change(self, r: int, pace: float, up: bool) -> list[InFlight]:
        """Replica r, advanced to now, is from now on like this; returns the requests that are lost."""
        self.replicas[r].pace = pace
        dies = self.up[r] and not up
        self.up[r] = up
        if dies:
            self.replicas[r].took_s = [0.0] * len(self.memories)
            self.replicas[r].due_s = [0.0] * len(self.memories)
            for memories in self.memories:
                memories[r] = new_memory(1, self.replicas[r].spec.memory_blocks)
        return self.replicas[r].die() if dies else []

    def scrape(self, replica: Replica, before: Scrape) -> Scrape:
        """Reads what the engine reports."""
        queried = replica.queried_tokens - before.queried_tokens
        hits = replica.hit_tokens - before.hit_tokens
        return Scrape(
            queried_tokens=replica.queried_tokens,
            hit_tokens=replica.hit_tokens,
            hit_rate=hits / queried if queried > 0 else before.hit_rate,
            running=len(replica.running),
            waiting=len(replica.waiting),
            kv_usage=1.0 - replica.free / replica.spec.kv_blocks,
            preemptions=replica.preemptions,
            new_preemptions=replica.preemptions - before.preemptions,
        )

    def expected_output_tokens(self, m: int) -> float:
        """Mean output of router m's finished requests, over all replicas, with a prior."""
        tokens = sum(replica.finished_tokens[m] for replica in self.replicas)
        requests = sum(replica.finished[m] for replica in self.replicas)
        return (PRIOR_REQUESTS * PRIOR_OUTPUT_TOKENS + tokens) / (PRIOR_REQUESTS + requests)

    def observe(self, request: InFlight, now_s: float) -> View:
        """What its router sees when `request` is to be placed; once per decision."""
        m = request.router
        decay = 1.0 - math.exp(-(now_s - self.decided_s[m]) / IN_FLIGHT_TIME_CONSTANT_S)
        self.decided_s[m] = now_s
        average = self.in_flight_ewma[m]
        for r in range(len(self.replicas)):
            average[r] += decay * (len(self.replicas[r].in_flight(m)) - average[r])
        rows = [self.row(r, request, now_s) for r in range(len(self.replicas))]
        for row, slower in zip(rows, self.slower(m), strict=True):
            row[SPEED] /= slower
            row[PREFILL_TOKENS_PER_S] /= slower
            row[DECODE_ITERATION_S] *= slower
        columns = [
            request.estimate,
            self.max_tokens,
            self.expected_output_tokens(m),
            request.session,
            self.ttft_tail_s(m),
        ]
        return View(np.array([rows], np.float64), np.array([columns], np.float64))

    def slower(self, m: int) -> list[float]:
        """By which factor router m takes each replica to be slower than declared, beside the fastest one."""
        up = [replica for replica, up in zip(self.replicas, self.up, strict=True) if up]
        due_s = sum(replica.due_s[m] for replica in up)
        common = sum(replica.took_s[m] for replica in up) / due_s if due_s else 1.0
        paces = []
        for replica in self.replicas:
            # At least 30 iterations: of those that were not seen it is taken to be as fast as all together.
            unseen_s = max(0.0, 30 * replica.spec.decode_iteration_s - replica.due_s[m])
            paces.append((replica.took_s[m] + unseen_s * common) / (replica.due_s[m] + unseen_s))
        fastest = min(paces[replica.index] for replica in up)
        relative = [pace / fastest for pace in paces]
        # Up to 1.3 it may be noise; from 1.6 on it is believed, up to 10.
        return [min(10.0, 1.0 + (x - 1.0) * min(1.0, max(0.0, (x - 1.3) / 0.3))) for x in relative]

    def ttft_tail_s(self, m: int) -> float:
        """Where the tail of the TTFTs that router m saw begins, after forgetting; once per decision."""
        counts = [0.0] * len(TTFT_EDGES_S)
        for replica in self.replicas:
            replica.ttft_counts[m] = [n * (1.0 - 1.0 / TAIL_MEMORY) for n in replica.ttft_counts[m]]
            counts = [n + more for n, more in zip(counts, replica.ttft_counts[m], strict=True)]
        if not any(counts):
            return TAIL_UNKNOWN_S
        wanted = TAIL_SHARE * sum(counts)
        longer = 0.0
        for edge_s, n in zip(reversed(TTFT_EDGES_S), reversed(counts), strict=True):
            if n and longer + n >= wanted:
                # Of this class, the share that is not in the tail; evenly spread over the logarithm.
                return float(edge_s * 1.2 ** (1.0 - (wanted - longer) / n))
            longer += n
        raise AssertionError("the tail is a part of all")

    def expected_hit(self, r: int, request: InFlight) -> int:
        """Prompt tokens that the request's router believes replica r to have cached."""
        size = self.replicas[r].spec.block_size
        keys = np.array(request.contents, np.int32)
        most = (min(request.prompt_tokens, request.estimate) - 1) // size
        memory = self.memories[request.router][r]
        return expected_hit(memory, 0, keys, 0, most, request.session) * size if len(keys) else 0

    def submit(self, r: int, request: InFlight, now_s: float) -> None:
        """The router sends the request to replica r, and remembers its prompt."""
        request.expected_hit = self.expected_hit(r, request)
        if request.contents:
            full = request.prompt_tokens // self.replicas[r].spec.block_size
            keys = np.array(request.contents, np.int32)
            remember(self.memories[request.router][r], 0, keys, 0, full, request.session)
        if request.session:
            self.homes[request.router][request.session] = r
        self.replicas[r].submit(request, now_s)

    def saw_token(self, replica: Replica, request: InFlight, _now_s: float) -> None:
        """A token has been streamed; with the last one the router knows how many blocks the answer fills."""
        if request.contents and request.generated == request.output_tokens:
            size = replica.spec.block_size
            full = request.prompt_tokens // size
            answer = (request.prompt_tokens + request.output_tokens - 1) // size - full
            keys = np.array(request.contents, np.int32)
            memory = self.memories[request.router][replica.index]
            answered(memory, 0, keys, 0, full, request.session, answer)

    def row(self, r: int, request: InFlight, now_s: float) -> list[float]:
        """One replica's columns as the request's router sees them, in the order of `REPLICA_COLUMNS`."""
        m = request.router
        replica, scrape, spec = self.replicas[r], self.scrapes[r], self.replicas[r].spec
        expected = self.expected_output_tokens(m)
        requests = replica.in_flight(m)
        silent = [q for q in requests if q.generated == 0]
        return [
            len(requests),
            len(silent),
            sum(q.estimate - q.expected_hit for q in silent),
            sum(replica.contexts(m)),
            sum(max(expected - q.generated, LEAST_REMAINING_SHARE * expected) for q in requests),
            now_s - min((q.sent_s for q in silent), default=now_s),
            replica.ttft_ewma_s[m],
            replica.itl_ewma_s[m],
            self.in_flight_ewma[m][r],
            self.expected_hit(r, request),
            float(self.homes[m].get(request.session) == r),
            scrape.running,
            scrape.waiting,
            scrape.kv_usage,
            scrape.new_preemptions,
            scrape.hit_rate,
            now_s - self.scraped_s[r],
            spec.speed,
            spec.prefill_tokens_per_s,
            spec.decode_iteration_s,
            spec.kv_blocks * spec.block_size,
            spec.max_seqs,
            float(self.up[r]),
        ]


def last_multiple(interval: float, now: float) -> float:
    """The last j * interval that is not after `now`, for a whole number j."""
    j = math.floor(now / interval)
    # The quotient may have been rounded to either side of a whole number.
    return max(k * interval for k in (j - 1, j, j + 1) if k * interval <= now)


def simulate(
    replicas: Fleet | Sequence[ReplicaSpec],
    requests: Requests,
    choose: Choose | Sequence[int] | npt.NDArray[np.int64],
    *,
    scrape_interval_s: float = 1.0,
    max_tokens: int = 0,
    record_views: bool = False,
    record_iterations: bool = False,
) -> Result:
    """Runs one cluster until the last request has finished.

    Args:
        replicas: The cluster. A `Fleet` brings its own scrape interval and limit on the output.
        requests: N requests in order of arrival.
        choose: Replica of each decision in turn, or a router that is asked at each.
        scrape_interval_s: Time between two reads of the engines' metrics, s.
        max_tokens: The limit on the output that the view shows (0: none).
        record_views: Keep what the router saw at each decision.
        record_iterations: Keep every iteration of every replica.

    Raises:
        FairleadError: if a request does not fit into the KV cache of some replica, or is sent to a
            replica that does not exist or is not available, or a table ends before a batch does.
    """
    if isinstance(replicas, Fleet):
        scrape_interval_s, max_tokens = replicas.scrape_interval_s, replicas.max_tokens
        replicas = from_fleet(replicas)
    _check_fit(replicas, requests)
    log: list[Iteration] | None = [] if record_iterations else None
    everyone = in_flight_requests(requests, replicas[0])
    routers = 1 + max((request.router for request in everyone), default=0)
    cluster = Cluster(replicas, scrape_interval_s, max_tokens, log, routers)
    placed: dict[int, int] = {}
    decisions: list[int] = []
    views: list[View] = []
    for request, now_s in _decisions(cluster, everyone, requests.faults):
        if record_views or callable(choose):
            views.append(cluster.observe(request, now_s))
        replica = int(choose(views[-1]) if callable(choose) else choose[len(decisions)])
        if not 0 <= replica < len(replicas):
            raise FairleadError(
                f"request {request.index} was sent to replica {replica}: use 0 to {len(replicas) - 1}"
            )
        if not cluster.up[replica]:
            raise FairleadError(f"request {request.index} was sent to replica {replica}: it is not available")
        cluster.submit(replica, request, now_s)
        placed[request.index] = replica
        decisions.append(request.index)
    for engine in cluster.replicas:
        engine.advance(math.inf)
    return Result(
        replica=np.array([placed[request.index] for request in everyone], np.int64),
        scheduled_s=np.array([request.scheduled_s for request in everyone]),
        first_token_s=np.array([request.first_token_s for request in everyone]),
        finish_s=np.array([request.finish_s for request in everyone]),
        preemptions=np.array([request.preemptions for request in everyone], np.int64),
        retries=np.array([request.retries for request in everyone], np.int64),
        decisions=np.array(decisions, np.int64),
        cached_tokens=np.array([request.cached for request in everyone], np.int64),
        view=_stack(views, len(replicas)) if record_views else None,
        iterations=sorted(log or [], key=lambda iteration: iteration.replica),
    )


def _decisions(
    cluster: Cluster, everyone: Sequence[InFlight], faults: Faults | None
) -> Iterator[tuple[InFlight, float]]:
    """Each request that is to be placed, and when; the cluster has been advanced to that moment.

    First those that were lost, then those that have arrived, both in order of arrival; but a change that
    happens at the same time comes before both.
    """
    changes: deque[tuple[float, int, float, bool]] = deque()
    if faults is not None:
        faults.check(len(cluster.replicas))
        columns = (faults.time_s, faults.replica, faults.pace, faults.up)
        changes.extend(zip(*(column.tolist() for column in columns), strict=True))
    lost: deque[InFlight] = deque()
    to_come = deque(everyone)
    now_s = 0.0
    while True:
        queue = lost or to_come
        due_s = max(now_s, queue[0].arrival_s) if queue and any(cluster.up) else math.inf
        if changes and changes[0][0] <= due_s:
            now_s, r, pace, up = changes.popleft()
            cluster.advance(now_s)
            lost = deque(sorted([*lost, *cluster.change(r, pace, up)], key=lambda request: request.index))
        elif queue and due_s < math.inf:
            now_s = due_s
            cluster.advance(now_s)
            yield queue.popleft(), now_s
        else:
            return


def in_flight_requests(requests: Requests, spec: ReplicaSpec) -> list[InFlight]:
    """The requests one by one, with what their blocks contain if replicas like `spec` cache prefixes."""
    count = len(requests)
    nobody = np.zeros(count, np.int64)
    columns = zip(
        requests.arrival_s.tolist(),
        requests.prompt_tokens.tolist(),
        requests.output_tokens.tolist(),
        (nobody if requests.router is None else requests.router).tolist(),
        strict=True,
    )
    everyone = [InFlight(i, *row) for i, row in enumerate(columns)]
    estimates = requests.prompt_tokens if requests.estimate is None else requests.estimate
    sessions = nobody if requests.session is None else requests.session
    last_token = spec.scheduler.counts_last_token
    content = (
        requests.content_of_blocks(spec.block_size, last_token=last_token) if spec.prefix_caching else None
    )
    for i, request in enumerate(everyone):
        request.session = int(sessions[i])
        request.estimate = int(estimates[i])
        if content is not None:
            request.contents = tuple(content.ids[content.offsets[i] : content.offsets[i + 1]].tolist())
    return everyone


def _stack(views: list[View], replicas: int) -> View:
    return View(
        np.array([view.replicas[0] for view in views]).reshape(-1, replicas, NUM_REPLICA_COLUMNS),
        np.array([view.request[0] for view in views]).reshape(-1, NUM_REQUEST_COLUMNS),
    )


def from_fleet(fleet: Fleet) -> list[ReplicaSpec]:
    """The replicas of a `Fleet`, one by one."""
    return [
        ReplicaSpec(
            timing=fleet.model(r),
            token_budget=fleet.token_budget,
            max_seqs=fleet.max_num_seqs,
            block_size=fleet.block_size,
            kv_blocks=int(fleet.kv_blocks[r]),
            scheduler=fleet.scheduler,
            prefix_caching=fleet.prefix_caching,
            memory_blocks=int(fleet.memory_blocks[r]),
            speed=float(fleet.static[r, 0]),
            prefill_tokens_per_s=float(fleet.static[r, 1]),
            decode_iteration_s=float(fleet.static[r, 2]),
        )
        for r in range(fleet.num_replicas)
    ]


def _check_fit(replicas: Sequence[ReplicaSpec], requests: Requests) -> None:
    """Refuses a request that could never finish: the last token's own KV entry is never needed."""
    capacity = min(
        spec.scheduler.longest_request(spec.kv_blocks, spec.block_size, spec.token_budget)
        for spec in replicas
    )
    for i, (prompt, output) in enumerate(zip(requests.prompt_tokens, requests.output_tokens, strict=True)):
        if prompt + output - 1 > capacity:
            raise FairleadError(
                f"request {i} ({prompt} prompt, {output} output tokens) needs {prompt + output - 1} tokens "
                f"of KV cache, the smallest replica holds {capacity}: shorten it or raise num_gpu_blocks"
            )
