"""Many streams held open at once through one gateway process, and its memory over many requests.

    python benchmarks/gateway_streams.py --streams 10000 --json streams.json

Two backend processes hold every stream open until all have begun; then each stream gets `--events` more,
`--pause` seconds apart, and its end. Reported are the streams that were open at the same moment, those that
came complete, the gateway's own count of requests and answers, its memory (resident; at its largest: VmHWM)
and the processor time per stream and per event. Then `--requests` small ones follow on 32 connections: memory
after the first tenth, and at the end. A gateway needs two open files per stream: where the limit of open
files is lower, fewer streams are opened, and `limit_note` says so.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import httptools
import uvloop
import yaml

from fairlead.serve.descriptors import most_connections, raise_limit

BACKENDS = 2
CONNECTIONS = 32
OPENING = 200
"""Streams that are being opened at the same time."""
WARM = 0.1
"""Share of the requests after which memory is read first."""
_CARD = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
_EVENT = b"data: %b\n\n" % json.dumps(_CARD | {"choices": [{"index": 0, "text": " token"}]}).encode()
_EVENT_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_USAGE = {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2}
_WHOLE = json.dumps(
    _CARD | {"choices": [{"index": 0, "text": " two words", "finish_reason": "length"}], "usage": _USAGE}
).encode()


def _answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body)) + body


class Holder(asyncio.Protocol):
    """A backend that begins streams and keeps them open until it is told to go on."""

    held: ClassVar["set[Holder]"] = set()
    """Streams under way in this process."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        """They left."""
        self.held.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A new request."""
        self.path = self.body = b""

    def on_url(self, url: bytes) -> None:
        """Its path."""
        self.path += url

    def on_body(self, body: bytes) -> None:
        """Its body."""
        self.body += body

    def on_message_complete(self) -> None:
        """Answer, or begin to."""
        if self.path == b"/go":
            events, pause = json.loads(self.body)
            self.go = asyncio.get_running_loop().create_task(self._finish(events, pause))
        elif b'"stream": true' in self.body:
            self.held.add(self)
            self.transport.write(_STREAM + _EVENT_CHUNK)
        elif self.path.startswith(b"/v1/completions"):
            self.transport.write(_answer(_WHOLE))
        elif self.path == b"/v1/models":
            self.transport.write(_answer(b'{"object":"list","data":[{"id":"m","object":"model"}]}'))
        else:
            self.transport.write(_answer(b"", b"text/plain"))

    async def _finish(self, events: int, pause: float) -> None:
        streams = list(self.held)
        for event in range(events + 1):
            await asyncio.sleep(pause)
            for i, stream in enumerate(streams):
                if stream in self.held:
                    stream.transport.write(_EVENT_CHUNK if event < events else _DONE)
                if i % 100 == 99:
                    await asyncio.sleep(0)
        self.held.clear()
        self.transport.write(_answer(b"{}"))


def serve_backend(port_out: Any) -> None:
    """A backend process: tells its port, serves until it is ended."""
    raise_limit()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Holder, "127.0.0.1", 0, backlog=4096)
        port_out.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


def _request(content: dict[str, Any]) -> bytes:
    body = json.dumps({"model": "m", "prompt": "Once upon a time", "max_tokens": 4} | content).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Stream(asyncio.Protocol):
    """A client with one stream."""

    def __init__(self, opened: "asyncio.Queue[bool]") -> None:
        """`opened` hears of the first event."""
        self.opened = opened
        self.events = 0
        self.tail = b""
        self.complete = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport: Any = transport
        self.transport.write(_request({"stream": True}))

    def data_received(self, data: bytes) -> None:
        """Count events; note the end."""
        first = self.events == 0
        self.events += data.count(b'"text": " token"')
        if first and self.events:
            self.opened.put_nowait(True)
        self.tail = (self.tail + data)[-40:]
        if self.tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            self.complete.set_result(True)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Too early, unless it is complete."""
        if not self.complete.done():
            self.complete.set_result(False)
            self.opened.put_nowait(False)


class Asker(asyncio.Protocol):
    """A client that asks again as soon as it is answered, while `left` lasts."""

    def __init__(self, left: list[int], done: "asyncio.Future[None]") -> None:
        """`left` is shared: requests to be sent, good answers, other answers, clients at work."""
        self.left, self.done = left, done
        self.request = _request({})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport: Any = transport
        self.left[3] += 1
        self._ask()

    def _ask(self) -> None:
        self.seen = b""
        if self.left[0] == 0:
            self.transport.close()
            return
        self.left[0] -= 1
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """At the end of an answer, the next."""
        self.seen += data
        if self.seen.endswith(_WHOLE):
            self.left[1 if self.seen.startswith(b"HTTP/1.1 200") else 2] += 1
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        """The last one ends the phase."""
        self.left[3] -= 1
        if self.left[3] == 0 and not self.done.done():
            self.done.set_result(None)


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process now (VmRSS) or at its largest (VmHWM), MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB", status, re.M)
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask_once(port: int, request: bytes) -> bytes:
    """The body of one answer, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None
    body = await reader.readexactly(int(length[1]))
    writer.close()
    return body


async def hold_streams(
    pid: int, port: int, backends: list[int], count: int, events: int, pause: float
) -> Any:
    """Open `count` streams, have them all open at once, let them end."""
    loop = asyncio.get_running_loop()
    before, began = cpu_s(pid), time.monotonic()
    opened: asyncio.Queue[bool] = asyncio.Queue()
    streams: list[Stream] = []
    good = heard = 0
    while heard < count:
        while len(streams) < count and len(streams) - heard < OPENING:
            _, stream = await loop.create_connection(lambda: Stream(opened), "127.0.0.1", port)
            streams.append(stream)
        good += await asyncio.wait_for(opened.get(), 60)
        heard += 1
    opening_s, opening_cpu = time.monotonic() - began, cpu_s(pid) - before
    at_once = sum(not stream.complete.done() for stream in streams)
    held_mb = memory_mb(pid)
    body = json.dumps([events, pause]).encode()
    go = b"POST /go HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    before = cpu_s(pid)
    await asyncio.gather(*[ask_once(backend, go) for backend in backends])
    complete = sum(await asyncio.gather(*[stream.complete for stream in streams]))
    return {
        "streams": count,
        "begun": good,
        "open_at_once": at_once,
        "complete": complete,
        "events_expected": count * (events + 1),
        "events_seen": sum(stream.events for stream in streams),
        "opening_s": round(opening_s, 2),
        "cpu_ms_per_stream_opened": round(1000 * opening_cpu / count, 4),
        "cpu_ms_per_event": round(1000 * (cpu_s(pid) - before) / (count * (events + 1)), 4),
        "held_mb": held_mb,
    }


async def many_requests(pid: int, port: int, count: int) -> Any:
    """Memory of the gateway while `count` requests pass through."""
    loop = asyncio.get_running_loop()
    readings = []
    good = other = 0
    began = time.monotonic()
    for part in [WARM] + [(1.0 - WARM) / 9] * 9:
        left = [round(count * part), 0, 0, 0]
        done: asyncio.Future[None] = loop.create_future()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda left=left, done=done: Asker(left, done), "127.0.0.1", port)
        await done
        good, other = good + left[1], other + left[2]
        readings.append(memory_mb(pid))
    return {
        "requests": count,
        "good": good,
        "other": other,
        "seconds": round(time.monotonic() - began, 1),
        "mb_after_each_tenth": readings,
        "growth_mb": round(readings[-1] - readings[0], 1),
    }


def counted(metrics: str, name: str) -> int:
    """The sum of a counter over its labels."""
    return round(sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)", metrics, re.M)))


def run(streams: int, events: int, pause: float, requests: int) -> dict[str, Any]:
    """Start backends and gateway, measure, end them."""
    raise_limit()
    most = most_connections()
    count = min(streams, most)
    context = multiprocessing.get_context("spawn")
    backends, ports = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(BACKENDS):
            mine, theirs = context.Pipe()
            backends.append(context.Process(target=serve_backend, args=(theirs,), daemon=True))
            backends[-1].start()
            ports.append(mine.recv())
        settings = {
            "backends": [{"url": f"http://127.0.0.1:{port}", "max_num_seqs": 8192} for port in ports],
            "policy": {"router": "lor"},
        }
        config = Path(folder, "gateway.yaml")
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "fairlead", "serve", "--config", str(config), "--port", "0"]
        log = Path(folder, "requests.jsonl")
        with log.open("wb") as out:
            gateway = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE)
        try:
            assert gateway.stderr is not None
            while b'"listening"' not in (line := gateway.stderr.readline()):
                if not line:
                    raise SystemExit("the gateway did not start")
            port = int(json.loads(line)["url"].rpartition(":")[2])
            pid = gateway.pid

            async def measure() -> dict[str, Any]:
                await ask_once(port, _request({}))
                found = {"limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "idle_mb": memory_mb(pid)}
                if count < streams:
                    found["limit_note"] = f"{streams} streams need a limit of open files above {2 * streams}"
                if count:
                    held = await hold_streams(pid, port, ports, count, events, pause)
                    held["kb_per_stream"] = round(1000 * (held["held_mb"] - found["idle_mb"]) / count, 1)
                    found["held"] = held
                found["peak_mb"] = memory_mb(pid, "VmHWM")
                if requests:
                    found["growth"] = await many_requests(pid, port, requests)
                metrics = (await ask_once(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).decode()
                found["sent"] = 1 + count + requests
                found["answered"] = counted(metrics, "fairlead_requests_total")
                return found

            found = uvloop.run(measure())
        finally:
            gateway.terminate()
            gateway.communicate(timeout=60)
            for backend in backends:
                backend.terminate()
        found["logged"] = log.read_bytes().count(b"\n")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=5, help="further events of each stream")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between them")
    parser.add_argument("--requests", type=int, default=200_000, help="for the growth of memory; 0: none")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    found = run(options.streams, options.events, options.pause, options.requests)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
