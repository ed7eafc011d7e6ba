"""Answers that the gateway gives itself."""

from collections.abc import Callable

from fairlead.serve.messages import answer
from fairlead.serve.request import Request


class LocalAnswer:
    """An answer of the gateway's own: given when the whole request has been read."""

    def __init__(
        self, request: Request, make: Callable[[], tuple[int, bytes, bytes]], request_id: bytes
    ) -> None:
        """`make` gives status, content type and body when the time has come."""
        self._request = request
        self._make = make
        self._id = request_id

    def body(self, data: bytes) -> None:
        """Not read."""

    def end(self) -> None:
        """Answer."""
        request = self._request
        status, content_type, body = self._make()
        headers = [(b"X-Request-Id", self._id)]
        if status == 401:
            headers.append((b"WWW-Authenticate", b"Bearer"))
        request.connection.write(
            answer(
                status,
                body,
                content_type=content_type,
                headers=headers,
                close=request.close or not request.complete,
                head_only=request.method == b"HEAD",
            )
        )
        request.connection.answered(request)

    def client_left(self) -> None:
        """Nothing was done."""

    def client_slow(self, slow: bool) -> None:
        """It is small."""
