"""What a gateway adds: latency and CPU per request, ours and the public ones, one after the other in one run.

    python benchmarks/gateway_overhead.py --json overhead.json

Backends answer at once, so that what is measured is the gateway. The gateway is pinned to one core, client
and backends to the other. Three kinds of requests: a small JSON answer, the same with a prompt of 16 kB, and
a stream of 20 events. `cpu ms` is the processor time of the gateway per request with 16 connections, `rps`
how many it served; `added` the time of one request at a time, less that of the same request sent to a
backend directly (for streams: until the first event), as median and 99th percentile. Rounds alternate
between the gateways and the best round of each counts, because other programs on the machine only ever make
it slower.

Ours decides with a policy network: `--policy FILE.onnx`, or an untrained one of the default size (the time
does not depend on the weights), which needs the `train` extra. `ours (least_work)` decides by a heuristic,
`copy` a bare copying proxy on the same libraries: the floor.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httptools
import uvloop
from gateways import PUBLIC, cpu_seconds, free_port, install, running, say, wait_until_it_serves

from fairlead.policy.export import export_onnx

KINDS = ("json", "json-16k", "sse")
PEERS = {"smg": "random", "sglang-router": "random", "vllm-router": "random"}
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


class Asker(asyncio.Protocol):
    """A client that asks again as soon as it is answered."""

    def __init__(self, request: bytes, times: list[float], end: bytes, first: bytes) -> None:
        """`end` ends an answer; the time until `first` is noted."""
        self.request, self.times, self.end, self.first = request, times, end, first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self.seen, self.noted = b"", False
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Note the time; ask again at the end."""
        self.seen += data
        if not self.noted and self.first in self.seen:
            self.noted = True
            self.times.append(time.perf_counter() - self.began)
        if self.seen.endswith(self.end):
            self._ask()


async def ask(port: int, kind: str, connections: int, seconds: float) -> list[float]:
    """Times in s until the answer (for streams: its first event), from all connections."""
    prompt = "x" * (16_000 if kind == "json-16k" else 60)
    content = {"model": MODEL, "prompt": prompt, "max_tokens": 20, "stream": kind == "sse"}
    body = json.dumps(content).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    request = head + b"Accept: */*\r\nUser-Agent: overhead\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    end, first = (b"0\r\n\r\n", b"data:") if kind == "sse" else (b'"completion_tokens": 2}}', b'"usage"')
    times: list[float] = []
    loop = asyncio.get_running_loop()
    transports = [
        (await loop.create_connection(lambda: Asker(request, times, end, first), "127.0.0.1", port))[0]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for transport in transports:
        transport.abort()
    return times


def quantile(times: list[float], share: float) -> float:
    """In ms."""
    return sorted(times)[int(share * (len(times) - 1))] * 1e3 if times else float("nan")


def measure(port: int, pid: int, direct: int, seconds: float) -> dict[str, dict[str, float]]:
    """All kinds of requests through one gateway."""
    result = {}
    for kind in KINDS:
        uvloop.run(ask(port, kind, 16, 0.5))
        before = cpu_seconds(pid)
        began = time.perf_counter()
        busy = uvloop.run(ask(port, kind, 16, seconds))
        took = time.perf_counter() - began
        cpu = cpu_seconds(pid) - before
        # Direct and proxied in turns, so that both meet the same machine.
        alone: list[float] = []
        straight: list[float] = []
        for _ in range(4):
            alone += uvloop.run(ask(port, kind, 1, seconds / 8))
            straight += uvloop.run(ask(direct, kind, 1, seconds / 8))
        result[kind] = {
            "cpu_ms": cpu / max(1, len(busy)) * 1e3,
            "requests_per_s": len(busy) / took,
            "added_p50_ms": quantile(alone, 0.5) - quantile(straight, 0.5),
            "added_p99_ms": quantile(alone, 0.99) - quantile(straight, 0.99),
        }
    return result


def better(a: dict[str, Any] | None, b: dict[str, Any]) -> dict[str, Any]:
    """The best of two rounds, number by number."""
    if a is None:
        return b
    return {
        kind: {
            name: (max if name == "requests_per_s" else min)(a[kind][name], value)
            for name, value in b[kind].items()
        }
        for kind in b
    }


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--environments", type=Path, default=Path(".environments"), help="where the peers are"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="names separated by commas; empty: none")
    parser.add_argument("--policy", type=Path, help="a policy.onnx for ours")
    parser.add_argument("--seconds", type=float, default=2.0, help="of load for each number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--listen", help=argparse.SUPPRESS)
    parser.add_argument("--copy", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.listen:
        uvloop.run(listen([int(port) for port in options.listen.split(",")], options.copy))
        return
    cores = sorted(os.sched_getaffinity(0))
    gateway_core, other = str(cores[0]), cores[-1]
    os.sched_setaffinity(0, {other})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        logs = Path(folder)
        ports = [free_port() for _ in range(4)]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        this = [sys.executable, __file__]
        listening = ",".join(map(str, ports))
        backends = stack.enter_context(running([*this, "--listen", listening], logs / "backends.log"))
        wait_until_it_serves(urls[0], MODEL, backends, logs / "backends.log")
        policy = options.policy
        if policy is None:
            from fairlead.policy.network import RouterNetwork

            policy = logs / "untrained.onnx"
            export_onnx(RouterNetwork(), policy, config={}, training={})
        pin = ["taskset", "-c", gateway_core]
        serve = [*pin, sys.executable, "-m", "fairlead", "serve", "--set", "logs.requests=false"]
        for url in urls:
            serve += ["--backend", url]
        commands = {
            "ours (network)": lambda port: [*serve, "--policy", str(policy), "--port", str(port)],
            "ours (least_work)": lambda port: [*serve, "--policy", "least_work", "--port", str(port)],
            "copy": lambda port: [*pin, *this, "--listen", str(port), "--copy", str(ports[0])],
        }
        for name in filter(None, options.peers.split(",")):
            root = install(name, options.environments)

            def peer(port: int, name: str = name, root: Path = root) -> list[str]:
                return [*pin, *PUBLIC[name].command(root, PEERS[name], port, urls)]

            commands[f"{name} ({PEERS[name]})"] = peer
        children = {}
        for name, command in commands.items():
            port = free_port()
            log = logs / f"{name}.log"
            child = stack.enter_context(running(command(port), log))
            wait_until_it_serves(f"http://127.0.0.1:{port}", MODEL, child, log)
            children[name] = (port, child.pid)
        best: dict[str, Any] = {}
        for number in range(options.rounds):
            for name, (port, pid) in children.items():
                say(f"round {number + 1} of {options.rounds}: {name}")
                best[name] = better(best.get(name), measure(port, pid, ports[0], options.seconds))
    print(f"{'gateway':24}{'request':10}{'cpu ms':>9}{'rps':>9}{'added p50 ms':>14}{'added p99 ms':>14}")
    for kind in KINDS:
        for name in children:
            row = best[name][kind]
            print(
                f"{name:24}{kind:10}{row['cpu_ms']:9.4f}{row['requests_per_s']:9.0f}"
                f"{row['added_p50_ms']:14.3f}{row['added_p99_ms']:14.3f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"cores": len(cores), "results": best}, indent=2))


if __name__ == "__main__":
    main()
