"""The body of a request on its way to a backend: kept while it may be sent again, then only passed on."""

from fairlead.serve.request import Request
from fairlead.serve.upstream import UpstreamConnection


class Upload:
    """One body, from its first piece to the last attempt to send it."""

    __slots__ = ("_keep", "_parts", "_request", "size")

    def __init__(self, request: Request, keep: int) -> None:
        """That of `request`; about `keep` bytes of it are kept, the rest is passed on as it comes."""
        self._request = request
        self._keep = keep
        self._parts: list[bytes] = []
        self.size = 0
        """Bytes that have come."""

    def take(self, data: bytes, connection: UpstreamConnection | None) -> bool:
        """A piece has come: pass it on over `connection`, or keep it until there is one.

        Returns:
            Whether the body is too large to be kept as a whole.
        """
        self.size += len(data)
        if connection is not None:
            self._parts.clear()  # it cannot be sent again from now on
            self._pass_on(data, connection)
        else:
            self._parts.append(data)
            if self.size > 2 * self._keep:
                self._request.connection.read(False)
        return self.size > self._keep or self._request.length > self._keep

    def finish(self, connection: UpstreamConnection) -> None:
        """All of it has been passed on over `connection`."""
        if self._request.length < 0:
            connection.write(b"0\r\n\r\n")
        connection.request_complete = True

    @property
    def here(self) -> bool:
        """Whether it can be sent (again) from its beginning."""
        return bool(self._parts) or not self.size

    def kept(self) -> bytes:
        """What is kept of it, in one piece."""
        parts = self._parts
        if len(parts) > 1:
            parts[:] = [b"".join(parts)]
        return parts[0] if parts else b""

    def replace(self, body: bytes) -> None:
        """Send `body` instead."""
        self._parts = [body]

    def begin(self, head: bytes, connection: UpstreamConnection) -> None:
        """Send what has come of it behind `head`, which lacks the line that says how long it is."""
        request, body = self._request, self.kept()
        if request.complete:
            length = len(body)
            connection.request_complete = True
        else:
            length = request.length
            if self.size > self._keep:
                self._parts.clear()
            request.connection.read(True)
        # In one piece: each write is a system call.
        if length < 0:
            connection.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
            if body:
                self._pass_on(body, connection)
        elif length or request.method == b"POST":
            connection.write(b"%bContent-Length: %d\r\n\r\n%b" % (head, length, body))
        else:
            connection.write(head + b"\r\n")

    def _pass_on(self, data: bytes, connection: UpstreamConnection) -> None:
        connection.write(data if self._request.length >= 0 else b"%x\r\n%b\r\n" % (len(data), data))
