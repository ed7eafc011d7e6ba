"""One request on its way: from the client to a backend, and to another if that fails.

The life of an exchange: the body is read (whole, up to `inspect_bytes`), a backend is chosen, the request is
sent, the answer is passed on piece by piece. Before the first byte of an answer has been passed on it may
start again with another backend; after that it can only end. Every path ends in `_end`, exactly once.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairlead.serve.backend import Backend
from fairlead.serve.dispatcher import Dispatcher
from fairlead.serve.facts import GENERATE, Facts, partial_facts, read_facts, repeatable
from fairlead.serve.heads import request_head
from fairlead.serve.ledger import OTHER, STREAM, WHOLE, Entry
from fairlead.serve.messages import Headers, answer, error_body
from fairlead.serve.relay import Relay
from fairlead.serve.request import Request
from fairlead.serve.tokens import Usage
from fairlead.serve.totals import TOTALLED, asking
from fairlead.serve.upload import Upload
from fairlead.serve.upstream import UpstreamConnection

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SERVER_ERRORS = (500, 504)
CLIENT_LEFT = 499
"""What logs say of a request whose client left before its answer was complete (as nginx has it)."""


class Exchange:
    """One request, its attempts, its answer."""

    __slots__ = (
        "_asks",
        "_connecting",
        "_entry",
        "_gateway",
        "_held_up",
        "_relay",
        "_stale",
        "_upload",
        "_upstream",
        "attempts",
        "backend",
        "by",
        "counted",
        "deadline",
        "decided",
        "decision_s",
        "expected_hit",
        "facts",
        "head_only",
        "keys",
        "logged",
        "outcome",
        "output_tokens",
        "prompt_estimate",
        "request",
        "request_id",
        "session",
        "shadow",
        "span",
        "status",
        "tried",
        "usage",
        "waiting",
    )

    def __init__(self, gateway: "Dispatcher[Exchange]", request: Request, request_id: bytes) -> None:
        """A request whose head has come."""
        self._gateway = gateway
        self.request = request
        self.request_id = request_id
        self.head_only = request.method == b"HEAD"
        self.facts: Facts | None = None
        self.backend: Backend | None = None
        self.attempts = 0
        self.tried: list[Backend] = []
        """Backends that failed it."""
        self.status = 0
        self.outcome = ""
        """How it ended: `ok`, `client_left`, or what went wrong; empty while it is under way."""
        self.deadline = float("inf")
        """When the sweep ends it (s, monotonic)."""
        self.waiting = False
        """In the gateway's queue, which alone sets it."""
        self.decided = 0.0
        """When a backend was chosen (s, monotonic)."""
        self.decision_s = 0.0
        """How long the choice took."""
        self.by = ""
        self.shadow = ""
        self.prompt_estimate = 0
        self.counted = False
        """Whether the tokens of its prompt were counted, not estimated."""
        self.expected_hit = 0.0
        """Tokens of the prompt that the chosen backend may have cached."""
        self.keys: npt.NDArray[np.uint64] | None = None
        """Of its prompt's chunks, as `Placement` keeps them."""
        self.session = 0
        """The number of its conversation; 0: it has none."""
        self.usage: Usage | None = None
        self.output_tokens = 0
        self.logged: list[object] | None = None
        """The view at the decision, for the decision log."""
        self.span: Span | None = None
        """Where requests are traced."""
        self._upload = Upload(request, gateway.limits.inspect_bytes)
        self._upstream: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._entry: Entry | None = None
        self._asks = False  # for `usage`, without its client's knowing
        self._stale = False
        self._held_up = False  # by its client, which does not read
        self._relay: Relay | None = None  # once an answer is passed on

    # The request comes in.

    def body(self, data: bytes) -> None:
        """A piece of the request's body."""
        upload = self._upload
        if upload.take(data, self._upstream) and self.facts is None:
            self.facts = partial_facts(upload.kept(), max(self.request.length, upload.size))
            self.dispatch()

    def end(self) -> None:
        """The request is complete."""
        if self.facts is not None:
            if self._upstream is not None:
                self._upload.finish(self._upstream)
            return
        body = self._upload.kept()
        self.facts = facts = read_facts(body, self.request.path) if body else _NO_BODY
        if self._gateway.ask_usage and facts.no_stream_options and self.request.path in TOTALLED:
            self._asks = True
            self._upload.replace(asking(body))
        counter = self._gateway.counter
        if counter is None or not counter.begin(self, self.request.path):
            self.dispatch()

    def prompt_counted(self, tokens: int | None) -> None:
        """How long the prompt is; None: that could not be counted."""
        if self.outcome:
            return  # its client has left meanwhile
        if tokens is not None:
            assert self.facts is not None
            self.facts = self.facts._replace(prompt_tokens=tokens)
            self.counted = True
        self.dispatch()

    def client_left(self) -> None:
        """The client has gone: so has the request, at the backend too."""
        self.status = CLIENT_LEFT
        if self.backend is not None:
            self.backend.cancelled += 1
        self._end("client_left")

    def client_slow(self, slow: bool) -> None:
        """Let the backend wait while the client catches up."""
        self._held_up = slow
        if not slow and self._relay is not None:  # from now on it is the backend's turn
            self.deadline = monotonic() + self._gateway.timeouts.idle
        if self._upstream is not None:
            self._upstream.read(not slow)

    # It is placed and sent.

    def dispatch(self) -> None:
        """Choose a backend, and send it there; or wait for one."""
        gateway = self._gateway
        backend = gateway.place(self)
        if backend is None:
            return  # queued, or answered with an error
        assert self.facts is not None
        self.backend = backend
        self.attempts += 1
        kind = OTHER if self.request.path not in GENERATE else STREAM if self.facts.stream else WHOLE
        backend.in_flight += 1
        backend.requests += 1
        self.deadline = self.decided + gateway.timeouts.first_byte
        self._connecting = backend.pool.connect(self, fresh=self._stale)
        # On its way: the books, which nobody reads before the next decision, need not hold it up.
        self._entry = gateway.ledger.routed(
            backend.row, self.prompt_estimate, self.decided, kind, self.expected_hit
        )
        gateway.placement.sent(self, backend)

    def connected(self, connection: UpstreamConnection) -> None:
        """A connection is there: send head and body."""
        self._connecting = None
        self._upstream = connection
        gateway, backend = self._gateway, self.backend
        assert backend is not None
        context = None
        if self.span is not None and gateway.traces is not None:
            context = gateway.traces.headers(self.span)
        head = request_head(
            self.request,
            backend,
            self.request_id,
            keyed=gateway.keyed,
            orca=gateway.orca,
            plain=self._asks,
            context=context,
        )
        self._upload.begin(head, connection)

    def connect_failed(self, reason: str) -> None:
        """No connection could be made: nothing has been sent, so any request may go elsewhere."""
        self._connecting = None
        self._attempt_failed("connect", reason, sent=False)

    def backend_slow(self, slow: bool) -> None:
        """Let the client wait while the backend catches up with the upload."""
        self.request.connection.read(not slow)

    # The answer comes.

    def answer_begins(self, status: int, headers: Headers, length: int) -> None:
        """The head of the answer: pass it on."""
        backend, gateway = self.backend, self._gateway
        assert backend is not None and self._entry is not None
        if status in gateway.retry_statuses:
            gateway.backends.failed(backend, "status")
            if self._can_retry(sent=True):
                self._again()
                return
        elif status in _SERVER_ERRORS:
            gateway.backends.went_wrong(backend)
        else:
            backend.succeeded()
        backend.answers[status] = backend.answers.get(status, 0) + 1
        self.status = status
        self._relay = Relay(self.request, backend, self._entry, gateway.ledger)
        self._relay.begin(
            status,
            headers,
            length,
            request_id=self.request_id,
            head_only=self.head_only,
            orca=gateway.orca,
            hide_totals=self._asks,
        )

    def answer_body(self, data: bytes, last: bool) -> None:
        """A piece of the answer, empty if only its head has come: pass it on."""
        assert self._relay is not None
        self.deadline = self._relay.body(data, last) + self._gateway.timeouts.idle

    def answer_ends(self) -> None:
        """The answer is complete."""
        request, backend = self.request, self.backend
        assert backend is not None and self.facts is not None and self._relay is not None
        self._upstream = None
        if self.status == 200:
            self.usage, self.output_tokens = self._relay.totals()
            if self.usage is not None and (self.counted or self.facts.prompt_tokens < 0):
                self._gateway.prompts.learn(
                    self.facts.model, self.facts.prompt_bytes, self.usage.prompt_tokens
                )
                if self._gateway.counter is not None and self.usage.prompt_tokens > 0:
                    self._gateway.counter.learn(self.facts, self.usage.prompt_tokens)
            backend.e2e.observe(monotonic() - request.arrived)
        self._end("ok")
        request.connection.answered(request)

    def broken(self, reason: str, *, stale: bool) -> None:
        """The connection broke before the answer was complete."""
        self._upstream = None
        if self._relay is not None:
            self._cut(self._relay, reason)
        elif stale and not self._stale and self._can_start_again(sent=True):
            # Keep-alive ended while the request was on its way: nobody's fault, and no attempt. From now on
            # only new connections, so that this happens once.
            self._stale = True
            self.attempts -= 1
            self._again(exclude=False)
        else:
            self._attempt_failed("reset", reason, sent=True)

    # It goes wrong.

    def expired(self) -> None:
        """The deadline has passed."""
        if self.waiting:
            self._gateway.queue.gave_up(self)
        elif self._relay is not None and self._held_up:
            # The client's fault, not the backend's; nor would it read that the answer ends.
            self._end("client_stalled")
            self.request.connection.cut(visible=False)
        elif self._relay is not None:
            self._cut(self._relay, "the answer stopped")
        else:
            self._attempt_failed("timeout", "no answer in time", sent=True)

    def _cut(self, relay: Relay, reason: str) -> None:
        """End an answer in the middle, visibly for the client."""
        backend = self.backend
        assert backend is not None
        self._gateway.backends.failed(backend, "cut")
        self._end(reason)
        relay.cut()

    def _can_retry(self, *, sent: bool) -> bool:
        """Whether another backend may be tried, the request having been `sent` to this one or not."""
        if not self._can_start_again(sent=sent):
            return False
        assert self.facts is not None and self.backend is not None
        return self._gateway.backends.has_other(self.facts.model, [*self.tried, self.backend])

    def _can_start_again(self, *, sent: bool) -> bool:
        if self.attempts >= self._gateway.attempts or self._relay is not None or not self._upload.here:
            return False
        if not sent:
            return True
        assert self.facts is not None
        return repeatable(self.request.method, self.request.path, self.facts)

    def _attempt_failed(self, reason: str, text: str, *, sent: bool) -> None:
        backend = self.backend
        assert backend is not None
        self._gateway.backends.failed(backend, reason)
        if self._can_retry(sent=sent):
            self._again()
        else:
            self.fail(504 if reason == "timeout" else 502, f"{backend.name}: {text}", reason)

    def _again(self, *, exclude: bool = True) -> None:
        """Give up on this attempt and choose again, without this backend if `exclude`."""
        backend = self.backend
        assert backend is not None
        backend.retries += 1
        if exclude:
            self.tried.append(backend)
        self._release()
        self._gateway.queue.released()
        if not self.outcome:
            self.dispatch()

    def fail(
        self, status: int, message: str, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Answer with an error of the gateway's own."""
        self.status = status
        request = self.request
        if not request.complete:
            request.close = True
        kind = "invalid_request_error" if status < 500 else "gateway_error"
        request.connection.write(
            answer(
                status,
                error_body(status, message, kind),
                headers=((b"X-Request-Id", self.request_id), *headers),
                close=request.close,
                head_only=self.head_only,
            )
        )
        self._end(reason)
        request.connection.answered(request)

    # It ends.

    def _release(self) -> None:
        """Nothing of it is at a backend any more."""
        if self._connecting is not None:  # else the connection would come to whatever is tried next
            connecting, self._connecting = self._connecting, None
            connecting.cancel()
        if self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            upstream.drop()
        if self.backend is not None:
            if self._entry is not None:
                entry, self._entry = self._entry, None
                self._gateway.ledger.lost(entry)
                self._gateway.placement.let_go(self, self.backend, entry.streamed)
            self.backend.in_flight -= 1
            self.backend = None

    def _end(self, outcome: str) -> None:
        if self.outcome:
            return
        self.outcome = outcome
        self.deadline = float("inf")
        backend = self.backend
        if backend is not None:
            if outcome != "ok":
                self.output_tokens = self._entry.streamed if self._entry is not None else 0
            elif self._entry is not None:
                entry, self._entry = self._entry, None
                self._gateway.ledger.finished_with(entry, self.output_tokens)
                self._gateway.placement.let_go(self, backend, self.output_tokens)
            backend.output_tokens += self.output_tokens
            backend.prompt_tokens += self.prompt_estimate
        self._gateway.ended(self, backend)
        self._release()
        self._gateway.queue.released()

    @property
    def ttft(self) -> float:
        """Seconds from the request to the first token; 0 if none was seen."""
        return self._relay.ttft if self._relay is not None else 0.0


_NO_BODY = Facts("", False, 0, 0, 0, "", b"", False)
