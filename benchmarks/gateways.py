"""Our gateway and the public ones before the same emulated cluster, on the same arrivals.

    python benchmarks/gateways.py --scenario chat-unequal --seeds 5 --minutes 240 --json gateways.json

Each of the public gateways (`smg`, `sglang-router`, `vllm-router`, pinned, from PyPI) is installed into an
environment of its own below `--environments`. One gateway after the other, with one policy after the other,
stands before a fresh emulator and is sent the same requests at the same times. Where the scenario has
sessions, prompts share their text as far as the scenario's blocks are the same, and each request names its
session as every gateway wants it: in the body (`user`) and in headers; elsewhere prompts are unlike each
other. Our gateway is told what the scenario declares about its replicas, in its settings (the others have no
place for it), and reads their metrics as often as the scenario says, in the emulator's time. The output
lengths are known to the emulator alone. `simulated` repeats our routers in the simulator on the same
requests: the difference is what the real world adds.

Every seed has arrivals of its own, which all gateways get, one after the other. Ours are compared with the
best policy of the public gateways, metric by metric: geometric means of the paired ratios over the seeds,
with 95 % intervals.
That best one is chosen by looking at the same seeds: it is, if anything, a little too good. The file
(`--json`) is written anew after every run, and a run that it holds already is not repeated.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fairlead.evaluate.statistics import compare_ratios, typical
from fairlead.evaluate.tournament import simulate_once
from fairlead.files import write_text
from fairlead.policy.catalogue import find_router
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.metrics import summarise
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, generate
from fairlead.workload.suites import load_variant

READY_S = 60.0
BETWEEN_RUNS_S = 15.0
"""What a run takes besides its requests: two processes start, the last answers end."""
Name = tuple[str, str]
"""A gateway and its policy."""
Row = dict[str, Any]
SESSION_HEADERS = ("X-Session-ID", "X-SMG-Routing-Key")
"""Where vllm-router's and smg's policies look for a request's session."""
COMPARED = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s")
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
    options += ["--assignment-mode", "min_load"]  # of new sessions, by `manual`
    program = str(root / "bin" / "sglang-router")
    return [program, "launch", *options, "--log-level", "warn", "--worker-urls", *backends]


def _smg(root: Path, policy: str, port: int, backends: Sequence[str]) -> list[str]:
    options = ["--policy", policy, "--port", str(port), "--prometheus-port", str(free_port())]
    options += ["--backend", "vllm", "--log-level", "warn", "--assignment-mode", "min_load"]
    return [str(root / "bin" / "smg"), "launch", *options, "--worker-urls", *backends]


PUBLIC = {
    "smg": Gateway(
        "smg==1.13.0",
        (
            *("random", "round_robin", "power_of_two", "least_load", "cache_aware"),
            *("consistent_hashing", "prefix_hash", "manual"),
        ),
        _smg,
    ),
    "sglang-router": Gateway(
        "sglang-router==0.3.2",
        ("random", "round_robin", "power_of_two", "cache_aware", "manual"),
        _sglang_router,
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
            live = uvloop.run(
                replay(
                    url,
                    requests,
                    model=scenario.model,
                    lengths="hint",
                    speed=speed,
                    session_headers=SESSION_HEADERS,
                )
            )
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
    """What the scenario declares about its replicas, as settings of our gateway, in seconds of the wall."""
    facts = build_fleet(scenario).static.tolist()
    return {
        "logs": {"requests": False},
        "scrape": {"interval": scenario.view.scrape_interval_s / speed},
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


def complete_seeds(rows: Sequence[Row], names: Sequence[Name]) -> list[int]:
    """The seeds that each of `names` has served without a failure."""
    having = [
        {row["seed"] for row in rows if (row["gateway"], row["policy"]) == name and "e2e_mean_s" in row}
        for name in names
    ]
    return sorted(set.intersection(*having)) if having else []


def values(rows: Sequence[Row], name: Name, metric: str, seeds: Sequence[int]) -> list[float]:
    """A metric of a gateway with a policy, seed by seed."""
    found = {row["seed"]: row[metric] for row in rows if (row["gateway"], row["policy"]) == name}
    return [float(found[seed]) for seed in seeds]


def against_the_best(rows: Sequence[Row]) -> list[Row]:
    """Each policy of ours against the best public one, for every metric that is compared.

    Of the public ones, those that failed in a seed are left out, unless nobody is left.
    """
    names = list(dict.fromkeys((row["gateway"], row["policy"]) for row in rows))
    ours = [name for name in names if name[0] == OURS]
    most = max((len(complete_seeds(rows, [name])) for name in names), default=0)
    public = [n for n in names if n[0] in PUBLIC and len(complete_seeds(rows, [n])) == most]
    seeds = complete_seeds(rows, [*ours, *public])
    if len(seeds) < 2 or not ours or not public:
        return []
    found = []
    for metric in COMPARED:
        best = min(public, key=lambda name: typical(values(rows, name, metric, seeds)))
        for name in ours:
            own, other = (values(rows, each, metric, seeds) for each in (name, best))
            result = compare_ratios(own, other, lower_is_better=True)
            assert result.relative_difference is not None and result.relative_interval is not None
            relative = [100 * x for x in (result.relative_difference, *result.relative_interval)]
            found.append(
                {
                    "policy": name[1],
                    "metric": metric,
                    "best": " ".join(best),
                    "mean": result.mean,
                    "best_mean": result.reference,
                    "difference_percent": relative,
                    "verdict": result.verdict,
                    "seeds": seeds,
                }
            )
    return found


def sentences(comparisons: Sequence[Row]) -> list[str]:
    """The comparisons in words: nothing that an interval does not show."""
    lines = []
    for each in comparisons:
        difference, low, high = each["difference_percent"]
        verdict = {"better": "better", "worse": "worse", "undecided": "no difference shown"}[each["verdict"]]
        lines.append(
            f"{OURS} {each['policy']} against {each['best']}, {each['metric'].removesuffix('_s')}: "
            f"{difference:+.1f} % [{low:+.1f} to {high:+.1f}], {verdict} ({len(each['seeds'])} seeds)"
        )
    return lines


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds as text, best mean E2E first."""
    shown = [name.removesuffix("_s") for name in SHOWN]
    lines = [["gateway", "policy", *shown, "cpu ms/req", "behind ms", "failed", "runs"]]
    by_name: dict[Name, list[Row]] = {}
    for row in rows:
        by_name.setdefault((row["gateway"], row["policy"]), []).append(row)

    def mean(of: list[Row], metric: str) -> float:
        there = [row[metric] for row in of if metric in row]
        return float(np.mean(there)) if there else float("nan")

    def rank(item: tuple[Name, list[Row]]) -> float:
        value = mean(item[1], "e2e_mean_s")
        return value if value == value else float("inf")

    for (gateway, policy), of in sorted(by_name.items(), key=rank):
        cells = [f"{mean(of, name):.3f}" for name in SHOWN]
        costs = [f"{mean(of, name):.2f}" for name in ("gateway_cpu_ms_per_request", "behind_ms")]
        failed = sum(row.get("failed", 0) or ("e2e_mean_s" not in row) for row in of)
        lines.append([gateway, policy, *cells, *costs, str(failed), str(len(of))])
    lines = [[cell.replace("nan", "-") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def wanted(texts: Iterable[str], ours: Sequence[str]) -> list[Name]:
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
    parser.add_argument("--scenario", nargs="+", default=["chat-unequal"])
    parser.add_argument("--load", type=float, default=0.7, help="fraction of the cluster's capacity")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="how many sets of arrivals")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="of the emulator")
    parser.add_argument(
        "--ours",
        nargs="*",
        default=["fairlead/generalist", "least_work", "lor"],
        help="routers and policies: names, FILE.onnx or FILE.onnx@DIAL",
    )
    parser.add_argument("--gateways", nargs="*", default=list(PUBLIC), help="NAME or NAME:POLICY+POLICY")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    pairs = wanted(options.gateways, options.ours)
    for policy in options.ours:
        find_router(policy)  # an unknown name is told before an hour is spent on the others
    end = time.monotonic() + 60 * options.minutes
    documents = earlier(options.json)
    for name in options.scenario:
        scenario = load_variant(name)
        rate = options.load * capacity_rps(scenario, measuring=lambda: say("measuring the capacity ..."))
        asked = {
            "scenario": scenario.name,
            "load": options.load,
            "rate_rps": rate,
            "requests": options.requests,
            "speed": options.speed,
        }
        document = next((d for d in documents if {k: d.get(k) for k in asked} == asked), None)
        if document is None:
            documents.append(document := {**asked, "rows": []})
        run_scenario(document, scenario, pairs, options, end, lambda: save(options.json, documents))
        print(f"{scenario.name}, load {options.load:g}, {rate:.3g} requests/s")
        print(table(document["rows"]))
        print("\n".join(document["words"]), end="\n\n")


def run_scenario(
    document: Row,
    scenario: Scenario,
    pairs: Sequence[Name],
    options: argparse.Namespace,
    end: float,
    keep: Callable[[], None],
) -> None:
    """Every gateway on the arrivals of every seed, as far as there is time; into `document`."""
    rows, left_out = document["rows"], []
    have = {(row["gateway"], row["policy"], row["seed"]) for row in rows}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        requests = generate(
            scenario, requests=options.requests, rate=document["rate_rps"], seed=seed, split="evaluate"
        )
        run_s = float(requests.arrival_s[-1]) / options.speed + BETWEEN_RUNS_S
        for gateway, policy in pairs:
            if (gateway, policy, seed) in have:
                continue
            if time.monotonic() + run_s > end:
                left_out.append(f"{gateway}:{policy} (seed {seed})")
                continue
            say(f"{scenario.name}, seed {seed}: {gateway} {policy} ({run_s:.0f} s)")
            root = options.environments.resolve()
            try:
                row = measure(gateway, policy, scenario, requests, root, options.speed)
            except FairleadError as error:
                say(f"  {error}")
                row = {"gateway": gateway, "policy": policy, "first_error": str(error)}
            rows.append({**row, "seed": seed})
            if gateway == OURS and "e2e_mean_s" in row:
                rows.append({**in_simulation(scenario, policy, options, seed), "seed": seed})
            document["comparisons"] = against_the_best(rows)
            document["words"] = sentences(document["comparisons"])
            document["left_out"] = left_out
            keep()
    document.setdefault("words", [])
    document["left_out"] = left_out
    if left_out:
        say(f"left out for lack of time: {', '.join(left_out)}")
    keep()


def in_simulation(scenario: Scenario, policy: str, options: argparse.Namespace, seed: int) -> Row:
    """One of our routers on the same requests in the simulator."""
    router, _, favor = policy.partition("@")
    dial = float(favor) if favor else None
    found = simulate_once(scenario, options.load, router, options.requests, seed, dial)
    return {"gateway": "simulated", "policy": policy, **found}


def earlier(path: Path | None) -> list[Row]:
    """What an earlier call has left in the file."""
    if path is None or not path.exists():
        return []
    found: list[Row] = json.loads(path.read_text(encoding="utf-8"))["settings"]
    return found


def save(path: Path | None, documents: list[Row]) -> None:
    """Write the file, whole or not at all."""
    if path is not None:
        write_text(path, json.dumps({"settings": documents}, indent=2))


if __name__ == "__main__":
    main()
