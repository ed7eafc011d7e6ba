"""Our gateway and the public ones before the same emulated cluster, on the same arrivals.

    python benchmarks/gateways.py --scenario chat-unequal --load 0.7 --json gateways.json

Each of the public gateways (`smg`, `sglang-router`, `vllm-router`, pinned, from PyPI) is installed into an
environment of its own below `--environments`. One gateway after the other, with one policy after the other,
stands before a fresh emulator and is sent the same requests at the same times; prompts are unlike each other,
so that no cache of prefixes can help. Our gateway is told what the scenario declares about its replicas, in
its settings; the others have no place for it. The output lengths are known to the emulator alone. `simulated`
repeats our routers in the simulator on the same requests: the difference is what the real world adds.

The emulator, the gateway and the client share this machine's cores. `behind ms` says how late the client sent
its requests (p99): where it is not small, neither are the errors of everything else. No run begins that would
not end within `--minutes`.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import uvloop
import yaml

from fairlead.errors import FairleadError
from fairlead.evaluate.live import LiveRun, replay
from fairlead.evaluate.tournament import simulate_once
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.metrics import summarise
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, generate, load_scenario

READY_S = 60.0
BETWEEN_RUNS_S = 15.0
"""What a run takes besides its requests: two processes start, the last answers end."""
SHOWN = ("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "e2e_mean_s", "e2e_p50_s", "e2e_p99_s", "imbalance")


@dataclass(frozen=True)
class Gateway:
    """A gateway from PyPI."""

    package: str
    policies: tuple[str, ...]
    """All that can run without further services."""
    command: Callable[[Path, str, int, Sequence[str]], list[str]]
    """Of its environment, the policy, the port and the backends."""


def _vllm_router(root: Path, policy: str, port: int, backends: Sequence[str]) -> list[str]:
    options = ["--policy", policy, "--port", str(port), "--prometheus-port", str(free_port())]
    return [str(root / "bin" / "vllm-router"), *options, "--log-level", "warning", "--worker-urls", *backends]


def _sglang_router(root: Path, policy: str, port: int, backends: Sequence[str]) -> list[str]:
    options = ["--policy", policy, "--port", str(port), "--prometheus-port", str(free_port())]
    program = str(root / "bin" / "sglang-router")
    return [program, "launch", *options, "--log-level", "warn", "--worker-urls", *backends]


def _smg(root: Path, policy: str, port: int, backends: Sequence[str]) -> list[str]:
    options = ["--policy", policy, "--port", str(port), "--prometheus-port", str(free_port())]
    options += ["--backend", "vllm", "--log-level", "warn"]
    return [str(root / "bin" / "smg"), "launch", *options, "--worker-urls", *backends]


PUBLIC = {
    "smg": Gateway(
        "smg==1.13.0",
        (
            *("random", "round_robin", "power_of_two", "least_load", "cache_aware"),
            *("consistent_hashing", "prefix_hash"),
        ),
        _smg,
    ),
    "sglang-router": Gateway(
        "sglang-router==0.3.2", ("random", "round_robin", "power_of_two", "cache_aware"), _sglang_router
    ),
    "vllm-router": Gateway(
        "vllm-router==0.1.17",
        (
            *("random", "round_robin", "power_of_two", "cache_aware"),
            *("consistent_hash", "sticky_least_loaded"),
        ),
        _vllm_router,
    ),
}
OURS = "fairlead"


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install(name: str, environments: Path) -> Path:
    """The environment of a public gateway, made if it is not there."""
    root = environments / name
    stamp = root / ".installed"
    if not stamp.is_file() or stamp.read_text() != PUBLIC[name].package:
        say(f"installing {PUBLIC[name].package}")
        venv.create(root, with_pip=True, clear=True)
        pip = [str(root / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, PUBLIC[name].package], check=True)
        stamp.write_text(PUBLIC[name].package)
    return root


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process in a group of its own, ended at last with all its children."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def wait_until_it_serves(url: str, model: str, child: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once a completion has been answered."""
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
    raise FairleadError(f"it does not serve; its last words: {log.read_text(errors='replace')[-600:]}")


def cpu_seconds(pid: int) -> float:
    """What a process has taken, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    gateway: str, policy: str, scenario: Scenario, requests: Requests, environments: Path, speed: float
) -> dict[str, Any]:
    """One gateway with one policy before a fresh emulator."""
    logs = environments / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    emulator_log = logs / "emulator.log"
    first = free_ports_in_a_row(scenario.num_replicas)
    backends = [f"http://127.0.0.1:{first + i}" for i in range(scenario.num_replicas)]
    log = logs / f"{gateway}-{Path(policy).name}.log"
    port = free_port()
    fairlead = [sys.executable, "-m", "fairlead"]
    emulate = [*fairlead, "emulate", "--scenario", scenario.name, "--port", str(first), "--speed", str(speed)]
    if gateway == OURS:
        router, _, favor = policy.partition("@")
        settings = logs / "fairlead.yaml"
        settings.write_text(yaml.safe_dump(our_settings(scenario, backends, speed)))
        command = [*fairlead, "serve", "--config", str(settings), "--policy", router, "--port", str(port)]
        command += ["--favor", favor] if favor else []
    else:
        command = PUBLIC[gateway].command(install(gateway, environments), policy, port, backends)
    with running(emulate, emulator_log) as emulator:
        for url in backends:
            wait_until_it_serves(url, scenario.model, emulator, emulator_log)
        with running(command, log) as child:
            url = f"http://127.0.0.1:{port}"
            wait_until_it_serves(url, scenario.model, child, log)
            before = cpu_seconds(child.pid), cpu_seconds(emulator.pid)
            live = uvloop.run(replay(url, requests, model=scenario.model, lengths="hint", speed=speed))
            gateway_cpu_s = cpu_seconds(child.pid) - before[0]
            emulator_cpu_s = cpu_seconds(emulator.pid) - before[1]
    return {
        "gateway": gateway,
        "policy": policy,
        "failed": live.failed,
        "first_error": next((error for error in live.errors if error), ""),
        "behind_ms": float(np.percentile(live.lag_s, 99)) / speed * 1e3,
        "gateway_cpu_ms_per_request": gateway_cpu_s / len(requests) * 1e3,
        "emulator_cpu_s": emulator_cpu_s,
        **metrics(live, scenario),
    }


def our_settings(scenario: Scenario, backends: Sequence[str], speed: float) -> dict[str, Any]:
    """What the scenario declares about its replicas, as settings of our gateway."""
    facts = build_fleet(scenario).static.tolist()
    return {
        "logs": {"requests": False},
        "backends": [
            {
                "url": url,
                "speed": relative,
                "prefill_tokens_per_s": prefill * speed,
                "decode_iteration_s": decode_s / speed,
                "kv_capacity_tokens": int(tokens),
                "max_num_seqs": int(seqs),
            }
            for url, (relative, prefill, decode_s, tokens, seqs) in zip(backends, facts, strict=True)
        ],
    }


def metrics(live: LiveRun, scenario: Scenario) -> dict[str, float]:
    """Those of a run without failures; none otherwise."""
    if live.failed:
        return {}
    return summarise(live.outcomes(scenario.num_replicas), scenario.slo.ttft_s, scenario.slo.tpot_s)


def free_ports_in_a_row(count: int) -> int:
    """The first of as many free ports that follow each other."""
    while True:
        first = free_port()
        if first + count > 65535:
            continue
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, best mean E2E first."""
    head = [
        "gateway",
        "policy",
        *(name.removesuffix("_s") for name in SHOWN),
        "cpu ms/req",
        "behind ms",
        "failed",
    ]
    lines = [head]
    for row in sorted(rows, key=lambda row: row.get("e2e_mean_s", float("inf"))):
        cells = [f"{row[name]:.3f}" if name in row else "-" for name in SHOWN]
        costs = [f"{row[k]:.2f}" if k in row else "-" for k in ("gateway_cpu_ms_per_request", "behind_ms")]
        lines.append([row["gateway"], row["policy"], *cells, *costs, str(row.get("failed", "-"))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def wanted(texts: Sequence[str], ours: Sequence[str]) -> list[tuple[str, str]]:
    """(gateway, policy) pairs: ours, then those after the colon of each public gateway, or all it has."""
    pairs = [(OURS, policy) for policy in ours]
    for text in texts:
        name, _, policies = text.partition(":")
        if name not in PUBLIC:
            raise SystemExit(f"unknown gateway {name!r}; known: {', '.join(PUBLIC)}")
        pairs += [(name, policy) for policy in (policies.split("+") if policies else PUBLIC[name].policies)]
    return pairs


def main() -> None:
    """Parses the options and runs them all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--environments", type=Path, default=Path(".venv-gateways"))
    parser.add_argument("--scenario", default="chat-unequal")
    parser.add_argument("--load", type=float, default=0.7, help="fraction of the cluster's capacity")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="of the emulator")
    parser.add_argument(
        "--ours", nargs="*", default=["least_work", "lor"], help="routers, policies as FILE.onnx@DIAL"
    )
    parser.add_argument("--gateways", nargs="*", default=list(PUBLIC), help="NAME or NAME:POLICY+POLICY")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    scenario = load_scenario(options.scenario)
    rate = options.load * capacity_rps(scenario, measuring=lambda: say("measuring the capacity ..."))
    requests = generate(scenario, requests=options.requests, rate=rate, seed=options.seed, split="evaluate")
    run_s = float(requests.arrival_s[-1]) / options.speed + BETWEEN_RUNS_S
    end = time.monotonic() + 60 * options.minutes
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for gateway, policy in wanted(options.gateways, options.ours):
        if time.monotonic() + run_s > end:
            left_out.append(f"{gateway}:{policy}")
            continue
        say(f"{gateway} {policy} ({run_s:.0f} s)")
        try:
            rows.append(
                measure(gateway, policy, scenario, requests, options.environments.resolve(), options.speed)
            )
        except FairleadError as error:
            say(f"  {error}")
            rows.append({"gateway": gateway, "policy": policy, "first_error": str(error)})
    for policy in [row["policy"] for row in rows if row["gateway"] == OURS and "e2e_mean_s" in row]:
        router, _, favor = policy.partition("@")
        dial = float(favor) if favor else None
        simulated = simulate_once(scenario, options.load, router, options.requests, options.seed, dial)
        rows.append({"gateway": "simulated", "policy": policy, **simulated})
    result = {
        "scenario": scenario.name,
        "load": options.load,
        "rate_rps": rate,
        "requests": options.requests,
        "seed": options.seed,
        "speed": options.speed,
        "left_out": left_out,
        "rows": rows,
    }
    print(table(rows))
    if left_out:
        say(f"left out for lack of time: {', '.join(left_out)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
