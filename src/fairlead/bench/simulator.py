"""Routed requests per second of the simulator, on one core."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fairlead.bench import LOAD, SCENARIO, Progress
from fairlead.env.run import run
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.features import NUM_FEATURES, features_batch
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import generate, load_scenario

CLUSTERS = 64
REQUESTS = 2000
"""Per cluster and pass."""


def measure(seconds: float, progress: Progress) -> dict[str, Any]:
    """Time two loops on one core, `seconds` in all, from empty clusters to the last completion.

    `heuristic`: observe, choose with `lor`, route, all compiled. `learned`: observe, write the features
    that a policy would read, route the recorded actions of a good router, so that the cluster is in the
    states that such a policy leads to; the policy's own inference is not part of the simulator.

    Returns:
        `requests_per_s_heuristic`, `requests_per_s_learned` (median over passes) and what was measured.
    """
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        requests = _requests()
        clusters = Clusters([build_fleet(load_scenario(SCENARIO))] * CLUSTERS, requests)
        actions = _recorded(clusters)
        features = np.empty((clusters.K, clusters.R, NUM_FEATURES), np.float32)
        lor = Heuristic("lor")
        loops: dict[str, Callable[[], None]] = {
            "heuristic": lambda: run(clusters, lor),
            "learned": lambda: _replay(clusters, actions, features),
        }
        rates = {}
        for name, loop in loops.items():
            rewind = partial(clusters.load, requests, 0)
            median_s = _median_s(loop, rewind, seconds / len(loops), partial(progress, name))
            rates[name] = clusters.K * clusters.N / median_s
    finally:
        numba.set_num_threads(threads)
    return {
        **{f"requests_per_s_{name}": rate for name, rate in rates.items()},
        "cores": 1,
        "scenario": SCENARIO,
        "load": LOAD,
        "num_replicas": clusters.R,
        "clusters": CLUSTERS,
        "requests": REQUESTS,
    }


def _requests() -> list[Requests]:
    scenario = load_scenario(SCENARIO)
    rate = LOAD * capacity_rps(scenario)
    return [
        generate(scenario, requests=REQUESTS, rate=rate, seed=seed, split="evaluate")
        for seed in range(CLUSTERS)
    ]


def _recorded(clusters: Clusters) -> npt.NDArray[np.int64]:
    """The choices (N, K) of `least_work` in these clusters."""
    run(clusters, Heuristic("least_work"))
    # The engine numbers replicas through all clusters.
    return np.ascontiguousarray(clusters.state.requests["replica"].T.astype(np.int64) % clusters.R)


def _replay(clusters: Clusters, actions: npt.NDArray[np.int64], features: npt.NDArray[np.float32]) -> None:
    for step in range(clusters.N):
        features_batch(clusters.observe(), DEFAULT_FAVOR, features)
        clusters.route(actions[step])
    clusters.drain()


def _median_s(
    loop: Callable[[], None],
    rewind: Callable[[], None],
    seconds: float,
    progress: Callable[[float, float], None],
) -> float:
    """Median time of a pass, over as many as fit into `seconds`, at least three."""
    rewind()
    loop()  # compiles
    passes: list[float] = []
    while len(passes) < 3 or sum(passes) < seconds:
        rewind()
        began = time.perf_counter()
        loop()
        passes.append(time.perf_counter() - began)
        progress(min(sum(passes), seconds), seconds)
    progress(seconds, seconds)
    return float(np.median(passes))
