"""What a run costs in a validation, against the definition of the conditional value at risk."""

from unittest.mock import patch

import numpy as np
import pytest

from fairlead.env.run import run
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.heuristics import Heuristic
from fairlead.policy.packaged import policy_path
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.train.config import ValidationConfig
from fairlead.train.validation import Validation, Validations, objective
from fairlead.view.preference import weights_of
from fairlead.view.tail import TAIL_SHARE
from fairlead.workload.scaling import with_replicas
from fairlead.workload.scenario import generate, load_scenario

GENERALIST = policy_path("fairlead/generalist")

FAVORS = (0.0, 0.3, 0.5, 1.0)
WEIGHTS = np.array([weights_of(favor) for favor in FAVORS])
DRAW = np.random.default_rng(0)
TTFT = DRAW.lognormal(-1.0, 1.0, (len(FAVORS), 1000))
E2E = TTFT + DRAW.exponential(5.0, TTFT.shape)


def test_it_is_the_weighted_sum_with_the_conditional_value_at_risk() -> None:
    """By Rockafellar and Uryasev: the least value over q of a q + E[(T - q)+], a the share of the tail."""
    for row, cost in enumerate(objective(TTFT, E2E, WEIGHTS)):
        ttft, weights = TTFT[row], weights_of(FAVORS[row])
        beginnings = [TAIL_SHARE * q + np.maximum(ttft - q, 0.0).mean() for q in ttft]
        expected = weights.ttft * ttft.mean() + weights.e2e * E2E[row].mean() + weights.tail * min(beginnings)
        assert cost == pytest.approx(expected, rel=1e-12)


def test_a_constant_added_to_every_ttft_costs_its_weights() -> None:
    """A tail that only begins later is no gain: it counts in the share of the tail."""
    moved = objective(TTFT + 0.25, E2E, WEIGHTS) - objective(TTFT, E2E, WEIGHTS)
    np.testing.assert_allclose(moved, 0.25 * (WEIGHTS[:, 0] + TAIL_SHARE * WEIGHTS[:, 2]))


def test_only_the_worst_are_the_tail() -> None:
    alone = np.array([[0.0, 0.0, 1.0]])
    ttft = np.append(np.full(98, 0.1), [5.0, 7.0])[None]
    assert objective(ttft, ttft, alone)[0] == pytest.approx(TAIL_SHARE * 6.0)
    better = ttft.copy()
    better[0, :98] = 0.01
    assert objective(better, ttft, alone)[0] == pytest.approx(TAIL_SHARE * 6.0)


def test_shorter_first_tokens_never_cost_more() -> None:
    assert (objective(0.9 * TTFT, E2E, WEIGHTS) < objective(TTFT, E2E, WEIGHTS)).all()


def test_each_scenario_is_validated_at_its_own_loads_unless_others_are_given() -> None:
    scenarios = [load_scenario("kv-pressure"), load_scenario("chat-outage")]
    settings = Validation(scenarios, None, (0.5,), seeds=1, requests=40)(OnnxRouter(GENERALIST)).ratios
    assert {(s.scenario, s.load) for s in settings} == {(s.name, load) for s in scenarios for load in s.loads}
    given = Validation(scenarios, (0.5,), (0.5,), seeds=1, requests=40)(OnnxRouter(GENERALIST)).ratios
    assert {s.load for s in given} == {0.5}


def test_larger_clusters_are_validated_on_as_many_more_requests() -> None:
    """They take longer to fill."""
    scenarios = [with_replicas(load_scenario("chat-equal"), count) for count in (2, 4, 8)]
    for requests in (ValidationConfig().requests, 200):
        settings = ValidationConfig(loads=(0.5,), requests=requests)
        parts = Validations(scenarios, settings, (0.5,)).parts
        assert [part.requests for part in parts] == [requests, requests, 2 * requests]


def test_many_scenarios_are_validated_a_few_at_a_time() -> None:
    """What all of them took together was more than training did (129 scenarios: more than 20 GB)."""
    names = ("chat-equal", "chat-unequal", "chat-mmpp", "chat-bursty")
    scenarios = [load_scenario(name) for name in names]
    settings = ValidationConfig(loads=(0.5, 0.6), seeds=2, requests=100)
    favors = (0.0, 1.0)
    with patch("fairlead.train.validation.AT_ONCE", 2 * 2 * 2 * 3):
        few = Validations(scenarios, settings, favors)
    found, policy = few(OnnxRouter(GENERALIST)), OnnxRouter(GENERALIST)
    parts = [
        Validation(part, (0.5, 0.6), favors, seeds=2, requests=100)(policy)
        for part in (scenarios[:3], scenarios[3:])
    ]
    assert found.ratios == parts[0].ratios | parts[1].ratios
    assert found.objective == pytest.approx(np.mean(list(found.ratios.values())))
    for name, ratio in found.against.items():
        assert ratio == pytest.approx(0.75 * parts[0].against[name] + 0.25 * parts[1].against[name])


def test_more_seeds_are_more_runs() -> None:
    scenario = load_scenario("chat-equal")
    few, many = (Validation([scenario], (0.5,), (0.5,), seeds=n, requests=100) for n in (1, 3))
    assert few.heuristics.keys() == many.heuristics.keys()
    assert few.best_heuristic != many.best_heuristic


def test_a_heuristic_costs_what_a_run_of_it_costs_at_each_point_of_the_dial() -> None:
    """One run serves all points, because heuristics do not look at the dial."""
    scenario = load_scenario("chat-equal")
    found = Validation([scenario], (0.7,), (0.0, 1.0), seeds=2, requests=60)
    arrivals = [
        generate(scenario, requests=60, rate=0.7 * capacity_rps(scenario), seed=seed, split="validate")
        for seed in (0, 1)
    ]
    clusters = Clusters([build_fleet(scenario)] * 2, arrivals)
    run(clusters, Heuristic("least_work"))
    outcomes = [clusters.outcomes(c) for c in (0, 1)]
    ttft = np.array([o.first_token_s - o.arrival_s for o in outcomes])[:, 6:57]
    e2e = np.array([o.finish_s - o.arrival_s for o in outcomes])[:, 6:57]
    expected = [objective(ttft, e2e, np.array([weights_of(favor)] * 2)).mean() for favor in (0.0, 1.0)]
    np.testing.assert_allclose(found.heuristics["least_work"], [expected])
