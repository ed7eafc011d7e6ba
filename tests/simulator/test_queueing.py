"""The compiled simulator against queueing theory, and the baselines with it.

With one sequence at a time, one output token and a time proportional to the prompt, a replica is a
single server, first come first served, whose service time is the prompt's length.
"""

import numpy as np
import pytest
from tests.simulator.intervals import interval

from fairlead.env.run import run
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.outcomes import Outcomes
from fairlead.workload.requests import Requests

SERVICE_S = 1.0
RUNS = 16
TOKENS = 1000
"""Mean prompt, so that lengths are nearly continuous."""


def servers(count: int) -> Fleet:
    timing = np.zeros((count, 7))
    timing[:, 2] = SERVICE_S / TOKENS
    return custom_fleet(timing, np.full(count, 10_000), token_budget=100_000, max_num_seqs=1, block_size=16)


def arrivals(seed: int, count: int, rate: float, *, exponential: bool) -> Requests:
    draw = np.random.default_rng(seed)
    prompts = (
        np.maximum(1, draw.exponential(TOKENS, count).round()) if exponential else np.full(count, TOKENS)
    )
    return Requests(
        np.cumsum(draw.exponential(1 / rate, count)), prompts.astype(np.int64), np.ones(count, np.int64)
    )


def sojourn_s(router: str, count: int, load: float, *, exponential: bool = True) -> np.ndarray:
    """Mean time in the system of each of 16 long runs."""
    rate = load * count / SERVICE_S
    wanted = [arrivals(seed, 10_000, rate, exponential=exponential) for seed in range(RUNS)]
    clusters = Clusters([servers(count)] * RUNS, wanted)
    run(clusters, Heuristic(router), seed=1)
    runs = [clusters.outcomes(c) for c in range(RUNS)]
    return np.array([r.e2e_s[1000:].mean() for r in runs])


def erlang_c_sojourn(servers: int, load: float) -> float:
    """Mean time in an M/M/k system (Erlang C), service rate 1."""
    offered = servers * load
    terms = [1.0]
    for n in range(1, servers + 1):
        terms.append(terms[-1] * offered / n)
    waits = terms[-1] / (1 - load)
    probability = waits / (sum(terms[:-1]) + waits)
    return 1 + probability / (servers * (1 - load))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_random_routing_gives_independent_mm1_queues(load: float) -> None:
    low, high = interval(sojourn_s("random", 4, load))
    assert low < SERVICE_S / (1 - load) < high


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_replica_with_equal_requests_is_md1(load: float) -> None:
    low, high = interval(sojourn_s("lor", 1, load, exponential=False))
    assert low < SERVICE_S * (1 + load / (2 * (1 - load))) < high


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_router_that_knows_all_work_turns_four_replicas_into_one_queue(load: float) -> None:
    """M/M/4 (Erlang C): to join the replica that is free first is to wait in one common queue."""
    count = 4
    wanted = [arrivals(seed, 10_000, load * count / SERVICE_S, exponential=True) for seed in range(RUNS)]
    choices = np.stack([central_queue(each, count) for each in wanted], axis=1)
    clusters = Clusters([servers(count)] * RUNS, wanted)
    for turn in choices:
        clusters.observe()
        clusters.route(turn)
    clusters.drain()
    low, high = interval(np.array([clusters.outcomes(c).e2e_s[1000:].mean() for c in range(RUNS)]))
    assert low < erlang_c_sojourn(count, load) < high


def central_queue(requests: Requests, count: int) -> np.ndarray:
    """(N,) for each request in turn, the replica that will have worked off its requests first."""
    free = np.zeros(count)
    chosen = np.empty(len(requests), np.int64)
    for i, (arrival, prompt) in enumerate(zip(requests.arrival_s, requests.prompt_tokens, strict=True)):
        chosen[i] = np.argmin(free)
        free[chosen[i]] = max(free[chosen[i]], arrival) + prompt * SERVICE_S / TOKENS
    return chosen


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_pitfall_05_lor_joins_the_shortest_queue(load: float) -> None:
    """Close above M/M/4, which no router without knowledge of the future can beat, far below random.

    Join-shortest-queue costs less than 30 % over M/M/k at these sizes (Nelson and Philips, 1989); a LOR
    that ignored running requests, or packed ties onto one replica, would not.
    """
    lor = sojourn_s("lor", 4, load).mean()
    best = erlang_c_sojourn(4, load)
    assert best < lor < 1.3 * best
    assert lor < sojourn_s("p2c", 4, load).mean() < sojourn_s("round_robin", 4, load).mean()
    assert sojourn_s("round_robin", 4, load).mean() < sojourn_s("random", 4, load).mean()


def test_pitfall_05_ties_do_not_pack_one_replica() -> None:
    clusters = Clusters([servers(4)], [arrivals(0, 4000, 0.2, exponential=True)])
    run(clusters, Heuristic("lor"), seed=3)
    shares = np.bincount(clusters.outcomes(0).replica, minlength=4) / 4000
    assert shares.min() > 0.2


def in_system(outcomes: Outcomes) -> float:
    """Integral of the number in the system over time, from the events alone."""
    times = np.concatenate([outcomes.arrival_s, outcomes.finish_s])
    steps = np.concatenate([np.ones(len(outcomes)), -np.ones(len(outcomes))])
    order = np.argsort(times, kind="stable")
    return float((np.cumsum(steps[order])[:-1] * np.diff(times[order])).sum())


def test_littles_law() -> None:
    clusters = Clusters([servers(3)], [arrivals(5, 5000, 2.0, exponential=True)])
    run(clusters, Heuristic("p2c"))
    outcomes = clusters.outcomes(0)
    assert in_system(outcomes) == pytest.approx(outcomes.e2e_s.sum(), rel=1e-9)


def test_a_busy_server_never_idles() -> None:
    """Work conservation: one replica that never runs dry finishes when its work is done."""
    wanted = Requests(np.zeros(500), np.arange(1, 501), np.ones(500, np.int64))
    clusters = Clusters([servers(1)], [wanted])
    run(clusters, Heuristic("lor"))
    assert clusters.outcomes(0).finish_s.max() == pytest.approx(wanted.prompt_tokens.sum() / TOKENS)
