"""One replica of the plain-Python twin: the scheduler, one engine iteration at a time.

Written to be read and disputed, with no compiled code and no shortcut. The rules are those of vLLM V1
(`vllm/v1/core/sched/scheduler.py`, first-come-first-served policy); `docs/simulator.md` has them in
prose.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.simulator.reference_timing import Scheduled, batch_seconds
from fairlead.simulator.schedulers import VLLM_V1, SchedulerOptions
from fairlead.simulator.tables import TimingModel

TTFT_WEIGHT = 0.2
"""Weight of the newest first token in `ttft_ewma_s`."""
ITL_WEIGHT = 0.05
"""Weight of the newest iteration in `itl_ewma_s`."""
PACE_ITERATIONS = 100
"""So many iterations a router has in mind when it reckons how fast a replica is."""
DUE_PER_REQUEST, DUE_PER_TOKEN = 0.005, 1.0 / 120_000.0
"""A batch is expected to take so much longer for each request in it, and for each token of their contexts."""
TTFT_EDGES_S = [0.005 * 1.2**i for i in range(64)]
"""Where the classes of the histogram of TTFTs begin; a shorter TTFT counts in the first one all the same."""


@dataclass(frozen=True)
class ReplicaSpec:
    """What one replica is: its speed, its limits, and what is declared about it."""

    timing: TimingModel
    token_budget: int
    """Most new tokens in one iteration (`max_num_batched_tokens`)."""
    max_seqs: int
    """Most requests running at once (`max_num_seqs`)."""
    block_size: int
    """Tokens per KV block."""
    kv_blocks: int
    scheduler: SchedulerOptions = VLLM_V1
    prefix_caching: bool = False
    """Whether full blocks stay cached."""
    memory_blocks: int = 0
    """Blocks of prompts that a router remembers having sent here."""
    speed: float = 1.0
    prefill_tokens_per_s: float = 10_000.0
    decode_iteration_s: float = 0.01


@dataclass
class InFlight:
    """One request on one replica."""

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    router: int = 0
    """Which router sent it."""
    generated: int = 0
    """Tokens emitted so far."""
    computed: int = 0
    """Tokens whose keys and values are in the KV cache."""
    chunk: int = 0
    """Tokens processed in the running iteration."""
    decoding: bool = False
    """Its prompt (after a preemption: prompt and emitted tokens) has been computed."""
    scheduled_s: float = math.nan
    """When it was first in a batch."""
    first_token_s: float = math.nan
    finish_s: float = math.nan
    preemptions: int = 0
    contents: tuple[int, ...] = ()
    """What its full blocks contain, with prefix caching."""
    session: int = 0
    expected_hit: int = 0
    """Tokens that its router expected to be cached."""
    cached: int = 0
    """Tokens that were, when it was first admitted."""
    cancelled: bool = False
    """Its client has gone; while it is in a running batch it leaves at that batch's end."""
    sent_s: float = math.nan
    """When it was last sent to a replica."""
    estimate: int = 0
    """What its router takes the prompt for."""
    retries: int = 0
    """How often its replica died."""

    @property
    def known(self) -> int:
        """Tokens that must be computed before the next one can be sampled."""
        return self.prompt_tokens + self.generated


@dataclass(frozen=True)
class Slot:
    """One running request in an iteration of the log, before the iteration's tokens are computed."""

    request: int
    chunk: int
    computed: int
    decoding: bool
    blocks: int
    """KV blocks held, those for the chunk included."""


@dataclass(frozen=True)
class Iteration:
    """One iteration of the log, as it was scheduled."""

    replica: int
    start_s: float
    end_s: float
    slots: tuple[Slot, ...]
    """The running requests in order, those without a chunk included."""
    preempted: tuple[int, ...]
    """Requests preempted at its start, in order."""
    waiting: tuple[int, ...]
    """Requests still waiting after its batch was formed, in order."""
    free_blocks: int


class Replica:
    """One engine: its scheduler, its KV blocks and its clock."""

    def __init__(
        self, index: int, spec: ReplicaSpec, log: list[Iteration] | None = None, routers: int = 1
    ) -> None:
        """An idle, empty replica; iterations are appended to `log` if there is one."""
        self.index = index
        self.spec = spec
        self.log = log
        self.running: list[InFlight] = []
        self.waiting: deque[InFlight] = deque()
        self.free = spec.kv_blocks
        self.boundary_s = 0.0
        """When the next batch can be formed, while no iteration runs."""
        self.end_s: float | None = None
        """When the running iteration ends; None while none runs."""
        self.duration_s = 0.0
        self.pace = 1.0
        """Every iteration that starts while it is p lasts p times as long."""
        self.on_token: Callable[[InFlight, float], None] | None = None
        """Told of every token, with its time, when it has been emitted."""
        self.finished = [0] * routers
        self.finished_tokens = [0] * routers
        """Requests of each router that have left, and the output tokens of those."""
        self.preempted: list[int] = []
        self.preemptions = 0
        self.queried_tokens = 0
        self.hit_tokens = 0
        """Prompt tokens looked up in the prefix cache, and of these found."""
        self.ttft_ewma_s = [0.0] * routers
        self.itl_ewma_s = [0.0] * routers
        """As each router saw it."""
        self.took_s = [0.0] * routers
        """How long the iterations took that each router saw, the last 100 or so."""
        self.due_s = [0.0] * routers
        """How long they should have taken as declared."""
        self.heard: set[int] = set()
        """Routers that saw the last iteration: one that only read prompts is seen by nobody."""
        self.ttft_counts = [[0.0] * len(TTFT_EDGES_S) for _ in range(routers)]
        """Histogram of the TTFTs that each router saw; it forgets a little at each decision."""

    def submit(self, request: InFlight, now_s: float | None = None) -> None:
        """A request is sent here, by default when it arrives: it joins at the next boundary.

        On an idle replica that is now.
        """
        request.sent_s = request.arrival_s if now_s is None else now_s
        self.waiting.append(request)
        if self.end_s is None:
            self.boundary_s = max(self.boundary_s, request.sent_s)

    def die(self) -> list[InFlight]:
        """Everything that is here is lost, the iteration under way included; returns the requests."""
        lost = [*self.running, *self.waiting]
        for request in lost:
            request.generated = request.computed = request.chunk = 0
            request.decoding = False
            request.scheduled_s = request.first_token_s = math.nan
            request.retries += 1
        if self.end_s is not None and self.log is not None:
            # It never ended.
            self.log.remove(next(i for i in reversed(self.log) if i.replica == self.index))
        self.running, self.waiting, self.end_s = [], deque(), None
        self.free = self.spec.kv_blocks
        return lost

    def cancel(self, request: InFlight) -> None:
        """The client of a request that is here has gone: nothing more is emitted for it.

        A batch in progress cannot be changed: a request in it leaves, and frees its blocks, at its end.
        """
        request.cancelled = True
        if request in self.waiting:
            self.waiting.remove(request)
        elif self.end_s is None:
            self.leave(request)
            self.running.remove(request)

    def advance(self, now_s: float) -> None:
        """Runs up to `now_s`: what ends then is committed, but no batch is formed then.

        More requests may still arrive at `now_s`, and a batch takes everything that has arrived.
        """
        while True:
            if self.end_s is None:
                has_work = bool(self.running or self.waiting)
                if not has_work or self.boundary_s >= now_s:
                    return
                self.schedule()
            assert self.end_s is not None
            if self.end_s > now_s:
                return
            self.commit()

    def schedule(self) -> None:
        """Forms a batch at the boundary and starts the iteration."""
        self.preempted = []
        for request in self.running:
            request.chunk = 0
        self.form_batch()
        batch = [request for request in self.running if request.chunk]
        assert batch, "a replica with work always computes something"
        scheduled = [Scheduled(request.chunk, request.computed, request.decoding) for request in batch]
        self.duration_s = self.pace * batch_seconds(self.spec.timing, scheduled)
        for request in batch:
            if math.isnan(request.scheduled_s):
                request.scheduled_s = self.boundary_s
        self.end_s = self.boundary_s + self.duration_s
        if self.log is not None:
            self.log.append(self._as_iteration())

    def form_batch(self) -> None:
        """Gives every request of the next iteration its tokens and blocks."""
        budget = self.continue_running(self.spec.token_budget)
        if not self.preempted:
            self.admit(budget)

    def continue_running(self, budget: int) -> int:
        """Gives running requests their tokens, in order of admission; returns the budget left."""
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            want = min(request.known - request.computed, budget)
            need = self.blocks_wanted(request, want)
            while need > self.free:
                if self.preempt() is request:
                    return budget
            self.grant(request, want, need)
            budget -= want
            position += 1
        return budget

    def admit(self, budget: int) -> None:
        """Admits waiting requests, first come first served, while all three limits allow it."""
        while self.waiting and budget > 0 and len(self.running) < self.spec.max_seqs:
            request = self.waiting[0]
            want = min(request.known, budget)
            need = self.blocks(want)
            if need > self.free:
                return
            self.running.append(self.waiting.popleft())
            self.grant(request, want, need)
            budget -= want

    def blocks_wanted(self, request: InFlight, tokens: int) -> int:
        """KV blocks that a running request takes for its next tokens."""
        return self.blocks(request.computed + tokens) - self.blocks(request.computed)

    def grant(self, request: InFlight, tokens: int, blocks: int) -> None:
        """Takes KV blocks for the tokens that a request computes in this iteration."""
        self.free -= blocks
        request.chunk = tokens

    def preempt(self) -> InFlight:
        """Evicts the request admitted last; it will be recomputed, ahead of all that wait."""
        request = self.running.pop()
        self.leave(request)
        request.computed = 0
        request.chunk = 0
        request.decoding = False
        request.preemptions += 1
        self.waiting.appendleft(request)
        self.preempted.append(request.index)
        self.preemptions += 1
        return request

    def in_flight(self, m: int) -> list[InFlight]:
        """What router m has sent here and not yet seen finished."""
        return [request for request in [*self.running, *self.waiting] if request.router == m]

    def contexts(self, m: int) -> list[int]:
        """Prompt, as router m reckons it, and streamed tokens of each request whose first token it has."""
        return [q.estimate + q.generated for q in self.in_flight(m) if q.generated > 0]

    def commit(self) -> None:
        """Ends the running iteration: tokens are in the cache, and complete requests emit one."""
        assert self.end_s is not None
        now_s = self.end_s
        self.heard = {request.router for request in self.running if request.decoding and request.chunk}
        for m in self.heard:
            self.itl_ewma_s[m] = ewma(self.itl_ewma_s[m], self.duration_s, ITL_WEIGHT)
            contexts = self.contexts(m)
            longer = DUE_PER_REQUEST * len(contexts) + DUE_PER_TOKEN * sum(contexts)
            due_s = self.spec.decode_iteration_s * (1.0 + longer)
            self.took_s[m] = self.took_s[m] * (1.0 - 1.0 / PACE_ITERATIONS) + self.duration_s
            self.due_s[m] = self.due_s[m] * (1.0 - 1.0 / PACE_ITERATIONS) + due_s
        for request in self.running:
            request.computed += request.chunk
            if request.cancelled:
                self.leave(request)
            elif request.computed == request.known:
                self.emit(request, now_s)
        self.running = [r for r in self.running if math.isnan(r.finish_s) and not r.cancelled]
        self.boundary_s = now_s
        self.end_s = None

    def emit(self, request: InFlight, now_s: float) -> None:
        """One token leaves; with its last token the request leaves too and frees its blocks."""
        request.decoding = True
        request.generated += 1
        if request.generated == 1:
            if request.router in self.heard:
                uncached = request.estimate - request.expected_hit
                self.due_s[request.router] += uncached / self.spec.prefill_tokens_per_s
            request.first_token_s = now_s
            ttft_s = now_s - request.sent_s
            before = self.ttft_ewma_s[request.router]
            self.ttft_ewma_s[request.router] = ewma(before, ttft_s, TTFT_WEIGHT)
            self.ttft_counts[request.router][max(0, bisect_right(TTFT_EDGES_S, ttft_s) - 1)] += 1.0
        if request.generated == request.output_tokens:
            request.finish_s = now_s
            self.leave(request)
            self.finished[request.router] += 1
            self.finished_tokens[request.router] += request.output_tokens
        if self.on_token is not None:
            self.on_token(request, now_s)

    def leave(self, request: InFlight) -> None:
        """Frees the blocks of a request that leaves the batch."""
        self.free += self.blocks(request.computed)

    def blocks_held(self, request: InFlight) -> int:
        """KV blocks that a running request has, those for its chunk included."""
        return self.blocks(request.computed + request.chunk)

    def blocks(self, tokens: int) -> int:
        """KV blocks that hold `tokens` tokens."""
        return -(-tokens // self.spec.block_size)

    def _as_iteration(self) -> Iteration:
        assert self.end_s is not None
        slots = tuple(
            Slot(r.index, r.chunk, r.computed, r.decoding, self.blocks_held(r)) for r in self.running
        )
        waiting = tuple(request.index for request in self.waiting)
        preempted = tuple(self.preempted)
        return Iteration(self.index, self.boundary_s, self.end_s, slots, preempted, waiting, self.free)


def ewma(average: float, sample: float, weight: float) -> float:
    """The moving average after one more sample; 0 stands for no sample yet."""
    return sample if average == 0.0 else average + weight * (sample - average)
