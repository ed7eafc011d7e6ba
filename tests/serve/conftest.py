"""A gateway and its backends on real sockets, all on one event loop; clients that speak raw HTTP."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from fairlead.serve.server import Server
from fairlead.serve.settings import parse_settings

METRICS = """# HELP vllm:num_requests_running ...
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}
vllm:num_preemptions_total{{engine="0",model_name="m"}} {preemptions}
vllm:cache_config_info{{block_size="16",num_gpu_blocks="1000"}} 1.0
"""


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, complete: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.complete = complete

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        return [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]


class Client:
    """One connection to the gateway (or to anything)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, **options: Any) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(
        self,
        path: str = "/v1/completions",
        body: Any = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        status = int((await self.reader.readuntil(b"\r\n")).split()[1])
        headers: dict[str, str] = {}
        while (line := (await self.reader.readuntil(b"\r\n")).strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        return status, headers

    async def answer(self, *, head_only: bool = False) -> Answer:
        status, headers = await self.head()
        while status == 100:
            status, headers = await self.head()
        body, complete = b"", True
        try:
            if head_only or status == 204:
                pass
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                while True:
                    piece = await self.chunk()
                    if not piece:
                        break
                    body += piece
            else:
                body = await self.reader.read()
        except asyncio.IncompleteReadError as error:
            body, complete = body + error.partial, False
        return Answer(status, headers, body, complete)

    async def chunk(self) -> bytes:
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return data

    async def closed(self) -> bool:
        """Whether the other side has closed; waits for it."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        transport: Any = self.writer.transport
        transport.abort()


class Backend:
    """A small vLLM: answers at once or as it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.ended = 0
        """Requests under /v1 that were answered completely."""
        self.cancelled = 0
        """Connections that closed in mid-answer."""
        self.connections = 0
        self.behave: Callable[[Backend, Client, Any], Awaitable[bool]] | None = None
        """Answers instead; returns whether the connection is kept."""
        self.healthy = True
        self.models = ["m"]
        self.metrics = {"running": 1.0, "waiting": 2.0, "usage": 0.25, "preemptions": 0.0}
        self.raw_metrics: bytes | None = None
        self.headers: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        """Where given, answers under /v1 wait for it."""
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[Client] = set()

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=2**22, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As after kill -9: listening ends, connections are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self._clients):
            client.reset()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(reader, writer)
        self._clients.add(client)
        self.connections += 1
        try:
            while await self._one(client):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._clients.discard(client)
            writer.close()

    async def _one(self, client: Client) -> bool:
        line = await client.reader.readuntil(b"\r\n")
        method, path, _ = line.decode().split(" ")
        headers: dict[str, str] = {}
        while (line := (await client.reader.readuntil(b"\r\n")).strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = b""
        if "content-length" in headers:
            body = await client.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while piece := await client.chunk():
                body += piece
        if path == "/health":
            self.plain(client, 200 if self.healthy else 503, b"")
            return True
        if path == "/metrics":
            text = METRICS.format(**self.metrics).encode() if self.raw_metrics is None else self.raw_metrics
            self.plain(client, 200, text, "text/plain")
            return True
        if path == "/v1/models":
            cards = [{"id": model, "object": "model"} for model in self.models]
            self.plain(client, 200, json.dumps({"object": "list", "data": cards}).encode())
            return True
        self.requests.append((method, path, headers, body))
        try:
            asked = json.loads(body) if body else {}
        except ValueError:
            self.plain(client, 400, b'{"error":"invalid JSON"}')
            return True
        if self.behave is not None:
            kept = await self.behave(self, client, asked)
        else:
            kept = await self.generate(client, asked)
        if kept:
            await client.writer.drain()
            self.ended += 1
        return kept

    def plain(self, client: Client, status: int, body: bytes, kind: str = "application/json") -> None:
        head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        client.send("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    async def generate(self, client: Client, asked: Any) -> bool:
        """Answers `max_tokens` tokens; as events if asked to."""
        if self.gate is not None:
            waiting = asyncio.ensure_future(self.gate.wait())
            gone = asyncio.ensure_future(client.reader.read(1))
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                self.cancelled += 1
                return False
            gone.cancel()
            await asyncio.wait({gone})
        count = asked.get("max_tokens", 4) if isinstance(asked, dict) else 4
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        if not isinstance(asked, dict) or not asked.get("stream"):
            text = {"id": self.name, "choices": [{"text": " x" * count}], "usage": usage}
            self.plain(client, 200, json.dumps(text).encode())
            return True
        self.begin_stream(client)
        for i in range(count):
            self.event(client, {"id": self.name, "choices": [{"text": f" {i}"}]})
            await asyncio.sleep(0)
        if (asked.get("stream_options") or {}).get("include_usage"):
            self.event(client, {"id": self.name, "choices": [], "usage": usage})
        self.event(client, "[DONE]")
        client.send(b"0\r\n\r\n")
        return True

    def begin_stream(self, client: Client) -> None:
        client.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def event(self, client: Client, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        data = f"data: {text}\n\n".encode()
        client.send(b"%x\r\n%b\r\n" % (len(data), data))


class World:
    """A running gateway with its backends."""

    def __init__(self, backends: list[Backend], server: Server) -> None:
        self.backends = backends
        self.server = server
        self.gateway = server.gateway
        self.port = server.port
        self.clients: list[Client] = []

    async def client(self, port: int | None = None, **options: Any) -> Client:
        client = await Client.open(port or self.port, **options)
        self.clients.append(client)
        return client

    async def ask(self, path: str = "/v1/completions", body: Any = None, **options: Any) -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        client.request(path, body, **options)
        answer = await client.answer(head_only=options.get("method") == "HEAD")
        client.close()
        return answer

    async def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Wait for something that is about to happen."""
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{what} did not happen in 10 s")

    @property
    def answered(self) -> int:
        return sum(self.gateway.requests.values())


PROMPT = {"model": "m", "prompt": "Once upon a time", "max_tokens": 4}


@pytest.fixture
def play() -> Callable[..., None]:
    """`play(scene, backends=2, **settings)`: run the coroutine function `scene(world)` against a gateway."""

    def run(
        scene: Callable[[World], Awaitable[None]],
        backends: int = 2,
        before: Callable[[list[Backend]], None] | None = None,
        per_backend: dict[str, Any] | None = None,
        clean: bool = True,
        limit_s: float = 20,
        **settings: Any,
    ) -> None:
        async def main() -> None:
            there = [Backend(f"b{i}") for i in range(backends)]
            for each in there:
                await each.start()
            if before is not None:
                before(there)
            content: dict[str, Any] = {
                "port": 0,
                "backends": [{"url": each.url, "name": each.name, **(per_backend or {})} for each in there],
                "policy": {"router": "least_work"},
                "logs": {"requests": False},
                "health": {"interval": 0.05, "slow_return_s": 0.0, "eject_s": 0.2},
                "scrape": {"interval": 0.05},
            }
            for key, value in settings.items():
                if isinstance(value, dict) and key in content:
                    content[key] = {**content[key], **value}
                else:
                    content[key] = value
            server = Server(parse_settings(content, "test"))
            await server.start()
            world = World(there, server)
            try:
                await asyncio.wait_for(scene(world), limit_s)
                if clean:  # whatever happened, nothing is left behind
                    for client in world.clients:
                        client.close()
                    await world.until(lambda: not server.gateway.exchanges, "the end of all exchanges")
                    assert not server.gateway.ledger.entries
                    assert not server.gateway.prefixes._memory.sent_refs.any()
                    assert not server.gateway.queue
                    assert all(each.in_flight == 0 for each in server.gateway.backends)
            finally:
                await server.close()
                for each in there:
                    await each.stop()
                await asyncio.sleep(0.01)

        uvloop.run(main())

    return run


@pytest.fixture
def prompt() -> dict[str, Any]:
    return dict(PROMPT)
