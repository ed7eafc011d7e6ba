"""Teachers, mixtures of them, and how far they can be followed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.train.teachers import (
    Teacher,
    achievable,
    by_scenario,
    choice,
    lookahead,
    make_teacher,
    mixture,
)
from fairlead.view import schema
from fairlead.view.features import features_batch
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View


def constant(action: int, name: str = "constant") -> Teacher:
    return Teacher(name, lambda env, here=None: np.full(env.num_envs, action))


ENV: Any = SimpleNamespace(num_envs=1000)


def test_a_mixture_labels_by_its_shares_and_can_be_repeated() -> None:
    teacher = mixture({constant(0, "a"): 3.0, constant(1, "b"): 1.0})
    assert teacher.name == "75% a + 25% b"
    teacher.reset(5)
    labels = teacher.label(ENV)
    assert labels.mean() == pytest.approx(0.25, abs=0.05)
    teacher.reset(5)
    np.testing.assert_array_equal(teacher.label(ENV), labels)


def test_pitfall_22_the_achievable_agreement_is_reported() -> None:
    """The best answer to a 3 : 1 mixture of contradicting teachers is right three times in four."""
    teacher = mixture({constant(0, "a"): 3.0, constant(1, "b"): 1.0})
    teacher.reset(0)
    assert achievable(teacher, ENV, repeats=64) == pytest.approx(0.75, abs=0.02)
    assert achievable(constant(1), ENV) == 1.0


def test_teachers_come_by_name_or_with_shares() -> None:
    assert make_teacher("lookahead").name == "lookahead"
    assert make_teacher({"least_work": 1.0}).name == "least_work"
    assert make_teacher({"lookahead": 0.8, "lor": 0.2}).name == "80% lookahead + 20% lor"
    for wrong in ("random", {"lookahead": 0.5, "round_robin": 0.5}):
        with pytest.raises(FairleadError, match="cannot be imitated"):
            make_teacher(wrong)
    with pytest.raises(FairleadError, match="unknown router 'lro'"):
        make_teacher("lro")


def test_only_lookahead_can_be_privileged() -> None:
    asked: list[dict[str, bool]] = []

    def costs(**more: bool) -> Any:
        asked.append(more)
        return np.zeros((2, 3))

    env = SimpleNamespace(teacher_costs=costs)
    lookahead().label(env)
    make_teacher("lookahead", privileged=True).label(env)
    assert asked == [{}, {"privileged": True}]
    with pytest.raises(FairleadError, match="cannot be privileged: only lookahead can"):
        make_teacher("lor", privileged=True)


def test_the_choice_of_a_pricing_teacher_is_the_cheapest() -> None:
    np.testing.assert_array_equal(choice(np.array([[2.0, 1.0], [0.0, 5.0]])), [1, 0])


def test_scenarios_have_teachers_of_their_own() -> None:
    env: Any = SimpleNamespace(num_envs=3, scenario_names=["a", "b", "a"], clusters=SimpleNamespace(R=2))
    prices = Teacher("prices", lambda env, here=None: np.array([[3.0, 1.0], [3.0, 1.0], [0.0, 2.0]]))
    teacher = by_scenario(prices, {"b": constant(0, "first")})
    assert teacher.name == "prices, first in b"
    np.testing.assert_array_equal(teacher.label(env), [[3.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    assert make_teacher("lookahead", elsewhere={"b": "lor"}).name == "lookahead, lor in b"
    other = make_teacher("lor", elsewhere={"b": "lookahead:privileged"})
    assert other.name == "lor, privileged lookahead in b"
    with pytest.raises(FairleadError, match="unknown router 'lro'"):
        make_teacher("lookahead", elsewhere={"b": "lro"})


def test_a_policy_teaches_by_how_far_its_choices_are_apart(tmp_path) -> None:
    """Costs are gaps of logits at the dial of each cluster; what cannot be chosen says nothing."""
    path = tmp_path / "policy.onnx"
    network = RouterNetwork(hidden=8, attention=4, seed=3)
    with torch.no_grad():
        for weights in network.score_head.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    export_onnx(network, path, config={}, training={})
    draw = np.random.default_rng(0)
    view = View(
        draw.uniform(0.1, 5, (4, 3, NUM_REPLICA_COLUMNS)), draw.uniform(1, 50, (4, NUM_REQUEST_COLUMNS))
    )
    view.replicas[..., schema.AWAITING_FIRST_TOKEN] = 0.0  # never more than there are in flight
    view.replicas[1, 2, schema.AVAILABLE] = 0.0
    view.replicas[2, :2, schema.AVAILABLE] = 0.0
    favor = np.array([0.0, 0.3, 0.75, 1.0])
    env: Any = SimpleNamespace(num_envs=4, clusters=SimpleNamespace(view=view, R=3), favor=favor)
    teacher = make_teacher(str(path))
    logits = OnnxRouter(path).logits(features_batch(view, favor))
    costs = teacher.label(env)
    assert np.ptp(logits[0]) > 0
    np.testing.assert_allclose(costs[0], logits[0].max() - logits[0], rtol=1e-6)
    assert costs[1][:2].max() < costs[1][2] < 1e3
    assert costs[2].tolist() == [1.0, 1.0, 0.0]
    np.testing.assert_array_equal(choice(costs), logits.argmax(-1))
    here = np.array([False, True, False, True])
    np.testing.assert_allclose(teacher.label(env, here)[here], costs[here], rtol=1e-5)


def test_a_file_that_is_no_policy_cannot_teach(tmp_path) -> None:
    with pytest.raises(FairleadError, match="no policy file"):
        make_teacher("lookahead", elsewhere={"chat-equal": str(tmp_path / "none.onnx")})
