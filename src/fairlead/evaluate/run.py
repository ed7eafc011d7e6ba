"""Run routers through scenarios: the loop that joins simulator and policy."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from fairlead.policy import heuristics
from fairlead.policy.heuristics import Lookahead
from fairlead.policy.router import Router
from fairlead.simulator import cluster as sim
from fairlead.simulator import forecast
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.state import State


@njit(cache=True, parallel=True)
def _run_heuristic(state: State, code: int, count: int, columns: int, words: npt.NDArray[np.uint64]) -> None:
    """All clusters from first arrival to last completion under one heuristic."""
    for c in prange(state.clusters.shape[0]):
        replicas = np.empty((count, columns))
        request = np.empty(3)
        scores = np.empty(count)
        for turn in range(state.requests.shape[1]):
            sim.observe_one(state, c, replicas, request)
            action = heuristics.choose(code, replicas, request, turn, words[c], scores)
            sim.route_one(state, c, count, action)


@njit(cache=True, parallel=True)
def _run_lookahead(
    state: State,
    scratch: State,
    weights: tuple[float, float],
    count: int,
    columns: int,
    words: npt.NDArray[np.uint64],
) -> None:
    """As `_run_heuristic`, choosing by added cost."""
    for c in prange(state.clusters.shape[0]):
        replicas = np.empty((count, columns))
        request = np.empty(3)
        costs = np.empty(count)
        for _ in range(state.requests.shape[1]):
            sim.observe_one(state, c, replicas, request)
            forecast.added_costs(state, c, scratch, weights[0], weights[1], costs)
            sim.route_one(state, c, count, heuristics.least(costs, words[c]))


def run(
    clusters: Clusters,
    router: Router | Lookahead,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Serve all requests of `clusters` under `router`, to the last completion.

    Args:
        clusters: freshly loaded; its outcomes are the result.
        router: heuristics and lookahead run compiled, any other router step by step.
        seed: of the router's own randomness.
        progress: called with (decisions done, decisions in all) now and then.
    """
    columns = clusters.view.replicas.shape[2]
    if isinstance(router, Lookahead):
        words = heuristics.random_states(seed, clusters.K)
        scratch = forecast.scratch_for(clusters.state)
        weights = (float(router.w_ttft), float(router.w_e2e))
        _run_lookahead(clusters.state, scratch, weights, clusters.R, columns, words)
    elif isinstance(router, heuristics.Heuristic):
        words = heuristics.random_states(seed, clusters.K)
        _run_heuristic(clusters.state, router.code, clusters.R, columns, words)
    else:
        router.reset(clusters.K, clusters.R, seed)
        for step in range(clusters.N):
            clusters.route(router.route(clusters.observe()))
            if progress is not None and step % 64 == 0:
                progress(step, clusters.N)
    clusters.drain()
