"""The side that clients see: HTTP/1.1 connections as an asyncio protocol over llhttp.

llhttp refuses what smuggling is made of (two lengths, a length beside chunks, folded or malformed headers,
bare line feeds); what it leaves to its user is refused here: other versions, other transfer codings, several
or missing hosts, anything over a limit. After a refusal nothing more of the connection is read as a request.
"""

import asyncio
from collections import deque
from time import monotonic
from typing import Protocol, cast

import httptools

from fairlead.serve.known import cut_length, keep
from fairlead.serve.messages import answer, error_body
from fairlead.serve.request import KnownHead, Request, Sink, examine
from fairlead.serve.settings import Limits, Timeouts

LINGER_S = 2.0
"""After an answer that ends a connection, the rest of the client's bytes is thrown away for this long, so
that a reset does not overtake the answer."""


class Application(Protocol):
    """What requests are handed to."""

    limits: Limits
    timeouts: Timeouts
    connections: "set[ClientConnection]"
    draining: bool

    def handle(self, request: Request) -> Sink:
        """Take charge of a request whose head has come; called when it is its turn to be answered."""
        ...


_UNKNOWN = (b"", 0)
_KNOWN: dict[bytes, KnownHead] = {}
"""Heads of requests that were seen before."""


class ClientConnection(asyncio.Protocol):
    """One connection of a client: requests in, answers out, in order."""

    __slots__ = (
        "_alike",
        "_answering",
        "_application",
        "_broken",
        "_chunk_bytes",
        "_closing",
        "_head_bytes",
        "_head_first",
        "_incoming",
        "_lingering",
        "_parser",
        "_queue",
        "_reading",
        "_resumed",
        "_stuffed",
        "_transport",
        "deadline",
        "peer",
        "secure",
    )

    def __init__(self, application: Application, *, secure: bool = False) -> None:
        """A connection for `application`; `secure` behind TLS."""
        self._application = application
        self._queue: deque[Request] = deque()
        self._incoming: Request | None = None  # being parsed
        self._alike = _UNKNOWN  # what `cut_length` found in front of what is being parsed, if anything
        self._chunk_bytes = 0  # of what is being parsed
        self._head_bytes = 0  # since the request began, what came with its first byte aside
        self._head_first = 0  # that
        self._broken = False  # what came cannot be understood, nor can what follows
        self._closing = False
        self._lingering = False
        self._reading = True
        self._answering = False  # a part of the answer that is due has gone out
        self._stuffed = False  # the client does not read what it was answered
        self._resumed = False  # an interrupted (upgrade) request's body is being parsed
        self.secure = secure
        self.peer = b""
        """The client's address."""
        self.deadline = 0.0
        """When the sweep may close this connection (s, monotonic): `inf` while an answer is due."""

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0].encode() if isinstance(peer, tuple) else b"unknown"
        self._parser = httptools.HttpRequestParser(self)
        application = self._application
        self.deadline = monotonic() + application.timeouts.header
        application.connections.add(self)
        if len(application.connections) > application.limits.max_connections:
            self._refuse(503, "too many connections")

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone, or we have."""
        self._closing = True
        self._application.connections.discard(self)
        self._leave()

    def eof_received(self) -> bool:
        """The client will send no more: it has left."""
        self._leave()
        self._closing = True
        if not self._lingering:  # what it was sent it may still read, for a while
            self._lingering = True
            self.deadline = monotonic() + self._application.timeouts.idle
        return False  # asyncio closes the transport

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._closing or self._broken:
            return
        if self._incoming is None and not self._queue and not self._stuffed:
            now = monotonic()
            self.deadline = now + self._application.timeouts.header
            cut = cut_length(data)
            if cut is not None:
                alike, length, end = cut
                known = _KNOWN.get(alike)
                if (
                    known is not None
                    and len(data) == end + length <= known.limits.max_body_bytes
                    and known.limits is self._application.limits
                ):
                    self._serve(known, length, data[end:], now)
                    return
                self._alike = alike, length
        self._chunk_bytes = len(data)
        self._head_bytes += self._chunk_bytes
        self._feed(data)
        self._alike = _UNKNOWN
        incoming = self._incoming
        if (
            incoming is not None
            and not incoming.arrived  # its head is not complete
            and self._head_bytes > self._application.limits.max_header_bytes
            and not self._broken
        ):
            self._refuse(431, "the request's head is too large")

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._stuffed = True
        if self._queue and (sink := self._queue[0].sink) is not None:
            sink.client_slow(True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stuffed = False
        if self._queue and (sink := self._queue[0].sink) is not None:
            sink.client_slow(False)
        elif not self._closing:
            self._go_on()

    # Called by the parser.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._resumed or self._closing:
            return
        if self._queue and self._queue[-1].refusal is not None:
            self._broken = True  # nothing behind a refused request is one
        else:
            self._incoming = Request(self)
            self._head_bytes = 0
            self._head_first = self._chunk_bytes

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        if not self._resumed and self._incoming is not None:
            self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer (which is dropped)."""
        request = self._incoming
        if request is not None and not request.arrived:
            request.headers.append((name.lower(), name, value))

    def on_headers_complete(self) -> None:
        """The head is there: check it; answer it if it is its turn."""
        request = self._incoming
        if request is None or self._resumed or self._closing or self._broken:
            return
        request.arrived = monotonic()
        request.method = self._parser.get_method()
        limits = self._application.limits
        request.refusal = examine(
            request, self._parser.get_http_version(), limits, self._head_first + self._head_bytes
        )
        request.path = request.target.partition(b"?")[0]
        request.close |= not self._parser.should_keep_alive() or request.refusal is not None
        alike, length = self._alike
        if alike and length == request.length and not (request.close or request.old or _odd(request)):
            request.known = KnownHead(request, limits)
            keep(_KNOWN, alike, request.known)
        self._alike = _UNKNOWN
        self._queue.append(request)
        if len(self._queue) == 1:
            if not self._stuffed:  # else its turn comes when the answers before it have been read
                self._begin(request)
        elif len(self._queue) > self._application.limits.max_pipelined:
            request.refusal = (429, "too many requests ahead of their answers")
            request.close = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        request = self._incoming
        if request is None or self._closing or self._broken:
            return
        request.received += len(data)
        if request.received > self._application.limits.max_body_bytes and request.refusal is None:
            request.refusal = (413, "the request's body is too large")
            if request.sink is None:
                request.close = True
            elif not self._give_up(request):
                self._reject(request)
                return
        if request.refusal is not None:
            return
        if request.sink is not None:
            self.deadline = request.arrived + self._application.timeouts.body + request.received / 1000.0
            request.sink.body(data)
        else:
            request.parts.append(data)

    def on_message_complete(self) -> None:
        """The request is complete."""
        request = self._incoming
        if request is None or self._closing or self._broken or self._parser.should_upgrade():
            return  # the body of a request that asks for an upgrade has not been parsed
        self._incoming = None
        request.complete = True
        if request.sink is not None:
            self.deadline = float("inf")
            request.sink.end()

    # Called by whoever answers.

    def write(self, data: bytes) -> None:
        """Send a piece of the answer."""
        if not self._closing:
            self._answering = True
            self._transport.write(data)

    def read(self, wanted: bool) -> None:
        """Read from the client, or leave it waiting (so that a long upload does not pile up)."""
        if wanted != self._reading and not self._closing:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def answered(self, request: Request) -> None:
        """The answer to `request` is complete: go on with the next one, or close."""
        if self._closing or not self._queue or self._queue[0] is not request:
            return
        request.sink = None
        self._queue.popleft()
        self._answering = False
        if request.close or not request.complete:
            self.finish()
        elif self._stuffed:
            # Answers that nobody reads would pile up: no more requests until they have been read.
            self.read(False)
            self.deadline = monotonic() + self._application.timeouts.idle
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take up the next request, or wait for it."""
        self.read(True)
        timeouts = self._application.timeouts
        self.deadline = monotonic() + (timeouts.keep_alive if self._incoming is None else timeouts.header)
        if self._queue:
            # Not from within the answer to the one before: a long pipeline would be a deep recursion.
            asyncio.get_running_loop().call_soon(self._begin_next)
        elif self._application.draining and self._incoming is None:
            self.finish()

    def finish(self) -> None:
        """Send what is left, then close; bytes that still come are thrown away for a moment."""
        if self._closing:
            return
        self._closing = True
        self._queue.clear()
        self._lingering = True
        if self._incoming is None or not self._transport.can_write_eof():
            self._close()
            return
        self.deadline = monotonic() + LINGER_S
        if not self._reading:
            self._transport.resume_reading()
        self._transport.write_eof()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._leave()
        self._closing = True
        self._transport.abort()

    def cut(self, *, visible: bool) -> None:
        """End in the middle of an answer; a reset tells the client if the missing end is not `visible`."""
        self._closing = True
        self._queue.clear()
        if visible:
            self._lingering = True
            self._close()
        else:
            self._transport.abort()

    @property
    def idle(self) -> bool:
        """Whether neither a request nor an answer is under way."""
        return not self._queue and self._incoming is None

    def expired(self) -> None:
        """The deadline has passed: a slow head or body is answered with 408, silence is closed."""
        if self._lingering or self.idle:
            self._transport.abort()
            return
        request = self._incoming
        if request is None or request.sink is None or not self._give_up(request):
            self._refuse(408, "the request did not come in time")

    # Inside.

    def _serve(self, known: KnownHead, length: int, body: bytes, now: float) -> None:
        """A whole request has come by itself, with a `known` head: there is nothing to be parsed."""
        request = Request(self)
        request.arrived = now
        request.says_again(known, length)
        self._queue.append(request)
        self.deadline = float("inf")
        sink = self._handled(request)
        if sink is None:
            return
        if length and not self._closing:
            sink.body(body)
        if not self._closing and request.sink is not None:  # not answered already
            request.complete = True
            sink.end()

    def _close(self) -> None:
        """Close when all has been sent; at the deadline if the client does not read it."""
        self.deadline = monotonic() + self._application.timeouts.idle
        self._transport.close()

    def _give_up(self, request: Request) -> bool:
        """Call off a request whose body goes wrong; if its answer has begun end that, and say so."""
        sink, request.sink = request.sink, None
        assert sink is not None
        sink.client_left()
        if self._answering:  # by now an error would stand in the middle of it
            self.cut(visible=not request.old)
        return self._answering

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._closing:
                self._malformed()

    def _malformed(self) -> None:
        """Refuse bytes that are not a request; answers to requests before them still go out."""
        request = self._incoming
        if request is not None and request.sink is not None:  # broken in the middle of the body
            if not self._give_up(request):
                self._refuse(400, "malformed HTTP")
        elif self._queue and (request is None or self._queue[0] is not request):
            if request is None or not request.arrived:
                request = self._incoming = Request(self)
                self._queue.append(request)
            request.refusal, request.close = (400, "malformed HTTP"), True
            # Whatever follows cannot be understood; `_incoming` stays, so that the connection will linger.
            self._broken = True
        else:
            self._refuse(400, "malformed HTTP")

    def _decline_upgrade(self, rest: bytes) -> None:
        """A request that offers an upgrade is served as it is (RFC 9110, section 7.8): parse its body."""
        request = self._incoming
        if request is None or self._closing:
            return
        if request.refusal is not None:
            self._broken = True
            return
        self._parser = httptools.HttpRequestParser(self)
        length = request.length
        framing = b"Transfer-Encoding: chunked" if length < 0 else b"Content-Length: %d" % length
        self._resumed = True
        self._feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        self._resumed = False
        if rest:
            self._feed(rest)

    def _leave(self) -> None:
        """Tell whoever answers that nobody is there any more."""
        queue, self._queue = self._queue, deque()
        for request in queue:
            sink, request.sink = request.sink, None
            if sink is not None:
                sink.client_left()

    def _begin_next(self) -> None:
        if self._queue and self._queue[0].sink is None and not self._closing:
            self._begin(self._queue[0])

    def _begin(self, request: Request) -> None:
        """It is this request's turn."""
        if request.refusal is not None:
            self._reject(request)
            return
        self.deadline = monotonic() + self._application.timeouts.body
        if request.expects_continue and not request.complete and not request.parts and not request.old:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        sink = self._handled(request)
        if sink is None:
            return
        # Whoever answers has yet to be given the rest of the body, whether or not it is here.
        complete, request.complete = request.complete, False
        for part in request.parts:
            sink.body(part)
            if request.sink is None:
                return
        request.parts.clear()
        if complete:
            request.complete = True
            self.deadline = float("inf")
            sink.end()

    def _handled(self, request: Request) -> Sink | None:
        """Who answers the request whose turn it is; None: that has been done already."""
        sink = request.sink = self._application.handle(request)
        if self._closing or not self._queue or self._queue[0] is not request:
            request.sink = None
            return None
        return sink

    def _reject(self, request: Request) -> None:
        assert request.refusal is not None
        self._refuse(*request.refusal, head_only=request.method == b"HEAD")

    def _refuse(self, status: int, message: str, *, head_only: bool = False) -> None:
        """Answer with an error of the connection's own and end it."""
        if self._closing:
            return
        body = error_body(status, message, "invalid_request_error" if status < 500 else "unavailable")
        self._transport.write(answer(status, body, close=True, head_only=head_only))
        self._incoming = self._incoming or Request(self)  # there may be more to come: linger
        self.finish()


def _odd(request: Request) -> bool:
    """Whether more than its bytes decides what follows the head."""
    first = request.first
    return request.expects_continue or b"upgrade" in first or b"transfer-encoding" in first
