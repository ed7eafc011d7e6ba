"""Capacity: the saturated throughput of a scenario's cluster, measured by the simulator and cached.

Each kind of replica is given a backlog that never ends; its rate of completions, after the batch has
filled and before the backlog has run out, is its capacity. The cluster's is the sum over its replicas,
so it depends on no router.

Where requests share prefixes, each replica is given whole sessions, as a router with perfect affinity would:
load 1 is what the cluster serves if no prefix is computed twice that one cache can keep.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs

from fairlead import compiled
from fairlead.files import keep
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, build_fleet
from fairlead.workload.requests import Requests, repeated
from fairlead.workload.scenario import Scenario

BACKLOG = 8192
"""Requests that a replica is given."""
_FILLED, _DRAINING = 0.3, 0.7
"""The rate is taken between these fractions of the completions."""

_ROUNDS = 4
"""Rounds towards the fixed point of sessions; the last one changes the rate by a percent or so."""

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
        keep(path, json.dumps({"capacity_rps": measured}), "capacity")
    _memory[key] = measured
    return measured


def measure_capacity_rps(scenario: Scenario) -> float:
    """As `capacity_rps`, measured anew."""
    fleet = build_fleet(scenario)
    tables = [0 if table is None else id(table) for table in fleet.tables]
    signatures = np.column_stack([fleet.timing, fleet.kv_blocks, np.unique(tables, return_inverse=True)[1]])
    _, index, counts = np.unique(signatures, axis=0, return_index=True, return_counts=True)
    return sum(n * _replica_rps(scenario, fleet.one(int(r))) for r, n in zip(index, counts, strict=True))


def _replica_rps(scenario: Scenario, fleet: Fleet) -> float:
    """Saturated throughput of one replica that serves whole sessions, requests/s.

    The order of the backlog depends on the rate, and the rate on the order: a fixed point, in a few rounds.
    """
    rate = 1.0
    in_rounds = scenario.engine.enable_prefix_caching and scenario.workload.sessions is not None
    for _ in range(_ROUNDS if in_rounds else 1):
        rate = saturated_rps(fleet, _backlog(scenario, rate))
    return rate


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


def _backlog(scenario: Scenario, rate: float) -> Requests:
    """Requests of the scenario's training split that are all there from the start.

    They stand in the order in which they would arrive at `rate` requests/s, which matters where they share
    prefixes: it decides what has been evicted before it is needed again.
    """
    workload, engine = scenario.workload, scenario.engine
    rows = workload.rows_for_training()
    count = BACKLOG if rows is None else max(1, min(BACKLOG, rows))
    if workload.lengths is not None:
        # Nothing is shared, so that arrivals would not matter: recorded ones need not suffice for a backlog.
        drawn = Requests(np.zeros(count), *workload.drawn_lengths(count, 0, "train"))
    else:
        block_size = engine.block_size if engine.enable_prefix_caching else None
        drawn = workload.requests(count, rate, 0, "train", block_size)
        drawn = replace(drawn, arrival_s=np.zeros(count))
    # A short trace is repeated: a backlog must outlast the filling of the batch.
    return repeated(drawn, BACKLOG)
