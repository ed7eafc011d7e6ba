"""The environments where replicas die: rectangular episodes, refused connections, teachers, exact rewards."""

import numpy as np
import pytest

from fairlead.env.run import run
from fairlead.env.vector import RouterVectorEnv
from fairlead.policy.heuristics import Heuristic, Lookahead
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.preference import weights_of
from fairlead.view.privilege import EVERYTHING
from fairlead.view.schema import AVAILABLE
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, generate, load_scenario

OFTEN = ({"kind": "outage", "replica": "any", "start_s": 1, "duration_s": 3, "every_s": 5},)
ALL_AT_ONCE = tuple({"kind": "outage", "replica": r, "start_s": 4, "duration_s": 2} for r in range(4))
FAULTY = load_scenario("chat-unequal").replace(faults=(*OFTEN, *ALL_AT_ONCE), routers=2)


def faulty(requests: int = 150) -> RouterVectorEnv:
    return RouterVectorEnv([FAULTY], num_envs=8, group=4, episode_requests=requests, load=(0.8, 0.8))


def test_episodes_have_the_same_number_of_decisions_in_all_clusters() -> None:
    env = faulty(150)
    env.reset(seed=0)
    draw = np.random.default_rng(0)
    retries = 0
    for t in range(300):
        *_, truncated, info = env.step(draw.integers(0, 4, 8))
        assert np.isfinite(info["elapsed_s"]).all() and (info["elapsed_s"] >= 0).all()
        assert truncated.all() == (t % 150 == 149) and truncated.any() == truncated.all()
        retries = max(retries, int(env.clusters.state.requests["retries"].sum()))
    assert retries > 100


def test_a_dead_replica_refuses_and_the_next_one_takes_over() -> None:
    env = faulty()
    env.reset(seed=1)
    refused = 0
    for _ in range(120):
        away = env.clusters.view.replicas[..., AVAILABLE] == 0
        assert not away.all(1).any()
        at_hand = env.clusters.state.clusters["at_hand"].copy()
        env.step(np.zeros(8, np.int64))
        sent = env.clusters.state.requests["replica"][np.arange(8), at_hand]
        expected = np.where(away, 99, np.arange(4)).min(1)
        still_there = sent >= 0  # unless that one has died before the next decision
        np.testing.assert_array_equal(sent[still_there], expected[still_there])
        refused += int(away[:, 0].sum())
    assert refused > 20


@pytest.mark.parametrize("privileged", [False, True])
def test_teachers_never_name_a_dead_replica(privileged: bool) -> None:
    env = faulty()
    env.reset(seed=2)
    seen = 0
    for _ in range(60):
        costs = env.teacher_costs(privileged=privileged)
        assert np.isfinite(costs).all()
        away = env.clusters.view.replicas[..., AVAILABLE] == 0
        best = costs.argmin(1)
        assert not away[np.arange(8), best].any()
        seen += int(away.sum())
        env.step(best)
    assert seen > 20


def test_the_rewards_of_an_episode_are_its_latencies() -> None:
    """Up to the last decision, over all that had arrived by then, whatever was lost on the way."""
    env = faulty(200)
    env.reset(seed=3)
    env.clusters.state.clusters["tail_begins"] = begins = 1.5  # where many requests are later
    draw = np.random.default_rng(3)
    total = np.zeros(8)
    for _ in range(199):
        _, reward, *_ = env.step(draw.integers(0, 4, 8))
        total += reward
    now, requests = env.clusters.state.clusters["now"], env.clusters.state.requests
    assert requests["retries"].sum() > 50
    for c in range(8):
        rows = requests[c][requests[c]["arrival"] < now[c]]
        # fmin: what has not happened yet (NaN) lasts until now
        ends = [np.fmin(rows[name], now[c]) for name in ("first_token", "finish")]
        waits = [(end - rows["arrival"]).sum() for end in ends]
        late = np.maximum(ends[0] - rows["arrival"] - begins, 0.0)
        waits.append(late.sum() + 0.02 * begins * (rows["first_token"] <= now[c]).sum())
        assert late.sum() > 10.0
        assert total[c] == pytest.approx(-(env.weights[c] @ waits), rel=1e-9)


@pytest.fixture(scope="module")
def arrivals() -> list[Requests]:
    return [generate(FAULTY, requests=300, rate=11.0, seed=s, split="evaluate") for s in range(3)]


class Stepwise:
    """A heuristic that hides what it is, so that it is run step by step."""

    name = "stepwise"

    def __init__(self, name: str) -> None:
        self._router = Heuristic(name)
        self.reset = self._router.reset

    def route(self, view: object) -> np.ndarray:
        return self._router.route(view)  # type: ignore[arg-type]


def served(scenario: Scenario, arrivals: list[Requests], router: object) -> Clusters:
    clusters = Clusters([build_fleet(scenario)] * len(arrivals), arrivals)
    run(clusters, router)  # type: ignore[arg-type]
    return clusters


@pytest.mark.parametrize("name", ["least_work", "lor", "p2c"])
def test_step_by_step_and_compiled_loops_agree_under_faults(arrivals: list[Requests], name: str) -> None:
    """Also where replicas lag behind for a router that only counts."""
    compiled = served(FAULTY, arrivals, Heuristic(name))
    stepwise = served(FAULTY, arrivals, Stepwise(name))
    for c in range(3):
        first, second = compiled.outcomes(c), stepwise.outcomes(c)
        np.testing.assert_allclose(first.finish_s, second.finish_s, rtol=1e-9)
        np.testing.assert_array_equal(first.replica, second.replica)
        np.testing.assert_array_equal(first.retried, second.retried)
        assert first.retried.sum() > 10


@pytest.mark.parametrize(
    "router",
    [
        *map(Heuristic, ("random", "round_robin", "p2c", "lor")),
        Lookahead(weights_of(0.5)),
        Lookahead(weights_of(0.5), EVERYTHING),
    ],
    ids=["random", "round_robin", "p2c", "lor", "lookahead", "privileged"],
)
def test_every_router_serves_every_request_once(arrivals: list[Requests], router: object) -> None:
    clusters = served(FAULTY, arrivals, router)
    for c in range(3):
        outcomes = clusters.outcomes(c)
        assert (outcomes.finish_s >= outcomes.first_token_s).all()
    # Each router of the pair has decided its own requests, and those once more that were lost.
    decisions = clusters.state.routers["decisions"].sum(1)
    np.testing.assert_array_equal(decisions, 300 + clusters.state.requests["retries"].sum(1))
    assert (clusters.state.routers["finished"].sum(1) == 300).all()
