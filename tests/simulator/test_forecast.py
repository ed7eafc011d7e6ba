"""Lookahead's forecast against the plain twin, where its picture of the cluster is right."""

import numpy as np
import pytest

from fairlead.simulator import forecast, reference
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.ledger import PRIOR_OUTPUT_TOKENS
from fairlead.simulator.timing import analytic
from fairlead.workload.requests import Requests

MEAN = int(PRIOR_OUTPUT_TOKENS)
"""When all outputs are this long, the expected output is always the true one."""
SLOWDOWNS = (1.0, 2.5)
W_TTFT, W_E2E = 4.0, 1.0

TIMING = np.array([[s * c for c in analytic(model("llama-3-8b"), device("a100-80g"))] for s in SLOWDOWNS])
FLEET = custom_fleet(TIMING, np.full(2, 20_000), token_budget=2048, max_num_seqs=64, block_size=16)


def wanted(arrivals: list[float], prompts: list[int]) -> Requests:
    return Requests(np.array(arrivals), np.array(prompts), np.full(len(arrivals), MEAN))


def forecast_costs(requests: Requests, placed: list[int]) -> np.ndarray:
    """Added costs of the last request, the others having gone where `placed` says."""
    clusters = Clusters([FLEET], [requests])
    for replica in placed:
        clusters.observe()
        clusters.route(np.array([replica]))
    clusters.observe()
    out = np.empty((1, 2))
    scratch = forecast.scratch_for(clusters.state)
    forecast.added_costs_all(clusters.state, scratch, np.array([[W_TTFT, W_E2E]]), out)
    costs: np.ndarray = out[0]
    return costs


def true_cost(requests: Requests, placed: list[int]) -> float:
    """Weighted latency of all requests, to the end."""
    done = reference.simulate(FLEET, requests, placed)
    ttft = (done.first_token_s - requests.arrival_s).sum()
    return float(W_TTFT * ttft + W_E2E * (done.finish_s - requests.arrival_s).sum())


def true_costs(requests: Requests, placed: list[int]) -> np.ndarray:
    without = true_cost(requests[: len(placed)], placed) if placed else 0.0
    return np.array([true_cost(requests, [*placed, choice]) - without for choice in range(2)])


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
        clusters.state, forecast.scratch_for(clusters.state), np.array([[W_TTFT, W_E2E]]), out
    )
    assert 0 < out[0, 1] < out[0, 0]
