"""A request of a client: its head, whether it can be served, and who answers it."""

from collections.abc import Mapping
from typing import Protocol

from fairlead.serve.messages import Headers
from fairlead.serve.settings import Limits


class Connection(Protocol):
    """Where a request came from, and its answer goes."""

    peer: bytes
    """The client's address."""
    secure: bool
    """Behind TLS."""

    def write(self, data: bytes) -> None:
        """Send a piece of the answer."""

    def read(self, wanted: bool) -> None:
        """Read from the client, or leave it waiting (so that a long upload does not pile up)."""

    def answered(self, request: "Request") -> None:
        """The answer to `request` is complete."""

    def cut(self, *, visible: bool) -> None:
        """End in the middle of an answer; a reset tells the client if the missing end is not `visible`."""


class Sink(Protocol):
    """Whoever answers one request."""

    def body(self, data: bytes) -> None:
        """A piece of the request's body."""

    def end(self) -> None:
        """The request is complete."""

    def client_left(self) -> None:
        """Nobody waits for the answer any more."""

    def client_slow(self, slow: bool) -> None:
        """The client reads slower than the answer comes (True), or has caught up (False)."""


_NOTHING: Mapping[bytes, bytes] = {}


class KnownHead:
    """What a head has said that may come again, with another length (`serve.known`)."""

    __slots__ = ("first", "headers", "kept", "limits", "method", "path", "target")

    def __init__(self, request: "Request", limits: Limits) -> None:
        """That of `request`, which has been found good under `limits`."""
        self.limits = limits
        self.method = request.method
        self.target = request.target
        self.path = request.path
        self.headers = request.headers
        self.first = request.first
        self.kept: dict[tuple[bool, bool, bool, bool], bytes] = {}
        """What is passed on of it (`serve.heads`)."""


class Request:
    """The head of a request, and how it is to be answered."""

    __slots__ = (
        "arrived",
        "close",
        "complete",
        "connection",
        "expects_continue",
        "first",
        "headers",
        "known",
        "length",
        "method",
        "old",
        "parts",
        "path",
        "received",
        "refusal",
        "sink",
        "target",
    )

    def __init__(self, connection: Connection) -> None:
        """Its first byte has come."""
        self.connection = connection
        self.arrived = 0.0
        self.method = b""
        self.target = b""
        self.path = b""
        """The target without its query."""
        self.headers: Headers = []
        """All of them; not to be changed once the head is complete."""
        self.first: Mapping[bytes, bytes] = _NOTHING
        """The first header of each (lower-case) name, once the head has come."""
        self.known: KnownHead | None = None
        """Where its head may come again."""
        self.length = -1
        """Of the body as declared; -1 if it is chunked."""
        self.received = 0
        """Bytes of the body so far."""
        self.old = False
        """HTTP/1.0: knows no chunks."""
        self.close = False
        """The connection ends with the answer."""
        self.complete = False
        self.expects_continue = False
        self.parts: list[bytes] = []
        """The body as far as nobody has taken charge of the request yet."""
        self.refusal: tuple[int, str] | None = None
        """Status and message, where the request cannot be served."""
        self.sink: Sink | None = None

    def header(self, name: bytes) -> bytes:
        """The first header of this (lower-case) name; empty if there is none."""
        return self.first.get(name, b"")

    def says_again(self, known: KnownHead, length: int) -> None:
        """Its head is `known`, its body, which has come as a whole, has `length` bytes."""
        self.known = known
        self.method, self.target, self.path = known.method, known.target, known.path
        self.headers, self.first = known.headers, known.first
        self.length = self.received = length


def head_size(request: Request) -> int:
    """Bytes of a request's target and headers."""
    return len(request.target) + sum(len(name) + len(value) + 4 for _, name, value in request.headers)


def examine(request: Request, version: str, limits: Limits, head_bytes: int) -> tuple[int, str] | None:
    """Why the head of `request` must be refused, if it must; llhttp has checked its form.

    Args:
        request: with method, target and headers; what else they say is put down in it.
        version: of HTTP.
        limits: on sizes.
        head_bytes: bytes that have come of it, some of the body perhaps included.
    """
    if request.method == b"CONNECT":
        return 405, "CONNECT is not offered"
    headers = request.headers
    first = request.first = {lower: value for lower, _, value in reversed(headers)}
    if b"content-length" in first:
        request.length = int(first[b"content-length"])
    if coded := b"transfer-encoding" in first:
        for lower, _, value in headers:
            if lower == b"transfer-encoding" and value.strip().lower() != b"chunked":
                return 501, "the only transfer coding is chunked"
    if b"expect" in first:
        for lower, _, value in headers:
            if lower == b"expect" and value.strip().lower() != b"100-continue":
                return 417, "the only expectation is 100-continue"
        request.expects_continue = True
    if version not in ("1.1", "1.0"):
        return 505, "the HTTP version is 1.1 or 1.0"
    request.old = version == "1.0"
    if coded and request.old:
        return 400, "HTTP/1.0 has no chunks"
    if not coded and request.length < 0:
        request.length = 0
    if len(first) < len(headers):
        hosts = sum(lower == b"host" for lower, _, _ in headers)
    else:
        hosts = b"host" in first
    if hosts > 1 or (hosts == 0 and not request.old):
        return 400, "exactly one Host header is needed"
    if len(headers) > limits.max_headers or (
        head_bytes > limits.max_header_bytes and head_size(request) > limits.max_header_bytes
    ):
        return 431, "the request's head is too large"
    if request.length > limits.max_body_bytes:
        return 413, "the request's body is too large"
    if not request.target.startswith(b"/"):
        absolute = request.target.partition(b"://")[2].partition(b"/")
        if not absolute[1]:
            return 400, "the target must be a path"
        request.target = b"/" + absolute[2]
    return None
