"""Lookahead's forecast against the plain twin, where its picture of the cluster is right."""

import numpy as np
import pytest

from fairlead.simulator import forecast, reference
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.ledger import PRIOR_OUTPUT_TOKENS
from fairlead.simulator.timing import analytic
from fairlead.view.preference import Weights
from fairlead.view.privilege import ALL_REQUESTS, EVERYTHING, NOTHING, TRUE_LENGTHS, TRUE_SPEEDS
from fairlead.view.schema import TTFT_TAIL_S
from fairlead.workload.faults import Faults
from fairlead.workload.requests import Requests

MEAN = int(PRIOR_OUTPUT_TOKENS)
"""When all outputs are this long, the expected output is always the true one."""
SLOWDOWNS = (1.0, 2.5)
WEIGHTS = Weights(ttft=4.0, e2e=1.0, tail=30.0)

TIMING = np.array([[s * c for c in analytic(model("llama-3-8b"), device("a100-80g"))] for s in SLOWDOWNS])
FLEET = custom_fleet(TIMING, np.full(2, 20_000), token_budget=2048, max_num_seqs=64, block_size=16)


def wanted(arrivals: list[float], prompts: list[int]) -> Requests:
    return Requests(np.array(arrivals), np.array(prompts), np.full(len(arrivals), MEAN))


def forecast_costs(requests: Requests, placed: list[int], knows: int = NOTHING) -> np.ndarray:
    """Added costs of the last request, the others having gone where `placed` says."""
    clusters = Clusters([FLEET], [requests])
    for replica in placed:
        clusters.observe()
        clusters.route(np.array([replica]))
    clusters.observe()
    out = np.empty((1, 2))
    scratch = forecast.scratch_for(clusters.state)
    forecast.added_costs_all(clusters.state, scratch, np.array([WEIGHTS]), knows, out)
    costs: np.ndarray = out[0]
    return costs


def weighted(done: reference.Result, requests: Requests, tail_s: np.ndarray) -> float:
    """Weighted latency of all requests, whose routers take their tails to begin at `tail_s`."""
    ttft, e2e = done.first_token_s - requests.arrival_s, done.finish_s - requests.arrival_s
    beyond = np.maximum(ttft - tail_s, 0.0)
    return float(WEIGHTS.ttft * ttft.sum() + WEIGHTS.e2e * e2e.sum() + WEIGHTS.tail * beyond.sum())


def true_cost(requests: Requests, placed: list[int], tail_s: float) -> float:
    """Weighted latency of all requests, to the end."""
    done = reference.simulate(FLEET, requests, placed)
    return weighted(done, requests, np.full(len(requests), tail_s))


def true_costs(requests: Requests, placed: list[int]) -> np.ndarray:
    seen = reference.simulate(FLEET, requests, [*placed, 0], record_views=True).view
    assert seen is not None
    tail_s = float(seen.request[-1, TTFT_TAIL_S])
    without = true_cost(requests[: len(placed)], placed, tail_s) if placed else 0.0
    return np.array([true_cost(requests, [*placed, choice], tail_s) - without for choice in range(2)])


def test_on_an_idle_cluster_the_forecast_is_exact() -> None:
    requests = wanted([0.3], [700])
    np.testing.assert_allclose(forecast_costs(requests, []), true_costs(requests, []), rtol=1e-9)


def test_requests_of_the_same_instant_are_forecast_exactly() -> None:
    requests = wanted([0.5] * 5, [900, 30, 3000, 200, 500])
    placed = [0, 1, 0, 0]
    np.testing.assert_allclose(forecast_costs(requests, placed), true_costs(requests, placed), rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_among_decoding_requests_it_misses_by_an_iteration_at_most(seed: int) -> None:
    """The router does not see the iteration under way, so the forecast starts it anew."""
    draw = np.random.default_rng(seed)
    requests = wanted([*np.sort(draw.uniform(0, 1.5, 12)), 3.0], draw.integers(10, 900, 13).tolist())
    placed = draw.integers(0, 2, 12).tolist()
    costs, truth = forecast_costs(requests, placed), true_costs(requests, placed)
    assert costs.argmin() == truth.argmin()
    np.testing.assert_allclose(costs, truth, rtol=0.05)


def test_preempted_requests_are_part_of_the_picture() -> None:
    """With hardly any KV cache the forecast still ends, and the crowded replica costs more."""
    tight = custom_fleet(
        TIMING[:1].repeat(2, 0), np.full(2, 60), token_budget=512, max_num_seqs=16, block_size=16
    )
    count = 30
    requests = Requests(np.linspace(0, 2, count), np.full(count, 100), np.full(count, MEAN))
    clusters = Clusters([tight], [requests])
    for i in range(count - 1):
        clusters.observe()
        clusters.route(np.array([1 if i % 10 == 0 else 0]))
    clusters.observe()
    assert clusters.state.replicas["preemptions"][0] > 0
    out = np.empty((1, 2))
    forecast.added_costs_all(
        clusters.state, forecast.scratch_for(clusters.state), np.array([WEIGHTS]), NOTHING, out
    )
    assert 0 < out[0, 1] < out[0, 0]


def anything(seed: int, count: int = 40) -> Requests:
    """Requests of any length for two routers, with wrong estimates, while a replica is slow."""
    draw = np.random.default_rng(seed)
    return Requests(
        np.append(np.sort(draw.uniform(0, 4.0, count)), 4.0),
        draw.integers(10, 3000, count + 1),
        draw.integers(1, 600, count + 1),
        router=draw.integers(0, 2, count + 1),
        estimate=draw.integers(10, 3000, count + 1),
        faults=Faults(np.array([1.0]), np.array([0]), np.array([3.0]), np.array([True])),
    )


SHARED = custom_fleet(
    TIMING,
    np.full(2, 2000),
    token_budget=512,
    max_num_seqs=64,
    block_size=16,
    routers=2,
    speeds_declared=False,
)


def at_the_last_decision(requests: Requests, placed: list[int]) -> Clusters:
    clusters = Clusters([SHARED], [requests])
    for replica in placed:
        clusters.observe()
        clusters.route(np.array([replica]))
    clusters.observe()
    return clusters


def costs_of(clusters: Clusters, knows: int) -> np.ndarray:
    out = np.empty((1, 2))
    scratch = forecast.scratch_for(clusters.state)
    forecast.added_costs_all(clusters.state, scratch, np.array([WEIGHTS]), knows, out)
    costs: np.ndarray = out[0]
    return costs


@pytest.mark.parametrize("seed", range(6))
def test_who_knows_everything_forecasts_exactly(seed: int) -> None:
    """In the middle of iterations, prompts and preemptions, with other routers and a straggler."""
    requests = anything(seed)
    placed = np.random.default_rng(seed + 50).integers(0, 2, 40).tolist()
    clusters = at_the_last_decision(requests, placed)
    costs = costs_of(clusters, EVERYTHING)
    # Others' requests too are judged by where the deciding router's tail begins: that is what it knows.
    tail_s = np.full(41, clusters.view.request[0, TTFT_TAIL_S])

    def cost(chosen: list[int]) -> float:
        some = requests[: len(chosen)]
        return weighted(reference.simulate(SHARED, some, chosen), some, tail_s[: len(chosen)])

    truth = [cost([*placed, choice]) - cost(placed) for choice in range(2)]
    np.testing.assert_allclose(costs, truth, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_lookahead_uses_nothing_that_its_router_cannot_know(seed: int) -> None:
    """Whatever else is changed in the simulator's state, its costs stay the same to the last bit."""
    placed = np.random.default_rng(seed + 50).integers(0, 2, 40).tolist()
    clusters = at_the_last_decision(anything(seed), placed)
    state = clusters.state
    plain, told = costs_of(clusters, NOTHING), costs_of(clusters, EVERYTHING)
    draw = np.random.default_rng(seed)
    own = state.requests[0][state.clusters["at_hand"][0]].router
    state.timing[1] *= 1.7  # replica 0 is the reference that all are said to be like
    state.replicas["pace"] = [0.5, 2.0]
    for field in ("free_blocks", "kv_tokens"):
        state.replicas[field] += draw.integers(1, 50, 2)
    for request in state.requests[0]:
        if np.isnan(request.finish):
            request.prompt = draw.integers(1, 500)
            request.output = request.output + draw.integers(0, 500)
            if request.router != own:
                request.estimate = draw.integers(1, 500)
    for k in range(2):
        replica = state.replicas[k]
        for j in range(replica.running):
            slot = state.slots[k, j]
            slot.finish_tick += draw.integers(0, 99)
            if slot.left > 0:
                slot.left = draw.integers(1, 99)
            elif slot.router != own:
                slot.zero_tick -= draw.integers(0, 99)
    np.testing.assert_array_equal(costs_of(clusters, NOTHING), plain)
    for knows in (TRUE_LENGTHS, TRUE_SPEEDS, ALL_REQUESTS):
        assert (costs_of(clusters, knows) != plain).any()
    assert (told != plain).any()


def test_a_replica_that_is_away_is_no_choice() -> None:
    requests = Requests(
        np.zeros(1),
        np.array([100]),
        np.array([100]),
        faults=Faults(np.array([0.0, 9.0]), np.array([0, 0]), np.ones(2), np.array([False, True])),
    )
    costs = costs_of(at_the_last_decision(requests, []), NOTHING)
    assert np.isinf(costs[0]) and np.isfinite(costs[1])
