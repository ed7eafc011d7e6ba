"""What a gateway adds: latency and CPU per request, ours and the public ones, in turns in one run.

    python benchmarks/gateway_overhead.py --json overhead.json

Backends answer at once, so that what is measured is the gateway. All gateways run at the same time on one
core, where those whose turn it is not are idle; client and backends have the other one. In every round, for
each kind of request, each gateway (and a backend asked directly) has a turn of one request at a time, then
one with 16 connections, a fraction of a second each, and the next round begins with another of them. So all
meet the same machine, whatever it is busy with. The kinds: a small JSON answer, the same with a prompt of
16 kB, and a stream of 20 events.

`cpu ms` is the processor time of the gateway per request with 16 connections, `rps` how many it answered;
`added` the time of one request at a time (of a stream: until its first event), less that of the same request
sent to a backend directly in the same round, as median and 99th percentile. The table shows medians over the
rounds. The second one compares ours with each of the others: the ratio of processor times, and of the times
until the answer (not of what was added: that may be nothing, or less), as the geometric mean over the rounds
with a 95 % interval (Student's t over the logarithms). Both are printed as Markdown.

Ours decides with `--policy`. `ours (least_work)` decides by a heuristic, `copy` is a bare copying proxy on
the same libraries: the floor. The public ones decide at random, and by what they know of prompts.
"""

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import uvloop
from gateways import PUBLIC, free_port, install, running, say, wait_until_it_serves, wanted
from instant import MODEL
from scipy import stats

from fairlead.errors import FairleadError

KINDS = ("json", "json-16k", "sse")
PEERS = tuple(f"{name}:{policy}" for name in PUBLIC for policy in ("random", "cache_aware"))
"""The policy that reads nothing of a request, and one that does; ours reads it too."""
OURS, DIRECT = "ours (network)", "direct"
COMPARED = ("cpu_ms", "p50_ms", "p99_ms")
Rows = Mapping[str, Mapping[str, float]]
"""By gateway, then by column."""


class Turn(NamedTuple):
    """What one turn gave."""

    times: Any
    """(requests,) s until the answer; for streams until its first event."""
    seconds: float
    cpu_s: float
    """Of the gateway."""


class Asker(asyncio.Protocol):
    """A client that asks again as soon as it is answered, until it is told to stop."""

    def __init__(self, request: bytes, end: bytes, first: bytes) -> None:
        """`end` ends an answer; the time until `first` is noted."""
        self.request, self.end, self.first = request, end, first
        self.times: list[float] = []
        self.stopping = False
        self.stopped = asyncio.get_running_loop().create_future()

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
        if not self.seen.endswith(self.end):
            return
        if self.stopping:
            self.stopped.set_result(None)
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing may be lost."""
        if not self.stopped.done():
            self.stopped.set_exception(FairleadError("a gateway closed a connection in the middle"))


async def ask(port: int, kind: str, connections: int, seconds: float, pid: int | None = None) -> Turn:
    """Ask on so many connections for a while, after a fifth of that to warm up."""
    prompt = "x" * (16_000 if kind == "json-16k" else 60)
    content = {"model": MODEL, "prompt": prompt, "max_tokens": 20, "stream": kind == "sse"}
    body = json.dumps(content).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    request = head + b"Accept: */*\r\nUser-Agent: overhead\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    end, first = (b"0\r\n\r\n", b"data:") if kind == "sse" else (b'"completion_tokens": 2}}', b'"usage"')
    loop = asyncio.get_running_loop()
    askers = [
        (await loop.create_connection(lambda: Asker(request, end, first), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds / 5)
    warm = [len(asker.times) for asker in askers]
    began, cpu = time.perf_counter(), cpu_time(pid) if pid else 0.0
    await asyncio.sleep(seconds)
    for asker in askers:
        asker.stopping = True
    async with asyncio.timeout(30):
        await asyncio.gather(*[asker.stopped for asker in askers])
    took = time.perf_counter() - began
    used = cpu_time(pid) - cpu if pid else 0.0
    for asker in askers:
        asker.transport.abort()
    times = [each for asker, before in zip(askers, warm, strict=True) for each in asker.times[before:]]
    return Turn(np.array(times), took, used)


def cpu_time(pid: int) -> float:
    """What a process has taken with all its threads, user and system, to the microsecond (s).

    The number of another process's clock is what `clock_getcpuclockid(3)` makes of its id.
    """
    return time.clock_gettime((~pid << 3) | 2)


def round_of(
    ports: Mapping[str, tuple[int, int]], direct: int, kind: str, seconds: float, first: int
) -> dict[str, dict[str, float]]:
    """One kind of request through all gateways, each (port, process id), from number `first` on."""
    times: dict[str, Any] = {}
    for name in rotated([DIRECT, *ports], first):
        port = direct if name == DIRECT else ports[name][0]
        times[name] = np.quantile(uvloop.run(ask(port, kind, 1, seconds)).times, (0.5, 0.99)) * 1e3
    result = {}
    for name in rotated(list(ports), first):
        port, pid = ports[name]
        turn = uvloop.run(ask(port, kind, 16, seconds, pid))
        (p50, p99), (straight50, straight99) = times[name], times[DIRECT]
        result[name] = {
            "cpu_ms": turn.cpu_s / len(turn.times) * 1e3,
            "requests_per_s": len(turn.times) / turn.seconds,
            "p50_ms": p50,
            "p99_ms": p99,
            "added_p50_ms": p50 - straight50,
            "added_p99_ms": p99 - straight99,
        }
    return result


def rotated(names: list[str], first: int) -> list[str]:
    """The same names in the same circle, beginning elsewhere."""
    first %= len(names)
    return names[first:] + names[:first]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the ratios in paired rounds, and its 95 % interval."""
    logs = np.log(np.array(ours) / np.array(theirs))
    mean, rounds = float(logs.mean()), len(logs)
    if rounds < 2:
        return math.exp(mean), 0.0, math.inf
    half = float(stats.t.ppf(0.975, rounds - 1) * logs.std(ddof=1)) / math.sqrt(rounds)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def summary(rounds: Sequence[Mapping[str, Rows]]) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Medians over the rounds by kind and gateway, and ours compared with each of the others."""
    medians, ratios = {}, {}
    for kind, rows in rounds[0].items():
        series = {
            name: {column: [each[kind][name][column] for each in rounds] for column in row}
            for name, row in rows.items()
        }
        medians[kind] = {
            name: {column: float(np.median(values)) for column, values in columns.items()}
            for name, columns in series.items()
        }
        ratios[kind] = {
            name: {column: ratio(series[OURS][column], columns[column]) for column in COMPARED}
            for name, columns in series.items()
            if name != OURS
        }
    return medians, ratios


def tables(medians: Mapping[str, Rows], ratios: Mapping[str, Any]) -> str:
    """Both as Markdown."""
    lines = [
        "| request | gateway | cpu ms | rps | added p50 ms | added p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {name} | {row['cpu_ms']:.3f} | {row['requests_per_s']:.0f} | {row['added_p50_ms']:.3f} "
        f"| {row['added_p99_ms']:.3f} |"
        for kind, rows in medians.items()
        for name, row in rows.items()
    ]
    lines += ["", "| request | ours : | cpu | p50 | p99 |", "|---|---|---|---|---|"]
    for kind, others in ratios.items():
        for name, found in others.items():
            cells = [
                f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in (found[c] for c in COMPARED)
            ]
            lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def busy_seconds() -> float:
    """Processor time that anybody has used on this machine since it started, what its host took included."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--environments", type=Path, default=Path(".environments"), help="where the peers are"
    )
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="GATEWAY:POLICY, separated by commas; empty: none"
    )
    parser.add_argument("--policy", default="fairlead/generalist", help="of ours; or a policy.onnx")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each turn")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where to write the numbers, those of each round too")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    gateway_core, other = str(cores[0]), cores[-1]
    os.sched_setaffinity(0, {other})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        logs = Path(folder)
        ports = [free_port() for _ in range(4)]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        instant = [sys.executable, str(Path(__file__).with_name("instant.py"))]
        listening = ",".join(map(str, ports))
        backends = stack.enter_context(running([*instant, listening], logs / "backends.log"))
        wait_until_it_serves(urls[0], MODEL, backends, logs / "backends.log")
        pin = ["taskset", "-c", gateway_core]
        serve = [*pin, sys.executable, "-m", "fairlead", "serve", "--set", "logs.requests=false"]
        for url in urls:
            serve += ["--backend", url]
        commands = {
            OURS: lambda port: [*serve, "--policy", options.policy, "--port", str(port)],
            "ours (least_work)": lambda port: [*serve, "--policy", "least_work", "--port", str(port)],
            "copy": lambda port: [*pin, *instant, str(port), "--copy", str(ports[0])],
        }
        for name, policy in wanted(filter(None, options.peers.split(",")), []):
            root = install(name, options.environments)

            def peer(port: int, name: str = name, policy: str = policy, root: Path = root) -> list[str]:
                return [*pin, *PUBLIC[name].command(root, policy, port, urls)]

            commands[f"{name} ({policy})"] = peer
        children = {}
        for name, command in commands.items():
            port = free_port()
            log = logs / f"{name}.log"
            child = stack.enter_context(running(command(port), log))
            wait_until_it_serves(f"http://127.0.0.1:{port}", MODEL, child, log)
            children[name] = (port, child.pid)
        measured = [os.getpid(), backends.pid, *(pid for _, pid in children.values())]
        began, before = time.perf_counter(), busy_seconds() - sum(map(cpu_time, measured))
        rounds = []
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            rounds.append(
                {kind: round_of(children, ports[0], kind, options.seconds, number) for kind in KINDS}
            )
        others = busy_seconds() - sum(map(cpu_time, measured)) - before
        # Of an idle machine the difference of the kernel's two accounts is now and then a little below 0.
        load = max(0.0, others / (time.perf_counter() - began))
    medians, ratios = summary(rounds)
    print(tables(medians, ratios))
    print(f"\n{options.rounds} rounds, {len(cores)} cores; other programs kept {load:.2f} cores busy")
    if options.json:
        found = {"cores": len(cores), "others": load, "results": medians, "ratios": ratios, "rounds": rounds}
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
