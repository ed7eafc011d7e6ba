"""The side that backends see: pooled HTTP/1.1 connections as an asyncio protocol over llhttp.

A connection serves one exchange at a time and goes back to its pool when both messages are complete and the
backend keeps it open. Bytes that nobody asked for close it.
"""

import asyncio
import ssl
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from fairlead.errors import FairleadError
from fairlead.serve.known import cut_length, keep
from fairlead.serve.messages import Headers

MAX_ANSWER_HEAD = 65_536
"""Bytes of an answer's head; a longer one is a fault of the backend."""


_UNKNOWN = (b"", 0)
_KNOWN: dict[bytes, tuple[int, Headers]] = {}
"""Heads of answers that were seen before: status and headers."""


class Caller(Protocol):
    """Whoever sent a request to a backend."""

    head_only: bool
    """A HEAD request: its answer has no body, whatever its headers say."""

    def connected(self, connection: "UpstreamConnection") -> None:
        """A connection is there: send the request."""

    def connect_failed(self, reason: str) -> None:
        """No connection could be made."""

    def answer_begins(self, status: int, headers: Headers, length: int) -> None:
        """The head of the answer; `length` of the body, -1 if it is not declared."""

    def answer_body(self, data: bytes, last: bool) -> None:
        """What one read brought of the body, nothing perhaps; `last`: the body is complete."""

    def answer_ends(self) -> None:
        """The answer is complete."""

    def broken(self, reason: str, *, stale: bool) -> None:
        """The connection broke before the answer was complete.

        `stale`: it had been used before and closed without a byte, as when keep-alive ends just then.
        """

    def backend_slow(self, slow: bool) -> None:
        """The backend reads slower than the request comes (True), or has caught up (False)."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a backend."""

    __slots__ = (
        "_alike",
        "_answered",
        "_begun",
        "_caller",
        "_closed",
        "_closes",
        "_headers",
        "_heard",
        "_informational",
        "_parser",
        "_pieces",
        "_pool",
        "_reading",
        "_size",
        "_to_close",
        "_transport",
        "_uses",
        "idle_since",
        "request_complete",
    )

    def __init__(self, pool: "Pool") -> None:
        """A connection that belongs to `pool`."""
        self._pool = pool
        self._caller: Caller | None = None
        self._closed = False
        self._uses = 0
        self._heard = False  # a byte of the answer has come
        self._reading = True
        self._parser = httptools.HttpResponseParser(self)
        self._fresh_answer()
        self.idle_since = 0.0
        self.request_complete = False
        """Whether the whole request has been sent: otherwise the connection cannot be used again."""

    def _fresh_answer(self) -> None:
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._size = 0
        self._begun = False  # the head has come
        self._answered = False
        self._informational = False
        self._alike = _UNKNOWN  # what `cut_length` found in front of it, if anything
        self._closes = False
        self._to_close = False  # the body ends with the connection

    # For callers.

    def assign(self, caller: Caller) -> None:
        """The next answer is for `caller`."""
        self._caller = caller
        self._uses += 1
        self._heard = False
        self.request_complete = False

    def write(self, data: bytes) -> None:
        """Send a piece of the request."""
        if not self._closed:
            self._transport.write(data)

    def read(self, wanted: bool) -> None:
        """Read the answer, or leave the backend waiting (the client is slow)."""
        if wanted != self._reading and not self._closed:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def drop(self) -> None:
        """Close at once: nobody wants the answer, so the backend had better stop working on it."""
        self._caller = None
        self._close()

    def release(self) -> None:
        """It was not needed: back to the pool, unused."""
        self._caller = None
        self._pool.give_back(self)

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return not self._closed and not self._transport.is_closing()

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._pool.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The backend closed the connection, or we did."""
        was_closed, self._closed = self._closed, True
        self._pool.forget(self)
        if self._caller is not None and not was_closed:
            self._lost()

    def eof_received(self) -> bool:
        """The end of an answer that has no declared length, or of an idle connection."""
        return False

    def data_received(self, data: bytes) -> None:
        """Parse what has come and pass it on."""
        if self._closed:
            return
        caller = self._caller
        if caller is None:
            self._close()  # nobody asked for this
            return
        if not self._heard:
            self._heard = True
            cut = None if caller.head_only else cut_length(data)
            if cut is not None:
                alike, length, end = cut
                known = _KNOWN.get(alike)
                if known is not None and len(data) == end + length:
                    # A whole answer has come by itself, with a known head: there is nothing to be parsed.
                    caller.answer_begins(*known, length)
                    if not self._closed:  # else the caller went elsewhere
                        caller.answer_body(data[end:], True)
                        self._done()
                    return
                self._alike = alike, length
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break("the backend switched protocols")
            return
        except httptools.HttpParserError:
            if not self._answered:
                if self._begun:
                    self._flush()  # what came before is good
                self._break("malformed answer")
                return
            self._closes = True  # complete, with something behind it
        if self._closed:
            return  # the caller went elsewhere
        if not self._begun:
            self._size += len(data)
            if self._size > MAX_ANSWER_HEAD:
                self._break("the head of the answer is too large")
            return
        self._flush()
        if self._answered:
            self._done()

    def pause_writing(self) -> None:
        """The backend reads slowly."""
        if self._caller is not None:
            self._caller.backend_slow(True)

    def resume_writing(self) -> None:
        """The backend has caught up."""
        if self._caller is not None:
            self._caller.backend_slow(False)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """A (further) answer."""
        if self._answered:
            self._closes = True  # one that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped."""
        if not self._begun:
            self._headers.append((name.lower(), name, value))

    def on_headers_complete(self) -> None:
        """The head has come."""
        (alike, cut), self._alike = self._alike, _UNKNOWN
        if self._begun or self._caller is None:
            return
        status: int = self._parser.get_status_code()
        if status < 200:
            self._informational = True
            self._headers = []
            return
        self._begun = True
        length, chunked = -1, False
        for lower, _, value in self._headers:
            if lower == b"content-length":
                length = int(value)
            elif lower == b"transfer-encoding":
                chunked = value.strip().lower() == b"chunked"
        if status in (204, 304) and length < 0:
            length = 0
        self._closes = not self._parser.should_keep_alive()
        self._to_close = length < 0 and not chunked
        headers, self._headers = self._headers, []
        if alike and cut == length and not (chunked or self._closes or status in (204, 304)):
            keep(_KNOWN, alike, (status, headers))
        self._caller.answer_begins(status, headers, -1 if chunked else length)
        if self._caller is not None and self._caller.head_only:
            # llhttp cannot be told that no body follows; the connection is not used again.
            self._answered = self._closes = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._answered:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The answer is complete, unless it was an interim one."""
        if self._informational and not self._begun:
            self._informational = False
        elif self._begun:
            self._answered = True

    # Inside.

    def _flush(self) -> None:
        """Pass on what one read brought, as one piece."""
        if self._caller is not None:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._caller.answer_body(data, self._answered)

    def _done(self) -> None:
        caller, self._caller = self._caller, None
        keep = self.request_complete and not self._closes
        self._fresh_answer()
        if keep:
            self.read(True)
            self._pool.give_back(self)
        else:
            self._close()
        if caller is not None:
            caller.answer_ends()

    def _lost(self) -> None:
        """The backend closed while somebody waits."""
        if self._begun and self._to_close:  # the end of a body without a declared length
            self._answered = True
            self._flush()
            self._done()
            return
        self._break("the backend closed the connection", stale=self._uses > 1 and not self._heard)

    def _break(self, reason: str, *, stale: bool = False) -> None:
        caller, self._caller = self._caller, None
        self._close()
        if caller is not None:
            caller.broken(reason, stale=stale)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pool.forget(self)
            self._transport.abort()


class Pool:
    """Connections to one backend: open ones that wait, and the making of new ones."""

    def __init__(self, url: str, connect_timeout: float, idle_timeout: float, ca: Path | None = None) -> None:
        """For the server at `url`, whose certificate `ca` has signed; timeouts in s.

        Raises:
            FairleadError: if `ca` cannot be used.
        """
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.connect_timeout = connect_timeout
        self.idle_timeout = idle_timeout
        self.connections: set[UpstreamConnection] = set()
        """All that are open."""
        try:
            self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        except (OSError, ssl.SSLError) as error:
            raise FairleadError(f"{url}: the certificates in {ca} cannot be used: {error}") from None
        self._idle: deque[UpstreamConnection] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    def connect(self, caller: Caller, *, fresh: bool = False) -> asyncio.Task[None] | None:
        """Give `caller` an idle connection at once (unless `fresh`), or a new one when it is there.

        Returns:
            The making of the new one, to be cancelled if it is not wanted any more.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()  # the most recently used: the least likely to have been closed
            if connection.usable:
                connection.assign(caller)
                caller.connected(connection)
                return None
        task = asyncio.get_running_loop().create_task(self._open(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    async def _open(self, caller: Caller) -> None:
        if self._closed:
            caller.connect_failed("it is not used any more")
            return
        connection = UpstreamConnection(self)
        try:
            # The name is resolved anew for every connection: addresses may change.
            opening = asyncio.get_running_loop().create_connection(
                lambda: connection, self.host, self.port, ssl=self._tls
            )
            async with asyncio.timeout(self.connect_timeout):
                await opening
        except asyncio.CancelledError:
            self._unwanted(connection)
            raise
        except TimeoutError:
            self._unwanted(connection)
            caller.connect_failed("connecting took too long")
        except OSError as error:
            caller.connect_failed(f"no connection: {error.strerror or error}")
        except UnicodeError as error:  # a name that cannot be one, such as `a..b`
            caller.connect_failed(f"no connection: {error}")
        else:
            connection.assign(caller)
            caller.connected(connection)

    def _unwanted(self, connection: UpstreamConnection) -> None:
        """Close a connection if it was made in the very moment in which it was given up."""
        if connection in self.connections:
            connection.drop()

    def give_back(self, connection: UpstreamConnection) -> None:
        """An answer is complete; the connection may be used again."""
        connection.idle_since = monotonic()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is closed."""
        self.connections.discard(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long."""
        while self._idle and (not self._idle[0].usable or now - self._idle[0].idle_since > self.idle_timeout):
            self._idle.popleft().drop()

    def close(self) -> None:
        """Close all connections and give up on those being made; no more are made."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        for connection in list(self.connections):
            connection.drop()
        self._idle.clear()
