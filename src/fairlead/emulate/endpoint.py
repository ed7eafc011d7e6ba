"""One replica as clients see it: vLLM's HTTP interface over an emulated engine."""

import math
import os
from collections.abc import Callable
from typing import Any

import msgspec

from fairlead.emulate import metrics
from fairlead.emulate.answers import Events, whole
from fairlead.emulate.asks import OUTPUT_TOKENS_HEADER, Ask, Refused, read, read_tokenize
from fairlead.emulate.engine import Engine, Job
from fairlead.emulate.lengths import Lengths
from fairlead.serve.frontend import ClientConnection
from fairlead.serve.messages import answer, status_line
from fairlead.serve.request import Request
from fairlead.serve.settings import Limits, Timeouts

VERSION = "0.32.0"
"""The version of vLLM whose interface this is."""

REPLICA_HEADER = b"x-fairlead-replica"
"""Says in every answer which replica it comes from, counted from 0."""

_EVENT_STREAM = b"Content-Type: text/event-stream; charset=utf-8\r\n"
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Endpoint:
    """An `Application` of `serve`'s connections that answers like a vLLM server."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        lengths: Lengths,
        kill: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Idle.

        Args:
            engine: the replica.
            model: the name that it serves.
            lengths: of answers that nobody said the length of.
            kill: called to end the server as `kill -9` would, and to start it again after so many seconds.
        """
        self.engine = engine
        self.model = model
        self.lengths = lengths
        self.kill = kill
        self.limits = Limits()
        self.timeouts = Timeouts()
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.load = 0
        """Completions and chats being answered (`/load`)."""
        self._held: list[Callable[[], None]] | None = None

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together: as many as the engine can ever hold."""
        spec = self.engine.spec
        return spec.scheduler.longest_request(spec.kv_blocks, spec.block_size, spec.token_budget)

    def handle(self, request: Request) -> "_Exchange":
        """Takes charge of a request."""
        return _Exchange(self, request)

    def when_alive(self, act: Callable[[], None]) -> None:
        """Does it now, or when the server stops hanging."""
        if self._held is None:
            act()
        else:
            self._held.append(act)

    @property
    def hanging(self) -> bool:
        """Accepts connections and answers nothing, neither new requests nor open streams; computes on."""
        return self._held is not None

    @hanging.setter
    def hanging(self, hangs: bool) -> None:
        held, self._held = self._held or [], ([] if hangs else None)
        for act in held:
            self.when_alive(act)

    def output_tokens(self, ask: Ask) -> int:
        """How many tokens the answer to `ask` has."""
        drawn = ask.limit if ask.least == ask.limit else ask.output_tokens or self.lengths.next()
        return min(max(drawn, ask.least), ask.limit)

    def respond(self, method: bytes, path: bytes, body: bytes) -> tuple[int, bytes, bytes]:
        """Status, body and content type of whatever is not generated.

        Raises:
            Refused: where vLLM would answer with an error object.
        """
        allowed, act = _ROUTES.get(path, ((), None))
        if act is None:
            return 404, b'{"detail":"Not Found"}', b"application/json"
        if method not in allowed:
            return 405, b'{"detail":"Method Not Allowed"}', b"application/json"
        content = act(self, body)
        if isinstance(content, bytes):
            return 200, content, _METRICS_TYPE if path == b"/metrics" else b"application/json"
        return 200, msgspec.json.encode(content), b"application/json"

    def _health(self, body: bytes) -> bytes:
        return b""

    def _metrics(self, body: bytes) -> bytes:
        self.engine.catch_up()
        return metrics.page(self.engine, self.model)

    def _models(self, body: bytes) -> dict[str, Any]:
        card = {
            "id": self.model,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": self.model,
            "parent": None,
            "max_model_len": self.max_model_len,
            "permission": [],
        }
        return {"object": "list", "data": [card]}

    def _version(self, body: bytes) -> dict[str, Any]:
        return {"version": VERSION}

    def _load(self, body: bytes) -> dict[str, Any]:
        return {"server_load": self.load}

    def _tokenize(self, body: bytes) -> dict[str, Any]:
        count, tokens = read_tokenize(body)
        return {"count": count, "max_model_len": self.max_model_len, "tokens": tokens, "token_strs": None}

    def _state(self, body: bytes) -> dict[str, Any]:
        """Reads the switches, after setting those that the body names."""
        if body:
            self._switch(body)
        self.engine.catch_up()
        return {
            "pace": self.engine.pace,
            "hanging": self.hanging,
            "running": self.engine.running,
            "waiting": self.engine.waiting,
            "kv_usage": self.engine.kv_usage,
            "finished": self.engine.tally.finished,
        }

    def _switch(self, body: bytes) -> None:
        try:
            wanted = msgspec.json.decode(body, type=_Switches)
        except msgspec.DecodeError as error:
            raise Refused(400, f"/emulator: {error}", "BadRequestError") from None
        if wanted.pace is not None:
            self.engine.pace = wanted.pace
        if wanted.hanging is not None:
            self.hanging = wanted.hanging
        if wanted.down_s is not None:
            self.kill(wanted.down_s)


class _Switches(msgspec.Struct, forbid_unknown_fields=True):
    """What a test may do to a server while it runs."""

    pace: float | None = None
    hanging: bool | None = None
    down_s: float | None = None

    def __post_init__(self) -> None:
        for value, least in ((self.pace, 1e-3), (self.down_s, 0.0)):
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"a pace is at least 0.001 and down_s at least 0, not {value}")


_GET, _POST = (b"GET", b"HEAD"), (b"POST",)
_ROUTES: dict[bytes, tuple[tuple[bytes, ...], Callable[[Endpoint, bytes], bytes | dict[str, Any]]]] = {
    b"/health": (_GET, Endpoint._health),
    b"/ping": (_GET + _POST, Endpoint._health),
    b"/metrics": (_GET, Endpoint._metrics),
    b"/load": (_GET, Endpoint._load),
    b"/version": (_GET, Endpoint._version),
    b"/v1/models": (_GET, Endpoint._models),
    b"/tokenize": (_POST, Endpoint._tokenize),
    b"/emulator": (_GET + _POST, Endpoint._state),
}
_GENERATING = {b"/v1/completions": False, b"/v1/chat/completions": True}


class _Exchange:
    """One request and its answer: a `Sink` for the connection and a `Listener` for the engine."""

    __slots__ = ("_ask", "_body", "_endpoint", "_events", "_generated", "_job", "_left", "_name", "_request")

    def __init__(self, endpoint: Endpoint, request: Request) -> None:
        self._endpoint = endpoint
        self._request = request
        self._body: list[bytes] = []
        self._ask: Ask | None = None
        self._job: Job | None = None
        self._events: Events | None = None
        self._name = ""
        self._generated = 0
        self._left = False

    # Called by the connection.

    def body(self, data: bytes) -> None:
        self._body.append(data)

    def end(self) -> None:
        self._endpoint.when_alive(self._answer)

    def client_left(self) -> None:
        self._left = True
        if self._job is not None:
            job, self._job = self._job, None
            self._endpoint.load -= 1
            self._endpoint.engine.cancel(job)

    def client_slow(self, slow: bool) -> None:
        """The engine computes on; what the client does not take is buffered, as by vLLM."""

    # Called by the engine.

    def tokens(self, count: int, done: bool) -> None:
        if self._job is not None:
            self._endpoint.when_alive(lambda: self._deliver(count, done))

    # Inside.

    def _answer(self) -> None:
        request = self._request
        if self._left:  # while the server was hanging
            return
        body = b"".join(self._body)
        self._body.clear()
        try:
            if request.path in _GENERATING and request.method == b"POST":
                self._generate(body, chat=_GENERATING[request.path])
                return
            if request.path in _GENERATING:
                status, content, kind = 405, b'{"detail":"Method Not Allowed"}', b"application/json"
            else:
                status, content, kind = self._endpoint.respond(request.method, request.path, body)
        except Refused as error:
            status, content, kind = error.status, msgspec.json.encode(error.error), b"application/json"
        self._send(status, content, kind)

    def _generate(self, body: bytes, chat: bool) -> None:
        endpoint, request = self._endpoint, self._request
        length = request.header(OUTPUT_TOKENS_HEADER)
        limit = endpoint.max_model_len
        ask = self._ask = read(body, chat=chat, model=endpoint.model, max_model_len=limit, header=length)
        given = request.header(b"x-request-id").decode("latin-1")
        self._name = f"{'chatcmpl' if chat else 'cmpl'}-{given or os.urandom(8).hex()}"
        output_tokens = endpoint.output_tokens(ask)
        spec = endpoint.engine.spec
        contents = ask.contents(output_tokens, spec.block_size) if spec.prefix_caching else ()
        if ask.stream:
            self._events = Events(ask, self._name)
            framing = b"Connection: close\r\n" if request.old else b"Transfer-Encoding: chunked\r\n"
            request.close |= request.old
            origin = b"%b: %d\r\n" % (REPLICA_HEADER, endpoint.engine.index)
            request.connection.write(b"".join((status_line(200), _EVENT_STREAM, framing, origin, b"\r\n")))
        endpoint.load += 1
        self._job = endpoint.engine.submit(
            ask.prompt_tokens, output_tokens, output_tokens == ask.limit, self, contents
        )

    def _deliver(self, count: int, done: bool) -> None:
        job, ask = self._job, self._ask
        if job is None or ask is None:  # the client has left
            return
        self._generated += count
        reason = ("length" if job.limited else "stop") if done else None
        if done:
            self._job = None
            self._endpoint.load -= 1
        if self._events is None:
            if reason is not None:
                self._send(200, whole(ask, self._name, self._generated, reason), b"application/json")
            return
        data = self._events.tokens(count, reason)
        if not self._request.old:
            data = b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if done else b"")
        self._request.connection.write(data)
        if done:
            self._request.connection.answered(self._request)

    def _send(self, status: int, content: bytes, kind: bytes) -> None:
        request, connection = self._request, self._request.connection
        headers = [(REPLICA_HEADER, b"%d" % self._endpoint.engine.index)]
        form = request.header(b"endpoint-load-metrics-format")
        if form and self._ask is not None and (report := metrics.orca(self._endpoint.engine, form)):
            headers.append((b"endpoint-load-metrics", report))
        head_only = request.method == b"HEAD"
        close = request.close
        connection.write(
            answer(status, content, content_type=kind, headers=headers, close=close, head_only=head_only)
        )
        connection.answered(request)
