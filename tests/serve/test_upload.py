"""Bodies on their way up, without sockets; with them: `test_gateway.py`, `test_faults.py`, `test_edge.py`."""

from typing import cast

import pytest

from fairlead.serve.request import Request
from fairlead.serve.upload import Upload
from fairlead.serve.upstream import UpstreamConnection

HEAD = b"POST / HTTP/1.1\r\n"


class Client:
    """Whether it is read from."""

    peer = b"127.0.0.1"
    secure = False

    def __init__(self) -> None:
        self.reading = True

    def write(self, data: bytes) -> None:
        raise AssertionError("nothing is answered here")

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def answered(self, request: Request) -> None:
        raise AssertionError("nothing is answered here")

    def cut(self, *, visible: bool) -> None:
        raise AssertionError("nothing is answered here")


class Up:
    """What a backend was sent; a slow one wants no more after its first piece."""

    def __init__(self, slow_for: Client | None = None) -> None:
        self.sent: list[bytes] = []
        self.request_complete = False
        self._slow_for = slow_for

    def write(self, data: bytes) -> None:
        self.sent.append(data)
        if self._slow_for is not None:
            self._slow_for.read(False)


def post(length: int, method: bytes = b"POST") -> tuple[Client, Request]:
    client = Client()
    request = Request(client)
    request.method, request.length = method, length
    return client, request


def begin(upload: Upload, up: Up) -> UpstreamConnection:
    connection = cast(UpstreamConnection, up)
    upload.begin(HEAD, connection)
    return connection


@pytest.mark.parametrize("length", [6, -1])
def test_a_body_that_is_there_is_sent_in_one_piece_with_its_length_and_can_be_sent_again(length: int) -> None:
    _, request = post(length)
    upload = Upload(request, 100)
    assert not upload.take(b"abc", None) and not upload.take(b"def", None)
    request.complete = True
    assert upload.kept() == b"abcdef"
    for _ in range(2):
        up = Up()
        begin(upload, up)
        assert up.sent == [HEAD + b"Content-Length: 6\r\n\r\nabcdef"]
        assert up.request_complete and upload.here
    upload.replace(b"another")
    begin(upload, up)
    assert up.sent[1] == HEAD + b"Content-Length: 7\r\n\r\nanother"


@pytest.mark.parametrize(("method", "line"), [(b"POST", b"Content-Length: 0\r\n"), (b"GET", b"")])
def test_where_there_is_no_body_only_a_post_says_so(method: bytes, line: bytes) -> None:
    _, request = post(0, method)
    request.complete = True
    upload, up = Upload(request, 100), Up()
    begin(upload, up)
    assert up.sent == [HEAD + line + b"\r\n"]
    assert upload.here and upload.kept() == b""


@pytest.mark.parametrize("length", [30, -1])
def test_a_large_body_is_passed_on_as_it_comes_and_cannot_be_sent_again(length: int) -> None:
    _, request = post(length)
    upload, up = Upload(request, 10), Up()
    assert upload.take(b"a" * 8, None) is (length == 30)  # as far as is known
    assert upload.take(b"b" * 8, None)
    assert upload.kept() == b"a" * 8 + b"b" * 8 and upload.here
    connection = begin(upload, up)
    assert not upload.here and not up.request_complete
    upload.take(b"c" * 14, connection)
    upload.finish(connection)
    assert up.request_complete and upload.size == 30
    if length == 30:
        assert b"".join(up.sent) == HEAD + b"Content-Length: 30\r\n\r\n" + b"a" * 8 + b"b" * 8 + b"c" * 14
    else:
        assert up.sent == [
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            b"10\r\naaaaaaaabbbbbbbb\r\n",
            b"e\r\n" + b"c" * 14 + b"\r\n",
            b"0\r\n\r\n",
        ]


def test_what_is_still_here_can_be_sent_again_until_more_comes() -> None:
    _, request = post(12)
    upload = Upload(request, 10)
    upload.take(b"a" * 10, None)
    begin(upload, Up())
    again = begin(upload, Up())
    assert upload.here
    upload.take(b"bb", again)
    assert not upload.here


def test_a_client_waits_while_its_body_cannot_be_passed_on() -> None:
    client, request = post(100)
    upload = Upload(request, 10)
    upload.take(b"a" * 20, None)
    assert client.reading
    upload.take(b"a", None)
    assert not client.reading
    begin(upload, Up())
    assert client.reading
    begin(upload, Up(slow_for=client))
    assert not client.reading
