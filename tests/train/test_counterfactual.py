"""Counterfactual prices: against a plain replay, against their laws, and for what they can teach."""

from typing import Any

import numpy as np
import pytest

from fairlead import rng
from fairlead.env.vector import RouterVectorEnv
from fairlead.policy.heuristics import HEURISTICS, Heuristic, choose
from fairlead.policy.network import RouterNetwork
from fairlead.simulator.decisions import drain_one, observe_one, route_one
from fairlead.train import counterfactual
from fairlead.train.counterfactual import Counterfactual
from fairlead.train.teachers import make_teacher
from fairlead.view.schema import AVAILABLE, View
from fairlead.workload.scenario import load_scenario

ALL = np.ones(4, np.bool_)


def environment(*names: str, **changes: Any) -> RouterVectorEnv:
    scenarios = [load_scenario(name) for name in names]
    options = {"num_envs": 4, "group": 1, "episode_requests": 256, "favor": (0.0, 1.0), **changes}
    env = RouterVectorEnv(scenarios, **options)
    env.reset(seed=3)
    return env


def driven(env: RouterVectorEnv, steps: int, name: str = "least_work") -> RouterVectorEnv:
    router = Heuristic(name)
    router.reset(env.num_envs, env.clusters.R, 0)
    for _ in range(steps):
        env.step(router.route(env.clusters.view))
    return env


def replayed(env: RouterVectorEnv, steps: int, c: int, action: int, then: int, code: int, word: int) -> float:
    """The same by hand: another environment, driven to the same point, that takes `action` and goes on."""
    other = driven(environment("chat-equal", "chat-unequal"), steps)
    clusters = other.clusters
    state, words = clusters.state, np.array([word], np.uint64)
    now, known = state.clusters["now"][c], int(state.clusters["next_request"][c])
    route_one(state, c, clusters.R, action)
    view, request, scores = clusters.view.replicas[c].copy(), clusters.view.request[c].copy(), np.empty(4)
    for turn in range(then):
        if not observe_one(state, c, view, request):
            break
        route_one(state, c, clusters.R, choose(code, view, request, turn, words, scores))
    drain_one(state, c, clusters.R)
    rows = state.requests[c][: known + 1 + then]
    rows = rows[rows["finish"] > now]
    w = other.weights[c]
    waits = w[0] * (rows["first_token"] - now) + w[1] * (rows["finish"] - now)
    begins = state.clusters["tail_begins"][c]
    late = np.maximum(rows["first_token"] - rows["arrival"] - begins, 0.0)
    return float((waits + w[2] * (0.02 * begins + late)).sum())


def test_a_price_is_what_a_run_that_takes_the_choice_costs() -> None:
    env = driven(environment("chat-equal", "chat-unequal"), 60)
    prices = Counterfactual(16)
    found = prices(env, ALL)
    (twin,) = prices._twins.values()
    words = rng.stream(0, "train", "counterfactual").integers(1, 2**62, 4)
    for c in (0, 1):
        expected = [replayed(env, 60, c, r, 16, int(twin.codes[c]), int(words[c])) for r in range(4)]
        np.testing.assert_allclose(found[c], expected, rtol=1e-12)


def test_pricing_changes_nothing() -> None:
    env = driven(environment("chat-equal", "agents-shared-prompts"), 40)
    before = [each.tobytes() for each in (*env.clusters.state, *env.clusters.view)]
    prices = Counterfactual(16)
    first = prices(env, ALL)
    assert [each.tobytes() for each in (*env.clusters.state, *env.clusters.view)] == before
    np.testing.assert_array_equal(prices(env, ALL), first)


def test_only_what_is_asked_for_is_priced() -> None:
    env = driven(environment("chat-equal"), 40)
    here = np.array([False, True, False, True])
    some, whole = Counterfactual(8)(env, here), Counterfactual(8)(env, ALL)
    np.testing.assert_array_equal(some[here], whole[here])
    assert (some[~here] == 0.0).all()


def test_a_replica_that_is_away_costs_more_than_the_worst_of_the_others() -> None:
    env = environment("chat-outage", episode_requests=600)
    router = Heuristic("least_work")
    router.reset(4, 4, 0)
    for _ in range(600):
        env.step(router.route(env.clusters.view))
        away = env.clusters.view.replicas[..., AVAILABLE] == 0.0
        if away.any():
            break
    costs = Counterfactual(8)(env, ALL)
    assert away.any() and np.isfinite(costs).all()
    for c in np.flatnonzero(away.any(1)):
        assert costs[c][away[c]].min() == pytest.approx(costs[c][~away[c]].max() + 1.0)


def test_the_base_policy_is_the_one_that_does_best_on_what_comes() -> None:
    """Affinity where prompts are shared, work or prefills elsewhere; never a student that knows nothing."""
    env = environment("agents-shared-prompts", "code-equal", episode_requests=512)
    prices = Counterfactual(4)
    prices.meet(RouterNetwork())
    prices(env, ALL)
    (twin,) = prices._twins.values()
    shared = ("prefix_affinity", "sticky_until_saturated", "sticky_least_work")
    assert set(twin.codes[::2]) <= {HEURISTICS[name] for name in shared}
    work = ("least_work", "sticky_least_work", "least_prefill", "lmetric")
    assert set(twin.codes[1::2]) <= {HEURISTICS[name] for name in work}


def test_a_good_student_is_its_own_base_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterfactual, "BASES", ("lor",))
    monkeypatch.setattr(counterfactual, "CLEARLY", 1e9)
    env = driven(environment("chat-unequal"), 30)
    prices = Counterfactual(4)
    prices.meet(RouterNetwork())
    prices(env, ALL)
    assert (next(iter(prices._twins.values())).codes == counterfactual.STUDENT).all()
    # One with a memory cannot go on in compiled code: then heuristics do.
    prices.reset(0)
    prices.meet(RouterNetwork(gru_layers=1))
    prices(env, ALL)
    assert (next(iter(prices._twins.values())).codes == HEURISTICS["lor"]).all()


@pytest.mark.parametrize("name", ["chat-unequal", "agents-shared-prompts"])
def test_who_takes_the_cheapest_choice_beats_every_heuristic(name: str) -> None:
    """Rollout improves its base policy, all the more as it knows the future: also where lookahead fails."""

    def cost(route: Any) -> float:
        env = environment(name, load=(0.8, 0.8), favor=(0.5, 0.5))
        total = np.zeros(4)
        for _ in range(192):
            total -= env.step(route(env))[1]
        return float(total.mean())

    def by(router: Heuristic) -> Any:
        router.reset(4, 4, 0)
        return lambda env: router.route(env.clusters.view)

    teacher = make_teacher("counterfactual", decisions=32)
    teacher.reset(0)
    best = min(cost(by(Heuristic(base))) for base in counterfactual.BASES)
    assert cost(lambda env: teacher.label(env).argmin(1)) < best


def test_it_is_a_teacher_like_any_other() -> None:
    teacher = make_teacher("lookahead", elsewhere={"chat-equal": "counterfactual"}, decisions=8)
    teacher.reset(0)
    env = environment("chat-equal", "chat-unequal")
    teacher.meet(RouterNetwork())
    costs = teacher.label(env)
    np.testing.assert_array_equal(costs[1::2], env.teacher_costs()[1::2])
    assert isinstance(env.clusters.view, View) and (costs[::2] > 0).all()
