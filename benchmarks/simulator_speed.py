"""How fast is the simulator, beside PyPI's Vidur, and how does it scale?

    python benchmarks/simulator_speed.py [--vidur PYTHON_OR_VENV] [--json]

Both simulators serve the same requests of the scenario `chat-equal` (4 replicas) under round robin, with the
same scheduler and iteration times (ours, written into Vidur's tables), each in a process of its own. What is
compared is CPU time of the event loop, from the first arrival to the last completion, on one core; the
start-up of both is stated separately. Vidur goes into an environment of its own:

    python -m venv DIR && DIR/bin/pip install -e '.[vidur]'
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba
import numpy as np

from fairlead.env.run import run
from fairlead.errors import FairleadError
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, build_fleet
from fairlead.simulator.metrics import summarise
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, generate, load_scenario

SCENARIO, LOAD, SEQUENCES = "chat-equal", 0.7, 128
SCHEDULERS = {"sarathi": ("sarathi", 512), "vllm_v0": ("vllm", 16_384)}
"""Ours -> Vidur's name, and the token budget."""
AT_LEAST_S = 0.5
"""Short loops are repeated until they add up to so much CPU time."""


def scenario_of(scheduler: str, replicas: int = 4) -> Scenario:
    """The scenario with a scheduler of Vidur's."""
    tokens = SCHEDULERS[scheduler][1] if scheduler in SCHEDULERS else 2048
    base = load_scenario(SCENARIO)
    group = base.replicas[0].model_copy(update={"count": replicas})
    engine = {"scheduler": scheduler, "max_num_batched_tokens": tokens, "max_num_seqs": SEQUENCES}
    return base.replace(engine=engine, replicas=(group,))


def requests_of(scenario: Scenario, count: int, seed: int = 0) -> Requests:
    """Requests at the load of all measurements."""
    rate = LOAD * capacity_rps(scenario)
    return generate(scenario, requests=count, rate=rate, seed=seed, split="evaluate")


def fleet_of(scenario: Scenario) -> Fleet:
    """Its fleet; vllm_v0 adds the prompts of a batch up, as PyPI's Vidur does."""
    fleet = build_fleet(scenario)
    return dataclasses.replace(fleet, scheduler=dataclasses.replace(fleet.scheduler, padded=False))


def cpu_s(loop: Callable[[], None], rewind: Callable[[], None]) -> float:
    """Least CPU time of one pass, over at least three passes that add up to `AT_LEAST_S`."""
    passes: list[float] = []
    while len(passes) < 3 or (sum(passes) < AT_LEAST_S and len(passes) < 200):
        rewind()
        began = time.process_time()
        loop()
        passes.append(time.process_time() - began)
    return min(passes)


def ours(fleet: Fleet, requests: Requests, router: str = "round_robin") -> dict[str, float]:
    """Event loop, and event loop with all metrics, on these requests."""
    clusters = Clusters([fleet], [requests])
    heuristic = Heuristic(router)

    def loop() -> None:
        run(clusters, heuristic)

    def with_metrics() -> None:
        run(clusters, heuristic)
        summarise(clusters.outcomes(0), 1.0, 0.05)

    def rewind() -> None:
        clusters.load([requests], 0)

    loop()  # compiles, or loads what was compiled
    plain, full = cpu_s(loop, rewind), cpu_s(with_metrics, rewind)
    outcomes = clusters.outcomes(0)
    return {
        "cpu_s": plain,
        "requests_per_cpu_s": len(requests) / plain,
        "requests_per_cpu_s_with_metrics": len(requests) / full,
        "ttft_mean_s": float(outcomes.ttft_s.mean()),
        "e2e_mean_s": float(outcomes.e2e_s.mean()),
    }


def side_by_side(scheduler: str, python: str, count: int) -> dict[str, Any]:
    """Both simulators on the same requests."""
    scenario = scenario_of(scheduler)
    requests = requests_of(scenario, count)
    made = ours(fleet_of(scenario), requests)
    theirs = {
        name: in_vidur(python, scheduler, requests, metrics)
        for name, metrics in (("off", False), ("on", True))
    }
    return {
        "scheduler": scheduler,
        "requests": count,
        "fairlead": made,
        "vidur": theirs,
        "ratio": made["requests_per_cpu_s"] / theirs["off"]["requests_per_cpu_s"],
        "ratio_with_metrics": made["requests_per_cpu_s_with_metrics"] / theirs["on"]["requests_per_cpu_s"],
        "ratio_event_loop_to_vidur_with_metrics": made["requests_per_cpu_s"]
        / theirs["on"]["requests_per_cpu_s"],
    }


def in_vidur(python: str, scheduler: str, requests: Requests, metrics: bool) -> dict[str, float]:
    """One run of Vidur in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.npz"
        np.savez(
            path,
            arrival_s=requests.arrival_s,
            prompt_tokens=requests.prompt_tokens,
            output_tokens=requests.output_tokens,
        )
        job = json.dumps({"scheduler": scheduler, "requests": str(path), "metrics": metrics})
        source = str(Path(__file__).parents[1] / "src")
        done = subprocess.run(
            [python, __file__, "--job", job],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
            check=False,
        )
    if done.returncode:
        raise FairleadError(f"Vidur in {python} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def vidur_job(job: dict[str, Any]) -> dict[str, float]:
    """What the process with Vidur does."""
    from fairlead.calibrate.operators import vidur_tables
    from fairlead.vidur.offline import VidurCluster, VidurReplica, VidurRun

    scenario = scenario_of(job["scheduler"])
    fleet = fleet_of(scenario)
    with np.load(job["requests"]) as columns:
        requests = Requests(columns["arrival_s"], columns["prompt_tokens"], columns["output_tokens"])
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    tables = vidur_tables(
        fleet.model(0), max_tokens=fleet.token_budget, max_seqs=fleet.max_num_seqs, max_context=longest
    )
    cluster = VidurCluster(
        [VidurReplica(tables, int(blocks)) for blocks in fleet.kv_blocks],
        "sarathi" if job["scheduler"] == "sarathi" else "vllm",
        fleet.token_budget,
        fleet.max_num_seqs,
        fleet.block_size,
        metrics=job["metrics"],
    )
    began = time.process_time()
    made = VidurRun(cluster, requests, "round_robin")
    built = time.process_time()
    made.run()
    ended = time.process_time()
    outcomes = made.outcomes()
    return {
        "cpu_s": ended - built,
        "requests_per_cpu_s": len(requests) / (ended - built),
        "start_up_cpu_s": built - began,
        "ttft_mean_s": float(outcomes.ttft_s.mean()),
        "e2e_mean_s": float(outcomes.e2e_s.mean()),
    }


def by_requests(largest: int) -> list[dict[str, float]]:
    """Cost per request in one cluster, from 1,000 requests up."""
    scenario = scenario_of("sarathi")
    fleet = fleet_of(scenario)
    rows = []
    count = 1000
    while count <= largest:
        row = ours_once(fleet, requests_of(scenario, count))
        rows.append({"requests": count, **row})
        say(f"{count:,} requests: {1e6 * row['cpu_s_per_request']:.2f} us each")
        count *= 10
    return rows


def ours_once(fleet: Fleet, requests: Requests, router: str = "round_robin") -> dict[str, float]:
    """CPU time and memory per request."""
    clusters = Clusters([fleet], [requests])
    heuristic = Heuristic(router)
    seconds = cpu_s(lambda: run(clusters, heuristic), lambda: clusters.load([requests], 0))
    return {
        "cpu_s_per_request": seconds / len(requests),
        "bytes_per_request": clusters.state.requests.nbytes / len(requests),
    }


def by_replicas(count: int) -> list[dict[str, float]]:
    """Cost per request with 1 to 256 replicas at the same load, for two routers."""
    rows = []
    for replicas in (1, 4, 16, 64, 256):
        scenario = scenario_of("sarathi", replicas)
        requests = requests_of(scenario, count)
        row: dict[str, float] = {"replicas": replicas, "requests": count}
        for router in ("round_robin", "lor"):
            row[router] = ours_once(fleet_of(scenario), requests, router)["cpu_s_per_request"]
        rows.append(row)
        say(
            f"{replicas} replicas: " + ", ".join(f"{r} {1e6 * row[r]:.2f} us" for r in ("round_robin", "lor"))
        )
    return rows


def by_cores(count: int, clusters: int = 64) -> dict[str, float]:
    """Wall time of many clusters at once on one core and on two."""
    scenario = scenario_of("sarathi")
    requests = [requests_of(scenario, count, seed) for seed in range(clusters)]
    state = Clusters([fleet_of(scenario)] * clusters, requests)
    heuristic = Heuristic("lor")
    found: dict[str, float] = {"clusters": clusters, "requests": count}
    before = numba.get_num_threads()
    passes: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(5):
        # In turns, so that whatever else the machine does meets both.
        for threads in (1, min(2, before)):
            numba.set_num_threads(threads)
            state.load(requests, 0)
            began = time.perf_counter()
            run(state, heuristic)
            passes[threads].append(time.perf_counter() - began)
    numba.set_num_threads(before)
    for threads, seconds in passes.items():
        if seconds:
            found[f"wall_s_{threads}"] = min(seconds)
    if passes[2]:
        found["speedup"] = found["wall_s_1"] / found["wall_s_2"]
        say(f"two cores: {found['speedup']:.2f} x")
    return found


def start_up() -> dict[str, float]:
    """A new process up to the end of a tiny run, imports and compiled code from the cache; s."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import simulator_speed as s; import numpy as np;"
        "f = s.fleet_of(s.scenario_of('sarathi'));"
        "r = s.Requests(np.zeros(1), np.ones(1, int), np.ones(1, int));"
        "s.run(s.Clusters([f], [r]), s.Heuristic('lor'))"
    )
    wall, cpu = [], []
    for _ in range(3):
        began, used = time.perf_counter(), _children_cpu_s()
        subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True)
        wall.append(time.perf_counter() - began)
        cpu.append(_children_cpu_s() - used)
    say(f"start-up: {min(wall):.1f} s, {min(cpu):.1f} s of CPU time")
    return {"wall_s": min(wall), "cpu_s": min(cpu)}


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--vidur", help="a Python, or the folder of an environment, that has Vidur")
    parser.add_argument("--requests", type=int, default=2000, help="side by side (default: %(default)s)")
    parser.add_argument("--largest", type=int, default=10_000_000, help="longest run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="all numbers as JSON on stdout")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(vidur_job(json.loads(arguments.job))))
        return 0
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    say("compiling, unless that was done before (a few minutes the first time) ...")
    result: dict[str, Any] = {"scenario": SCENARIO, "load": LOAD, "router": "round_robin"}
    try:
        if arguments.vidur:
            folder = Path(arguments.vidur)
            python = str(folder / "bin" / "python") if folder.is_dir() else arguments.vidur
            result["side_by_side"] = []
            for scheduler in SCHEDULERS:
                row = side_by_side(scheduler, python, arguments.requests)
                result["side_by_side"].append(row)
                say(
                    f"{scheduler}: {row['fairlead']['requests_per_cpu_s']:,.0f} requests/CPU-s, Vidur "
                    f"{row['vidur']['off']['requests_per_cpu_s']:,.0f}: {row['ratio']:,.0f} x "
                    f"(metrics on: {row['ratio_with_metrics']:,.0f} x)"
                )
        else:
            say("without --vidur, nothing is compared with Vidur")
        result["start_up"] = start_up()
        result["by_requests"] = by_requests(arguments.largest)
        result["by_replicas"] = by_replicas(50_000)
        numba.set_num_threads(threads)
        result["by_cores"] = by_cores(5000)
    except FairleadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
