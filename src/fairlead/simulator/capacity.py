"""Capacity: the saturated throughput of a scenario's cluster, measured by the simulator and cached.

Each kind of replica is given a backlog that never ends; its rate of completions, after the batch has
filled and before the backlog has run out, is its capacity. The cluster's is the sum over its replicas,
so it depends on no router.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs

from fairlead import compiled
from fairlead.errors import FairleadError
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, build_fleet
from fairlead.workload.lengths import rows_for_training
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario

BACKLOG = 8192
"""Requests that a replica is given."""
_FILLED, _DRAINING = 0.3, 0.7
"""The rate is taken between these fractions of the completions."""

_memory: dict[str, float] = {}


def cache_directory() -> Path:
    """Where measured capacities are kept between runs."""
    return Path(platformdirs.user_cache_dir("fairlead")) / "capacity"


def capacity_rps(scenario: Scenario, *, measuring: Callable[[], None] | None = None) -> float:
    """Saturated throughput of the cluster, requests/s.

    Args:
        scenario: arrivals and loads do not matter, lengths and hardware do.
        measuring: called when the capacity is not known yet and has to be measured.

    Raises:
        FairleadError: if the scenario cannot be built.
    """
    # Another simulator is another capacity: the key covers its source too.
    key = f"{compiled.source_digest()}-{scenario.hash({'model', 'replicas', 'engine', 'workload'})}"
    if key in _memory:
        return _memory[key]
    path = cache_directory() / f"{key}.json"
    try:
        measured = float(json.loads(path.read_text())["capacity_rps"])
    except (OSError, ValueError, KeyError, TypeError):
        # Absent, or half written by something else: measuring again is always right.
        if measuring is not None:
            measuring()
        measured = measure_capacity_rps(scenario)
        _store(path, measured)
    _memory[key] = measured
    return measured


def measure_capacity_rps(scenario: Scenario) -> float:
    """As `capacity_rps`, measured anew."""
    fleet = build_fleet(scenario)
    backlog = _backlog(scenario)
    tables = [0 if table is None else id(table) for table in fleet.tables]
    signatures = np.column_stack([fleet.timing, fleet.kv_blocks, np.unique(tables, return_inverse=True)[1]])
    _, index, counts = np.unique(signatures, axis=0, return_index=True, return_counts=True)
    return sum(n * saturated_rps(fleet.one(int(r)), backlog) for r, n in zip(index, counts, strict=True))


def saturated_rps(fleet: Fleet, backlog: Requests) -> float:
    """Completions per second of a single replica that always has requests waiting."""
    cluster = Clusters([fleet], [backlog])
    for _ in range(cluster.N):
        cluster.observe()
        cluster.route(np.zeros(1, np.int64))
    cluster.drain()
    done = np.sort(cluster.outcomes(0).finish_s)
    first, last = int(_FILLED * len(done)), int(_DRAINING * len(done))
    return float((last - first) / (done[last] - done[first]))


def _backlog(scenario: Scenario) -> Requests:
    """Requests that are all there from the start, with the lengths of the scenario's training split."""
    workload = scenario.workload
    rows = rows_for_training(workload.lengths)
    count = BACKLOG if rows is None else min(BACKLOG, rows)
    prompts, outputs = workload.lengths.draw(max(count, 1), 0, "train")
    if workload.max_tokens is not None:
        outputs = np.minimum(outputs, workload.max_tokens)
    # A short trace is repeated: a backlog must outlast the filling of the batch.
    return Requests(np.zeros(BACKLOG), np.resize(prompts, BACKLOG), np.resize(outputs, BACKLOG))


def _store(path: Path, capacity: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"capacity_rps": capacity}))
        part.replace(path)
    except OSError as error:
        raise FairleadError(f"cannot keep the measured capacity in {path}: {error.strerror}") from None
