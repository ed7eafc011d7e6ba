"""One replica of the plain-Python twin, driven event by event against a clock.

Nothing here decides what is computed when: that is the twin's `Replica`, with the times that it gives to
its iterations. A clock that is late delivers tokens late; the engine's own times stay exact, and so do
the times of later tokens.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.emulate.clock import Clock, Timer
from fairlead.emulate.tally import Tally
from fairlead.simulator.reference_replica import InFlight, ReplicaSpec
from fairlead.simulator.reference_schedulers import make_replica


class Listener(Protocol):
    """Whoever waits for the tokens of a request."""

    def tokens(self, count: int, done: bool) -> None:
        """So many tokens more have been emitted; with `done`, the last one among them."""
        ...


@dataclass(eq=False)
class Job(InFlight):
    """A request with somebody who waits for it."""

    listener: Listener | None = None
    limited: bool = False
    """It ends because of its limit on the output, not by itself."""
    last_token_s: float = math.nan
    undelivered: int = field(default=0, repr=False)


class Engine:
    """A replica that lives in the time of a clock."""

    def __init__(self, index: int, spec: ReplicaSpec, clock: Clock) -> None:
        """Idle and empty."""
        self._start(index, spec, pace=1.0)
        self._clock = clock
        self._timer: Timer | None = None
        self._due_s = math.inf
        self._submitted = 0

    def _start(self, index: int, spec: ReplicaSpec, pace: float) -> None:
        self._replica = make_replica(index, spec, None, routers=1)
        self._replica.pace = pace
        self._replica.on_token = self._emitted
        self.tally = Tally()
        """What it has counted."""
        self._undelivered: list[Job] = []

    @property
    def index(self) -> int:
        """Its number in the cluster."""
        return self._replica.index

    @property
    def spec(self) -> ReplicaSpec:
        """What the replica is."""
        return self._replica.spec

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._replica.running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._replica.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that are taken."""
        return 1.0 - self._replica.free / self._replica.spec.kv_blocks

    @property
    def preemptions(self) -> int:
        """Since the start."""
        return self._replica.preemptions

    @property
    def queried_tokens(self) -> int:
        """Tokens looked up in the prefix cache."""
        return self._replica.queried_tokens

    @property
    def hit_tokens(self) -> int:
        """Tokens found in the prefix cache."""
        return self._replica.hit_tokens

    @property
    def pace(self) -> float:
        """Every iteration takes this many times as long as the model says."""
        return self._replica.pace

    @pace.setter
    def pace(self, factor: float) -> None:
        self.catch_up()
        self._replica.pace = factor

    def submit(
        self,
        prompt_tokens: int,
        output_tokens: int,
        limited: bool,
        listener: Listener,
        contents: tuple[int, ...] = (),
    ) -> Job:
        """A request arrives now; its tokens go to `listener`. It must fit into the KV cache.

        Args:
            prompt_tokens: at least 1.
            output_tokens: how many it will emit, at least 1.
            limited: whether it ends there because of its limit, not by itself.
            listener: told of each token when it has been emitted.
            contents: with prefix caching, an id for each full block of prompt and output.
        """
        now_s = self.catch_up()
        job = Job(self._submitted, now_s, prompt_tokens, output_tokens, contents=contents, listener=listener)
        job.limited = limited
        self._submitted += 1
        self._replica.submit(job)
        self._arm()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more; nothing happens if it has finished."""
        self.catch_up()
        job.listener = None
        if job.cancelled or not math.isnan(job.finish_s):
            return
        self.tally.finished["abort"] += 1
        self._replica.cancel(job)
        self._arm()

    def reset(self) -> None:
        """The process dies: all requests and counts are lost; whoever waits hears nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = math.inf
        for job in [*self._replica.running, *self._replica.waiting]:
            assert isinstance(job, Job)
            job.listener = None
            job.cancelled = True
        self._start(self.index, self.spec, self._replica.pace)

    def catch_up(self) -> float:
        """Runs the engine up to now and delivers what it emitted; returns the time, s."""
        now_s = self._clock.now()
        self._advance(now_s)
        return now_s

    def _advance(self, now_s: float) -> None:
        self._replica.advance(now_s)
        jobs, self._undelivered = self._undelivered, []
        for job in jobs:
            count, job.undelivered = job.undelivered, 0
            if job.listener is not None:
                job.listener.tokens(count, not math.isnan(job.finish_s))

    def _emitted(self, request: InFlight, now_s: float) -> None:
        """The replica has emitted a token."""
        assert isinstance(request, Job)
        self.tally.token(request, now_s)
        request.last_token_s = now_s
        if not request.undelivered:
            self._undelivered.append(request)
        request.undelivered += 1

    def _tick(self) -> None:
        """The time of the next event has come."""
        due_s, self._due_s = self._due_s, math.inf
        now_s = self._clock.now()
        if now_s >= due_s:  # else the timer was early
            # A batch is formed only after its boundary, when all that arrive at that instant are there.
            self._advance(max(now_s, math.nextafter(due_s, math.inf)))
        self._arm()

    def _arm(self) -> None:
        """Sets the timer to the next event."""
        replica = self._replica
        if replica.end_s is not None:
            due_s = replica.end_s
        elif replica.running or replica.waiting:
            due_s = replica.boundary_s
        else:
            due_s = math.inf
        if due_s == self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = None if due_s == math.inf else self._clock.call_at(due_s, self._tick)
