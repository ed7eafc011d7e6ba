"""The gateway's view is the simulator's: the same requests through both, compared column by column.

Emulated servers behind a gateway, on real sockets, in a time that stands still: it goes on to the next event
only when everything that the last one caused has arrived. So the network takes no time, and the views can be
equal, not only similar. Scrapes happen at the times at which the simulator has them.
"""

import asyncio
import heapq
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fairlead.emulate.cluster import Server
from fairlead.emulate.endpoint import Endpoint
from fairlead.emulate.engine import Engine
from fairlead.serve.frontend import ClientConnection
from fairlead.serve.gateway import Gateway
from fairlead.serve.monitor import Monitor
from fairlead.serve.prefixes import CHUNK_BYTES
from fairlead.serve.settings import parse_settings
from fairlead.simulator.reference import ReplicaSpec, simulate
from fairlead.simulator.timing import Coefficients
from fairlead.view import schema
from fairlead.view.schema import REPLICA_COLUMNS, REQUEST_COLUMNS, View
from fairlead.workload.content import Content, full_blocks
from fairlead.workload.requests import Requests

TIMING = Coefficients(1e-3, 8e-3, 8e-5, 0.0, 1e-5, 8e-8, 4e-9)
SPECS = [
    ReplicaSpec(
        timing,
        token_budget=512,
        max_seqs=8,
        block_size=16,
        kv_blocks=400,
        memory_blocks=400,
        speed=speed,
        prefill_tokens_per_s=9000.0 * speed,
        decode_iteration_s=0.01 / speed,
    )
    for timing, speed in ((TIMING, 1.0), (Coefficients(*(2.0 * np.array(TIMING)).tolist()), 0.5))
]
DECLARED_SPEEDS = ("speed", "prefill_tokens_per_s", "decode_iteration_s")
MAX_TOKENS = 300
BYTES_PER_ID = 6
"""Of a prompt of token ids as JSON: five digits and a comma."""

EXACT = 0.0
ROUNDING = 1e-9
"""Sums in another order, and times as differences of others."""
TOLERANCE = {
    # Counts of requests and tokens.
    "in_flight": EXACT,
    "awaiting_first_token": EXACT,
    "pending_prefill_tokens": EXACT,
    "context_tokens": EXACT,
    "expected_prefix_hit_tokens": EXACT,
    "session_home": EXACT,
    "scraped_running": EXACT,
    "scraped_waiting": EXACT,
    "scraped_preemptions": EXACT,
    # Printed and read again without loss.
    "scraped_kv_usage": EXACT,
    # A quotient of differences of counts.
    "scraped_prefix_hit_rate": ROUNDING,
    # Sums over requests, moving averages, times since.
    "expected_remaining_tokens": ROUNDING,
    "oldest_wait_s": ROUNDING,
    "ttft_ewma_s": ROUNDING,
    "itl_ewma_s": ROUNDING,
    "in_flight_ewma": ROUNDING,
    "scrape_age_s": ROUNDING,
    # Declared, and corrected by sums of times.
    "speed": ROUNDING,
    "prefill_tokens_per_s": ROUNDING,
    "decode_iteration_s": ROUNDING,
    # Declared, or read from the servers once.
    "kv_capacity_tokens": EXACT,
    "max_num_seqs": EXACT,
    "available": EXACT,
    # Of the request.
    "prompt_tokens": EXACT,
    "max_tokens": EXACT,
    "expected_output_tokens": ROUNDING,
    "ttft_tail_s": ROUNDING,
}
"""The largest difference, relative to the larger value; `session` is compared as what it is, a name."""


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class StandingClock:
    """It goes on when it is told to, from event to event."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self._now

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (when_s, next(self._count), timer))
        return timer

    def step(self, end_s: float) -> bool:
        """Goes to the next event, or to `end_s` if that comes before; whether there was an event."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers or self._timers[0][0] > end_s:
            self._now = max(self._now, end_s) if end_s < math.inf else self._now
            return False
        when_s, _, timer = heapq.heappop(self._timers)
        self._now = max(self._now, when_s)
        assert timer.callback is not None
        timer.callback()
        return True


@dataclass
class Run:
    """What the gateway saw and chose."""

    view: View
    choices: list[int]
    gateway: Gateway
    answers: list[bytes]


class Stage:
    """A gateway, emulated servers, and requests that come at their times."""

    def __init__(self, specs: list[ReplicaSpec], router: str) -> None:
        self.clock = StandingClock()
        self.servers = [
            Server(Endpoint(Engine(r, spec, self.clock), "m", lengths=None), "127.0.0.1", 0)  # type: ignore[arg-type]
            for r, spec in enumerate(specs)
        ]
        self.specs = specs
        self.router = router
        self.sent = self.streamed = 0

    async def play(self, requests: Requests, bodies: list[dict[str, Any]], path: str) -> Run:
        for server in self.servers:
            await server.start()
        backends = [
            {
                "url": f"http://127.0.0.1:{server.port}",
                "name": f"r{r}",
                "speed": spec.speed,
                "prefill_tokens_per_s": spec.prefill_tokens_per_s,
                "decode_iteration_s": spec.decode_iteration_s,
                "max_num_seqs": spec.max_seqs,
            }
            for r, (server, spec) in enumerate(zip(self.servers, self.specs, strict=True))
        ]
        # A busy machine must not make the policy late: that is the one time that passes here.
        policy = {"router": self.router, "deadline": 60.0}
        logs = {"requests": False}
        gateway = Gateway(parse_settings({"backends": backends, "policy": policy, "logs": logs}, "the test"))
        views, choices = self._record(gateway)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: ClientConnection(gateway), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        monitor = Monitor(gateway)
        answers: list[asyncio.Task[bytes]] = []
        scrape_s = 0.0
        try:
            for arrival_s, body in zip(requests.arrival_s.tolist(), bodies, strict=True):
                while scrape_s <= arrival_s:
                    await self._until(gateway, scrape_s)
                    for backend in gateway.backends:
                        await monitor.scrape(backend)
                    scrape_s += 1.0
                await self._until(gateway, arrival_s)
                answers.append(asyncio.create_task(ask(port, path, body)))
                self.sent += 1
                await self._settled(gateway)
            await self._until(gateway, math.inf)
        finally:
            listener.close()
            for backend in gateway.backends:
                backend.pool.close()
            for server in self.servers:
                server.stop()
            heard = await asyncio.gather(*answers)
            for connection in list(gateway.connections):
                connection.abort()
        return Run(
            View(
                np.array([view.replicas[0] for view in views]), np.array([view.request[0] for view in views])
            ),
            choices,
            gateway,
            heard,
        )

    def _record(self, gateway: Gateway) -> tuple[list[View], list[int]]:
        views: list[View] = []
        choices: list[int] = []
        choose, streamed = gateway.decider.choose, gateway.ledger.streamed

        def recorded(view, now):
            choice = choose(view, now)
            views.append(View(view.replicas.copy(), view.request.copy()))
            choices.append(choice.row)
            return choice

        def counted(entry, tokens, now):
            self.streamed += tokens
            streamed(entry, tokens, now)

        gateway.decider.choose = recorded  # type: ignore[method-assign]
        gateway.ledger.streamed = counted  # type: ignore[method-assign]
        return views, choices

    async def _until(self, gateway: Gateway, end_s: float) -> None:
        while self.clock.step(end_s):
            await self._settled(gateway)

    async def _settled(self, gateway: Gateway) -> None:
        """Everything that was said has been heard."""
        engines = [server.endpoint.engine for server in self.servers]
        for turn in range(20_000):
            finished = sum(sum(engine.tally.finished.values()) for engine in engines)
            if (
                sum(engine.running + engine.waiting for engine in engines) + finished == self.sent
                and sum(engine.tally.generated_tokens for engine in engines) == self.streamed
                and finished == gateway.ledger.finished
                and len(gateway.exchanges) == self.sent - finished
            ):
                return
            await asyncio.sleep(0.0 if turn < 1000 else 0.001)
        raise AssertionError("what the engines emitted did not come to the gateway")


async def ask(port: int, path: str, body: dict[str, Any]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
def play(monkeypatch):
    """Plays requests through a gateway: `play(specs, requests, bodies, path)`."""

    def run(specs, requests, bodies, path="/v1/completions", router="least_work") -> Run:
        stage = Stage(specs, router)
        for name, module in list(sys.modules.items()):
            if name.startswith("fairlead.serve.") and hasattr(module, "monotonic"):
                monkeypatch.setattr(module, "monotonic", stage.clock.now)
        return asyncio.run(asyncio.wait_for(stage.play(requests, bodies, path), 60.0))

    return run


def some_requests(count: int, rate: float) -> Requests:
    random = np.random.default_rng(5)
    arrival_s = np.cumsum(random.exponential(1 / rate, count))
    # The simulator scrapes when somebody looks: so somebody looks in every interval (section 4).
    assert (np.diff(np.unique(np.floor(arrival_s))) == 1.0).all()
    session = np.where(random.random(count) < 0.5, random.integers(1, 6, count), 0)
    return Requests(arrival_s, random.integers(4, 700, count), random.integers(1, 50, count), session=session)


def body(requests: Requests, i: int, **fields: object) -> dict[str, Any]:
    hints: dict[str, object] = {"fairlead_output_tokens": int(requests.output_tokens[i])}
    if requests.content is not None:
        content = requests.content
        hints["fairlead_blocks"] = content.ids[content.offsets[i] : content.offsets[i + 1]].tolist()
    asked = {"model": "m", "stream": True, "max_tokens": MAX_TOKENS, "vllm_xargs": hints, **fields}
    if requests.session is not None and requests.session[i]:
        asked["session_id"] = f"conversation {requests.session[i]}"
    return asked


def ids(requests: Requests, i: int) -> list[int]:
    """A prompt of as many token ids; blocks with the same content have the same ids.

    The last one, which is not full, begins like the one that follows in its conversation.
    """
    count, content = int(requests.prompt_tokens[i]), requests.content
    if content is None:
        return [10_000 + i] * count
    blocks = content.ids[content.offsets[i] : content.offsets[i + 1]].tolist()
    size = content.block_size
    full = min(len(blocks), count // size)
    prompt = [*blocks[:full], blocks[full - 1] + 1]
    return [10_000 + (block * size + j) % 80_000 for block in prompt for j in range(size)][:count]


def compare(run: Run, requests: Requests, specs: list[ReplicaSpec], **slack: Any) -> None:
    """Both views, column by column; `slack`: more that is allowed, absolute."""
    twin = simulate(
        specs, requests, run.choices, scrape_interval_s=1.0, max_tokens=MAX_TOKENS, record_views=True
    )
    assert twin.view is not None
    columns = [
        (column.name, run.view.replicas[..., c], twin.view.replicas[..., c])
        for c, column in enumerate(REPLICA_COLUMNS)
    ]
    columns += [
        (column.name, run.view.request[..., c], twin.view.request[..., c])
        for c, column in enumerate(REQUEST_COLUMNS)
        if column.name != "session"
    ]
    assert {name for name, _, _ in columns} == set(TOLERANCE)
    wrong = []
    for name, gateway, simulator in columns:
        allowed = TOLERANCE[name] * np.maximum(np.abs(gateway), np.abs(simulator)) + slack.get(name, 0.0)
        bad = np.abs(gateway - simulator) > allowed
        if bad.any():
            at = tuple(np.argwhere(bad)[0])
            wrong.append(
                f"{name}: {bad.sum()} of {bad.size} differ, first at {at}: gateway {gateway[at]!r}, "
                f"simulator {simulator[at]!r}"
            )
    assert not wrong, "\n".join(wrong)
    # A session has another number here and there, but the same for the same.
    pairs = set(zip(*(view.request[:, schema.SESSION] for view in (run.view, twin.view)), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert all((a == 0.0) == (b == 0.0) for a, b in pairs)


def test_the_views_are_equal(play):
    requests = some_requests(60, rate=12.0)
    run = play(SPECS, requests, [body(requests, i, prompt=ids(requests, i)) for i in range(60)])
    compare(run, requests, SPECS)
    busy = run.view.replicas[..., schema.CONTEXT_TOKENS].max(axis=0)
    assert (busy > 0).all()  # both replicas were used
    assert set(run.choices) == {0, 1}
    tail = run.view.request[:, schema.TTFT_TAIL_S]
    assert tail[0] == 1.0 and len(set(tail)) > 30  # the prior, then what was seen


def test_the_views_are_equal_where_memory_is_short(play):
    specs = [replace(spec, kv_blocks=90) for spec in SPECS]
    requests = some_requests(60, rate=12.0)
    run = play(specs, requests, [body(requests, i, prompt=ids(requests, i)) for i in range(60)])
    compare(run, requests, specs)
    assert run.view.replicas[..., schema.SCRAPED_PREEMPTIONS].any()


def test_the_views_are_equal_where_nobody_declared_that_one_is_slower(play):
    specs = [replace(spec, **{name: getattr(SPECS[0], name) for name in DECLARED_SPEEDS}) for spec in SPECS]
    requests = some_requests(60, rate=12.0)
    run = play(specs, requests, [body(requests, i, prompt=ids(requests, i)) for i in range(60)])
    compare(run, requests, specs)
    speed = run.view.replicas[..., schema.SPEED]
    assert speed[0].tolist() == [1.0, 1.0]
    assert speed[:, 1].min() < 0.6  # found


def test_the_views_are_equal_where_the_prompt_is_only_estimated(play):
    """A chat as text, whose length the gateway learns from `usage`: the simulator is told its estimates."""
    requests = some_requests(60, rate=12.0)
    bodies = []
    for i in range(60):
        # The emulator counts words, and three tokens of the template.
        words = " ".join("abcdefgh"[: 1 + (i + j) % 8] for j in range(int(requests.prompt_tokens[i]) - 3))
        messages = [{"role": "user", "content": words}]
        bodies.append(body(requests, i, messages=messages, stream_options={"include_usage": True}))
    run = play(SPECS, requests, bodies, "/v1/chat/completions")
    estimate = run.view.request[:, schema.PROMPT_TOKENS]
    error = np.abs(estimate / requests.prompt_tokens - 1.0)
    assert error[:3].max() > 0.2  # 4 bytes a token at first
    assert error[30:][requests.prompt_tokens[30:] > 100].max() < 0.1  # learned
    compare(run, replace(requests, estimate=estimate.astype(np.int64)), SPECS)


def test_the_views_are_equal_where_prefixes_are_cached_but_for_the_chunks(play):
    specs = [replace(spec, prefix_caching=True) for spec in SPECS]
    requests = conversations(60)
    run = play(specs, requests, [body(requests, i, prompt=ids(requests, i)) for i in range(60)])
    # The simulator's router knows whole blocks of 16 tokens, the gateway chunks of 256 bytes: of each prompt
    # the hit may differ by one of each, and so may what is pending, for each that awaits its first token.
    grain = CHUNK_BYTES / BYTES_PER_ID + specs[0].block_size
    awaiting = run.view.replicas[..., schema.AWAITING_FIRST_TOKEN]
    compare(
        run,
        requests,
        specs,
        expected_prefix_hit_tokens=grain,
        pending_prefill_tokens=grain * awaiting + ROUNDING,
    )
    hits = run.view.replicas[..., schema.EXPECTED_PREFIX_HIT_TOKENS]
    assert hits.max() > 4 * grain
    assert run.view.replicas[..., schema.SCRAPED_PREFIX_HIT_RATE].max() > 0.2


def conversations(count: int) -> Requests:
    """Turns of five conversations, each with its prompt before, the answer to that, and more."""
    random = np.random.default_rng(7)
    session = 1 + np.arange(count) % 5
    output = random.integers(1, 40, count)
    prompt = random.integers(60, 80, count)  # longer than a chunk
    for i in range(5, count):
        prompt[i] = prompt[i - 5] + output[i - 5] + random.integers(10, 25)
    blocks = full_blocks(prompt, output, 16)
    offsets = np.concatenate([[0], np.cumsum(blocks)])
    ids = np.concatenate(
        [1000 * each + np.arange(n) for each, n in zip(session.tolist(), blocks.tolist(), strict=True)]
    )
    # A pause without lookups, in which the hit rate stays as it was.
    arrival_s = np.cumsum(random.exponential(1 / 12.0, count))
    arrival_s[count // 2 :] += 2.5
    return Requests(arrival_s, prompt, output, session=session, content=Content(ids, offsets, 16))


def test_jumps_of_the_wall_clock_change_nothing(play, monkeypatch):
    requests = some_requests(30, rate=12.0)
    bodies = [body(requests, i, prompt=ids(requests, i)) for i in range(30)]
    calm = play(SPECS, requests, bodies)
    jumps = itertools.cycle([4e9, 0.0, 1.7e9, 2e9])
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(jumps))
        jumping = play(SPECS, requests, bodies)
    assert jumping.choices == calm.choices
    assert (jumping.view.replicas == calm.view.replicas).all()
    assert (jumping.view.request == calm.view.request).all()
    assert jumping.gateway.requests == calm.gateway.requests == {("/v1/completions", 200): 30}
