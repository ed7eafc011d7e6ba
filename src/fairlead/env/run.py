"""Run routers through scenarios: the loop that joins simulator and policy."""

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit, prange, signed
from fairlead.policy import heuristics
from fairlead.policy.heuristics import Heuristic, Lookahead
from fairlead.policy.router import Router
from fairlead.simulator import decisions, forecast
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.state import State
from fairlead.view.schema import NUM_REQUEST_COLUMNS


@njit(parallel=True)
def _run_compiled(
    state: State,
    scratch: State,
    code: int,
    counting: bool,
    weights: npt.NDArray[np.float64],
    knows: int,
    count: int,
    columns: int,
    words: npt.NDArray[np.uint64],
) -> None:
    """All clusters from first arrival to last completion under one compiled router.

    Where several routers share a cluster, each takes turns of its own.
    """
    for index in prange(state.clusters.shape[0]):
        c = signed(index)
        replicas = np.empty((count, columns))
        request = np.empty(NUM_REQUEST_COLUMNS)
        scores = np.empty(count)
        while decisions.observe(state, c, counting, replicas, request):
            router = state.requests[c, state.clusters[c].at_hand].router
            if code == heuristics.LOOKAHEAD:
                forecast.added_costs(state, c, scratch, weights, knows, scores)
                action = heuristics.least(scores, words[c])
            else:
                turn = state.routers[c, router].decisions
                action = heuristics.choose(code, replicas, request, turn, words[c], scores)
            decisions.route_one(state, c, count, action)
        decisions.drain_one(state, c, count)


def run(
    clusters: Clusters,
    router: Router | Lookahead,
    *,
    seed: int = 0,
) -> None:
    """Serve all requests of `clusters` under `router`, to the last completion.

    Args:
        clusters: freshly loaded; its outcomes are the result.
        router: heuristics and lookahead run compiled, any other router step by step.
        seed: of the router's own randomness.
    """
    if isinstance(router, Lookahead | Heuristic):
        lookahead = isinstance(router, Lookahead)
        _run_compiled(
            clusters.state,
            forecast.scratch_for(clusters.state) if lookahead else forecast.NO_SCRATCH,
            router.code,
            router.code in heuristics.COUNTING,
            np.array(router.weights),
            router.knows,
            clusters.R,
            clusters.view.replicas.shape[2],
            heuristics.random_states(seed, clusters.K),
        )
        return
    router.reset(clusters.K, clusters.R, seed)
    while True:
        view = clusters.observe()
        if clusters.done:
            break
        clusters.route(router.route(view))
    clusters.drain()
