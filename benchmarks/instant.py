"""Servers for measuring gateways: backends that answer at once, and a proxy that only copies.

    python benchmarks/instant.py 9001,9002
    python benchmarks/instant.py 8000 --copy 9001

The first line serves as backends, until it is stopped; the second one copies what comes to port 8000 to port
9001 and back.
"""

import argparse
import asyncio
import json
from typing import Any

import httptools
import uvloop

MODEL = "m"

_ANSWER = json.dumps(
    {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "text": " hello world", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2},
    }
).encode()
_EVENT = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
_EVENTS = [
    b"data: %b\n\n" % json.dumps(_EVENT | {"choices": [{"index": 0, "text": f" tok{i}"}]}).encode()
    for i in range(20)
] + [b"data: [DONE]\n\n"]
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n"


def _whole(body: bytes, kind: bytes = b"application/json") -> bytes:
    return _HEAD % (kind, b"content-length: %d" % len(body)) + body


class InstantBackend(asyncio.Protocol):
    """Answers at once; each event of a stream is a write of its own, a turn of the loop apart."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A new request."""
        self.path, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        """Its path."""
        self.path += url

    def on_body(self, body: bytes) -> None:
        """Its body."""
        self.body += body

    def on_message_complete(self) -> None:
        """Answer."""
        if b'"stream":true' in self.body.replace(b" ", b""):
            kind = b"text/event-stream"
            self.transport.write(_HEAD % (kind, b"transfer-encoding: chunked"))
            self._send(0)
        elif self.path == b"/v1/models":
            cards = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
            self.transport.write(_whole(json.dumps(cards).encode()))
        elif self.path.startswith(b"/v1/"):
            self.transport.write(_whole(_ANSWER))
        elif self.path == b"/get_model_info" or self.path == b"/server_info":
            self.transport.write(_whole(b'{"model_path": "m"}'))
        else:
            self.transport.write(_whole(b"", b"text/plain"))

    def _send(self, index: int) -> None:
        if self.transport.is_closing():
            return
        event = _EVENTS[index]
        end = b"0\r\n\r\n" if index + 1 == len(_EVENTS) else b""
        self.transport.write(b"%x\r\n%b\r\n%b" % (len(event), event, end))
        if not end:
            asyncio.get_running_loop().call_soon(self._send, index + 1)


class CopyClient(asyncio.Protocol):
    """The floor: copies a client's bytes to one backend and back, parsing both, deciding nothing."""

    def __init__(self, backend: int) -> None:
        """`backend` is its port."""
        self.backend = backend
        self.waiting: list[bytes] = []
        self.upstream: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(object())
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(
            loop.create_connection(lambda: CopyUpstream(self), "127.0.0.1", self.backend)
        )

    def data_received(self, data: bytes) -> None:
        """Copy."""
        self.parser.feed_data(data)
        if self.upstream is None:
            self.waiting.append(data)
        else:
            self.upstream.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """It left."""
        if self.upstream is not None:
            self.upstream.close()


class CopyUpstream(asyncio.Protocol):
    """The other half of the floor."""

    def __init__(self, client: CopyClient) -> None:
        """For one client."""
        self.client = client
        self.parser = httptools.HttpResponseParser(object())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.client.upstream = transport
        for data in self.client.waiting:
            self.client.upstream.write(data)

    def data_received(self, data: bytes) -> None:
        """Copy."""
        self.parser.feed_data(data)
        self.client.transport.write(data)


async def listen(ports: list[int], backend: int = 0) -> None:
    """Serve for ever: as instant backends, or as the copying proxy before the port `backend`."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(
            (lambda: CopyClient(backend)) if backend else InstantBackend, "127.0.0.1", port, backlog=1024
        )
        for port in ports
    ]
    await asyncio.gather(*[server.serve_forever() for server in servers])


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ports", help="separated by commas")
    parser.add_argument("--copy", type=int, default=0, help="the port of a backend to stand before")
    options = parser.parse_args()
    uvloop.run(listen([int(port) for port in options.ports.split(",")], options.copy))


if __name__ == "__main__":
    main()
