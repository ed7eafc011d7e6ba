"""Small requests of our own to a backend: health checks, metrics, models, probes."""

import asyncio
from typing import NamedTuple

from fairlead.serve.backend import Backend
from fairlead.serve.messages import Headers
from fairlead.serve.upstream import UpstreamConnection

MAX_BYTES = 4 * 1024 * 1024
"""An answer longer than this is a failure."""


class Fetched(NamedTuple):
    """An answer."""

    status: int
    headers: Headers
    body: bytes


class _Fetch:
    """A request, its answer gathered in memory."""

    head_only = False

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._pieces: list[bytes] = []
        self._size = 0
        self._connection: UpstreamConnection | None = None
        self._cancelled = False
        self.status = 0
        self.headers: Headers = []
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connected(self, connection: UpstreamConnection) -> None:
        if self._cancelled:
            connection.release()
            return
        self._connection = connection
        connection.write(self._head)
        connection.request_complete = True

    def connect_failed(self, reason: str) -> None:
        self._fail(reason)

    def answer_begins(self, status: int, headers: Headers, length: int) -> None:
        self.status, self.headers = status, headers

    def answer_body(self, data: bytes, last: bool) -> None:
        self._size += len(data)
        self._pieces.append(data)
        if self._size > MAX_BYTES:
            self.cancel()
            self._fail("the answer is too long")

    def answer_ends(self) -> None:
        self._connection = None
        if not self.done.done():
            self.done.set_result(b"".join(self._pieces))

    def broken(self, reason: str, *, stale: bool) -> None:
        self._connection = None
        self._fail(reason)

    def backend_slow(self, slow: bool) -> None:
        pass

    def cancel(self) -> None:
        self._cancelled = True
        if self._connection is not None:
            self._connection.drop()
            self._connection = None

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(OSError(reason))


async def get(backend: Backend, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and body of `path` at `backend`, through its pool.

    Raises:
        OSError: if there was no complete answer within `timeout` s (`TimeoutError` is one).
    """
    found = await fetch(backend, path, timeout)
    return found.status, found.body


async def fetch(
    backend: Backend, path: str, timeout: float, *, json: bytes | None = None, headers: bytes = b""
) -> Fetched:
    """The answer to a GET of `path`, or to a POST of `json`.

    Args:
        backend: through whose pool it goes.
        path: behind the backend's prefix.
        timeout: s.
        json: the body of a POST.
        headers: further header lines, each with its line end.

    Raises:
        OSError: if there was no complete answer within `timeout` s (`TimeoutError` is one).
    """
    method = b"GET " if json is None else b"POST "
    head = method + backend.prefix + path.encode() + b" HTTP/1.1\r\nHost: " + backend.authority + b"\r\n"
    if backend.authorization:
        head += b"Authorization: " + backend.authorization + b"\r\n"
    if json is not None:
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(json)
    request = _Fetch(head + headers + b"User-Agent: fairlead\r\nAccept: */*\r\n\r\n" + (json or b""))
    backend.pool.connect(request)
    try:
        async with asyncio.timeout(timeout):
            body = await request.done
    finally:
        request.cancel()
    return Fetched(request.status, request.headers, body)
