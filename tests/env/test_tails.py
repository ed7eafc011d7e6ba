"""Where rewards take tails to begin."""

import numpy as np
import pytest

from fairlead.env.run import run
from fairlead.env.tails import YARDSTICKS, Tails
from fairlead.env.vector import RouterVectorEnv
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.schema import IN_FLIGHT
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import generate, load_scenario

NAMES = ("chat-equal", "chat-unequal", "chat-sessions", "kv-pressure")


def episode(name: str, load: float, count: int = 400) -> Requests:
    scenario = load_scenario(name)
    return generate(scenario, requests=count, rate=load * capacity_rps(scenario), seed=1, split="train")


def ttfts(name: str, requests: Requests, router: str) -> np.ndarray:
    clusters = Clusters([build_fleet(load_scenario(name))], [requests])
    run(clusters, Heuristic(router))
    return clusters.outcomes(0).ttft_s


def test_a_tail_begins_where_the_best_heuristic_has_it_begin_in_the_whole_episode() -> None:
    requests = [episode(name, 1.2) for name in NAMES]
    tails = Tails([build_fleet(load_scenario(name)) for name in NAMES])
    found = tails.begin(requests, 0)
    for name, arrivals, begins in zip(NAMES, requests, found, strict=True):
        under = [ttfts(name, arrivals, router) for router in YARDSTICKS]
        beyond = [(each > begins).mean() for each in under]
        assert min(beyond) == pytest.approx(0.02, abs=0.005)
        assert begins == min(np.quantile(each, 0.98, method="higher") for each in under)
    np.testing.assert_array_equal(tails.begin(requests, 0), found)  # the clusters are used again


def test_where_replicas_die_everything_is_served_all_the_same() -> None:
    dies = ({"kind": "outage", "replica": "any", "start_s": 1, "duration_s": 3, "every_s": 5},)
    scenario = load_scenario("chat-unequal").replace(faults=dies)
    arrivals = generate(scenario, requests=400, rate=20.0, seed=1, split="train")
    assert 1.0 < Tails([build_fleet(scenario)]).begin([arrivals], 0)[0] < 100.0


def test_one_tail_for_all_clusters_with_the_same_arrivals_whatever_the_policy_does() -> None:
    """A policy that lets some starve must not move where it begins to pay for that."""
    env = RouterVectorEnv(
        ["chat-equal", "chat-unequal"], num_envs=8, group=4, episode_requests=200, load=(1.2, 1.2)
    )
    env.reset(seed=0)
    charged = env.clusters.state.clusters["tail_begins"].reshape(2, 4)
    before = charged.copy()
    for _ in range(199):
        env.step(np.zeros(8, np.int64))  # everything to one replica
    assert (env.clusters.state.routers["ttft_tail"][:, 0].reshape(2, 4) > 3.0 * charged).all()
    assert (charged == before).all() and (charged == charged[:, :1]).all()
    env.step(np.zeros(8, np.int64))
    assert (charged != before).all()  # the next episode


def test_in_overload_few_are_charged_for_the_tail() -> None:
    """Queues that grow are no tail: only what waits far longer than others is."""
    env = RouterVectorEnv(["chat-equal"], num_envs=1, group=1, episode_requests=1000, load=(1.3, 1.3))
    env.reset(seed=0)
    for _ in range(999):
        view = env.clusters.view.replicas[0]
        env.step(np.array([int(view[:, IN_FLIGHT].argmin())]))
    requests = env.clusters.state.requests[0]
    begins = env.clusters.state.clusters["tail_begins"][0]
    late = np.fmin(requests["first_token"], env.clusters.state.clusters["now"][0]) - requests["arrival"]
    assert begins > 2.0 and (late > begins).mean() < 0.08
