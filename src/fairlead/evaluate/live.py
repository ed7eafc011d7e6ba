"""Replays requests against a live OpenAI-compatible server, open loop, and measures what its clients feel.

Each request is sent at its own time, however late the answers to others are. Times count from the moment at
which a request was due, so that a client that falls behind does not make the server look better (coordinated
omission); `LiveRun.lag_s` shows how far behind it was.
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.evaluate.prompts import Prompts, Words
from fairlead.simulator.outcomes import Outcomes
from fairlead.workload.requests import Requests

REPLICA_HEADER = b"x-fairlead-replica"
"""The emulator's answers say in it which replica they come from."""

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_TAIL_BYTES = 2048  # `usage` is at the end of an answer
_START_IN_S = 0.2

Lengths = Literal["limit", "hint"]
"""How a server learns how long an answer is to be: `limit` by `max_tokens` and `ignore_eos`, which every vLLM
obeys and every router sees; `hint` by arguments that only the emulator reads."""


@dataclass(frozen=True, eq=False)
class LiveRun:
    """What happened to N requests; times in s of the workload, NaN where there was none."""

    arrival_s: npt.NDArray[np.float64]
    """(N,) when each was due."""
    lag_s: npt.NDArray[np.float64]
    """(N,) how much later it was sent."""
    first_token_s: npt.NDArray[np.float64]
    """(N,) when the first token came."""
    finish_s: npt.NDArray[np.float64]
    """(N,) when the answer was complete."""
    longest_gap_s: npt.NDArray[np.float64]
    """(N,) the longest pause between two pieces of the answer."""
    prompt_tokens: npt.NDArray[np.int64]
    """(N,) as asked for."""
    output_tokens: npt.NDArray[np.int64]
    """(N,) as `usage` says; 0 where no answer was complete."""
    replica: npt.NDArray[np.int64]
    """(N,) who answered, -1 where nobody says."""
    errors: tuple[str, ...]
    """(N,) empty where the answer was complete."""

    @property
    def failed(self) -> int:
        """Requests without a complete answer."""
        return sum(bool(error) for error in self.errors)

    def outcomes(self, num_replicas: int) -> Outcomes:
        """The same in the form that all metrics are made of.

        Args:
            num_replicas: of the cluster; requests that nobody claims count as answered by the first.

        Raises:
            FairleadError: if a request failed.
        """
        if self.failed:
            first = next(error for error in self.errors if error)
            raise FairleadError(
                f"{self.failed} of {len(self.errors)} requests failed, the first with: {first}"
            )
        return Outcomes(
            self.arrival_s,
            self.prompt_tokens,
            self.output_tokens,
            np.maximum(self.replica, 0),
            self.first_token_s,
            self.finish_s,
            np.zeros(len(self.errors), np.int64),
            num_replicas,
        )


class Watch(Protocol):
    """Is told of every request as it happens; times are those of `time.perf_counter`, in s."""

    def came(self, due_s: float) -> None:
        """A request that was due at `due_s` is sent."""
        ...

    def first(self, due_s: float) -> None:
        """The first token of the answer to a request that was due at `due_s` has come."""
        ...

    def ended(self, due_s: float, first_s: float, finish_s: float, error: str) -> None:
        """An answer is complete, or will never be: then `error` says why, and times may be NaN."""
        ...


async def replay(
    url: str,
    requests: Requests,
    *,
    model: str,
    lengths: Lengths = "limit",
    prompts: Prompts | None = None,
    speed: float = 1.0,
    timeout_s: float = 300.0,
    watch: Watch | None = None,
    session_headers: Sequence[str] = (),
) -> LiveRun:
    """Sends `requests` to `url` as streamed completions, each at its time, and waits for all answers.

    Cancelled, it closes its connections: nothing goes on being generated for it.

    Args:
        url: `http://host:port` of a server or gateway.
        requests: N requests. Each carries its number as `X-Request-Id`, and its session, if it has one, as
            `user`.
        model: the name to ask for.
        lengths: how the server learns the output lengths.
        prompts: what is sent; default: as many words as each prompt has tokens. Where blocks have the same
            content, the prompts are the same; otherwise each begins with something of its own.
        speed: that of the servers' time: arrivals come so many times as fast, measured times are multiplied.
        timeout_s: a request that takes longer (s of the wall) has failed.
        watch: told of everything as it happens.
        session_headers: names of headers that say the session too, for routers that look there.

    Raises:
        FairleadError: if `url` is not an address of a server.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise FairleadError(f"{url!r} is not the address of a server, for example http://127.0.0.1:9000")
    loop = asyncio.get_running_loop()
    pool = _Pool(parts.hostname, parts.port or 80)
    prompts = prompts or Words(requests)
    head = f"POST {parts.path.rstrip('/')}/v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode()
    head += b"Content-Type: application/json\r\n"
    calls: list[_Call] = []
    start_s = time.perf_counter() + _START_IN_S
    try:
        for i in range(len(requests)):
            due_s = start_s + float(requests.arrival_s[i]) / speed
            await asyncio.sleep(0)  # even one that is late lets answers in
            while (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            blocks = _contents(requests, i) if lengths == "hint" else None
            session = _session(requests, i)
            body = _body(model, prompts.prompt(i), int(requests.output_tokens[i]), blocks, lengths, session)
            said = "".join(f"{name}: {session}\r\n" for name in session_headers if session).encode()
            lines = b"%bX-Request-Id: %d\r\nContent-Length: %d\r\n" % (said, i, len(body))
            message = b"%b%b\r\n%b" % (head, lines, body)
            call = _Call(message, due_s, loop.create_future(), watch)
            call.timer = loop.call_later(timeout_s, call.fail, f"no complete answer after {timeout_s:g} s")
            calls.append(call)
            pool.send(call)
        for call in calls:
            await call.done
    finally:
        for call in calls:
            call.fail("given up")
        pool.close()
    return _collect(requests, calls, start_s, speed)


def _contents(requests: Requests, i: int) -> list[int] | None:
    """What the full blocks of prompt and answer of request i contain, if the workload says."""
    content = requests.content
    if content is None:
        return None
    return [int(each) for each in content.ids[content.offsets[i] : content.offsets[i + 1]]]


def _session(requests: Requests, i: int) -> str:
    """The name of the session of request i; empty if it belongs to none."""
    number = 0 if requests.session is None else int(requests.session[i])
    return f"session-{number}" if number else ""


def _body(
    model: str,
    prompt: str | list[int],
    output_tokens: int,
    blocks: list[int] | None,
    lengths: Lengths,
    session: str,
) -> bytes:
    fields: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if session:
        fields["user"] = session
    if lengths == "limit":
        fields |= {"max_tokens": output_tokens, "ignore_eos": True}
    else:
        # The same limit for all: a completion that names none is limited to 16 tokens.
        hints: dict[str, object] = {"fairlead_output_tokens": output_tokens}
        if blocks is not None:
            hints["fairlead_blocks"] = blocks
        fields |= {"max_tokens": 65_536, "vllm_xargs": hints}
    return msgspec.json.encode(fields)


def _collect(requests: Requests, calls: "list[_Call]", start_s: float, speed: float) -> LiveRun:
    def times(name: str) -> npt.NDArray[np.float64]:
        return (np.array([getattr(call, name) for call in calls]) - start_s) * speed

    return LiveRun(
        arrival_s=requests.arrival_s,
        lag_s=times("sent_s") - requests.arrival_s,
        first_token_s=times("first_s"),
        finish_s=times("finish_s"),
        longest_gap_s=np.array([call.longest_gap_s for call in calls]) * speed,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=np.array([call.output_tokens for call in calls], np.int64),
        replica=np.array([call.replica for call in calls], np.int64),
        errors=tuple(call.error for call in calls),
    )


class _Call:
    """One request and what came back."""

    __slots__ = (
        *(
            "connection",
            "done",
            "due_s",
            "error",
            "finish_s",
            "first_s",
            "last_s",
            "longest_gap_s",
            "message",
        ),
        *("output_tokens", "replica", "sent_s", "started", "tail", "timer", "watch"),
    )

    def __init__(
        self, message: bytes, due_s: float, done: "asyncio.Future[None]", watch: Watch | None
    ) -> None:
        self.message = message
        self.due_s = due_s
        self.done = done
        self.watch = watch
        self.connection: _Connection | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.sent_s = self.first_s = self.last_s = self.finish_s = math.nan
        self.longest_gap_s = 0.0
        self.started = False  # a byte of the answer has come
        self.tail = b""
        self.output_tokens = 0
        self.replica = -1
        self.error = ""
        if watch is not None:
            watch.came(due_s)

    def piece(self, data: bytes) -> None:
        """A piece of the answer's body."""
        now_s = time.perf_counter()
        if math.isnan(self.first_s):
            self.first_s = now_s
            if self.watch is not None:
                self.watch.first(self.due_s)
        else:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s
        self.tail = data if len(data) > _TAIL_BYTES else (self.tail + data)[-_TAIL_BYTES:]

    def complete(self, status: int) -> None:
        """The answer has come to its end."""
        if self.done.done():
            return
        found = _COMPLETION_TOKENS.findall(self.tail)
        if status != 200:
            self.fail(f"status {status}: {self.tail[:200].decode(errors='replace')}")
        elif not found or b"[DONE]" not in self.tail:
            self.fail("the answer ended early")
        else:
            self.output_tokens = int(found[-1])
            self.finish_s = time.perf_counter()
            self._end()

    def fail(self, error: str) -> None:
        """There will be no complete answer."""
        if not self.done.done():
            self.error = error
            self._end()
            if self.connection is not None:
                self.connection.abort()

    def _end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.done.set_result(None)
        if self.watch is not None:
            self.watch.ended(self.due_s, self.first_s, self.finish_s, self.error)


class _Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self, pool: "_Pool") -> None:
        self._pool = pool
        self._call: _Call | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._used = False  # it has carried a request before this one
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def carry(self, call: _Call) -> None:
        assert self._transport is not None
        self._used = self._call is not None or self._used
        self._call, call.connection = call, self
        self._parser = httptools.HttpResponseParser(self)
        call.sent_s = time.perf_counter()
        self._transport.write(call.message)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._call is not None:
                self._call.fail(f"not HTTP: {error}")

    def on_message_begin(self) -> None:
        if self._call is not None:
            self._call.started = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._call is not None and name.lower() == REPLICA_HEADER:
            self._call.replica = int(value)

    def on_body(self, data: bytes) -> None:
        if self._call is not None:
            self._call.piece(data)

    def on_message_complete(self) -> None:
        call, self._call = self._call, None
        self._used = True
        if call is not None:
            call.connection = None
            call.complete(self._parser.get_status_code())
        if self._parser.should_keep_alive() and not self.lost:
            self._pool.idle.append(self)
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        call, self._call = self._call, None
        if call is None or call.done.done():
            return
        call.connection = None
        if self._used and not call.started:  # the server had closed it before the request came
            self._pool.send(call)
        else:
            call.fail(f"the connection was closed: {error or 'by the server'}")

    def abort(self) -> None:
        self._call = None
        if self._transport is not None:
            self._transport.abort()


class _Pool:
    """Connections to one server; as many as there are requests at once."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self.idle: deque[_Connection] = deque()

    def send(self, call: _Call) -> None:
        while self.idle:
            connection = self.idle.pop()
            if not connection.lost:
                connection.carry(call)
                return
        task = self._loop.create_task(self._open(call))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, call: _Call) -> None:
        try:
            _, connection = await self._loop.create_connection(lambda: _Connection(self), *self._address)
        except OSError as error:
            call.fail(f"cannot connect: {error}")
        else:
            if not call.done.done():
                connection.carry(call)

    def close(self) -> None:
        for task in self._opening:
            task.cancel()
        for connection in self.idle:
            connection.abort()
