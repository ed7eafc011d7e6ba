"""Going on from a policy: what differs unless it is set, and that nothing is unlearnt."""

from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import FairleadError
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.policy.packaged import GENERALIST
from fairlead.train.config import TrainConfig, checked
from fairlead.train.fine_tuning import from_scratch, with_defaults, with_network
from fairlead.train.run import train
from fairlead.workload.suites import load_variant

START: dict[str, Any] = {"start_from": "a.onnx"}


def test_nothing_changes_where_nothing_is_started_from():
    assert with_network({"seed": 1}) == with_defaults({"seed": 1}) == {"seed": 1}


def test_nobody_is_imitated():
    given = {**START, "ppo": {"epochs": 3}}
    assert with_defaults(given) == {**given, "imitation": None}
    assert given == {**START, "ppo": {"epochs": 3}}  # left as it was


@pytest.mark.parametrize(
    "asked",
    [
        {"imitation": {"rounds": 2}},
        {"teacher": "lookahead"},
        {"teachers": {"chat-equal": "least_work"}},
        {"imitation": None},
    ],
)
def test_what_is_asked_for_stands(asked):
    found = with_defaults({**START, **asked})
    assert found == {**START, **asked}


def test_prices_of_counterfactuals_are_too_noisy_for_soft_labels():
    assert with_defaults({**START, "teacher": "counterfactual"})["imitation"] == {"soft_labels": 0.0}
    asked = {"teacher": "counterfactual", "imitation": {"soft_labels": 0.2, "rounds": 3}}
    assert with_defaults({**START, **asked})["imitation"] == asked["imitation"]


def test_from_scratch_skips_imitation_and_keeps_the_length_and_the_warm_up_of_the_critic():
    usual, scratch = TrainConfig().ppo, checked(from_scratch({})).ppo
    assert checked(from_scratch({})).imitation is None
    assert scratch.critic_warmup_iterations == usual.critic_warmup_iterations > 0
    assert scratch.total_iterations == usual.total_iterations
    assert (scratch.actor_learning_rate.at(0.0), scratch.entropy_coefficient.at(0.0)) == (3e-3, 0.001)


def test_from_scratch_keeps_what_is_set():
    given = {"ppo": {"actor_learning_rate": 1e-4, "entropy_coefficient": 0.05}}
    ppo = checked(from_scratch(given)).ppo
    assert (ppo.actor_learning_rate.at(0.5), ppo.entropy_coefficient.at(0.5)) == (1e-4, 0.05)
    # What is kept can be read again, as a resumed run does.
    followed = checked(from_scratch({"ppo": {"entropy_target": 0.6}}))
    assert TrainConfig.model_validate_json(followed.model_dump_json()) == followed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": "lor"}, "leave out teacher"),
        ({"teachers": {"chat-equal": "lor"}}, "leave out teachers"),
        ({"imitation": {"rounds": 2}}, "leave out imitation"),
        ({"start_from": "a.onnx"}, "leave out start_from"),
        ({"ppo": {"cloning": 0.5}}, "ppo.cloning needs demonstrations"),
        ({"ppo": {"reference_kl": 0.5}}, "ppo.reference_kl needs a reference"),
    ],
)
def test_from_scratch_there_is_nobody_to_imitate(given, message):
    with pytest.raises(FairleadError, match=message):
        checked(from_scratch(given))


def test_the_network_is_the_policys_unless_it_is_described(tmp_path: Path):
    path = tmp_path / "a.onnx"
    export_onnx(RouterNetwork(hidden=16, seed=0), path, config={"network": {"hidden": 16}}, training={})
    assert with_network({"start_from": str(path)})["network"] == {"hidden": 16}
    described: dict[str, Any] = {"start_from": str(path), "network": {"hidden": 8}}
    assert with_network(described) == described
    # What is left out is the policy's, not the default of a network from scratch.
    assert with_network({**described, "network": {"attention": 4}})["network"] == {
        "hidden": 16,
        "attention": 4,
    }
    for settings in ({"start_from": "none.onnx"}, {**described, "start_from": "none.onnx"}):
        with pytest.raises(FairleadError, match=r"none\.onnx"):
            with_network(settings)


@pytest.mark.slow
def test_fine_tuning_improves_the_packaged_policy_on_a_cluster_that_it_has_never_met(tmp_path: Path):
    settings = {
        "start_from": GENERALIST,
        # So short a training has no time for large steps.
        "ppo": {"iterations": 10, "actor_learning_rate": {"kind": "linear", "start": 3e-4, "end": 3e-5}},
        "validation": {"favors": [0.0, 0.5], "seeds": 4},
        "keep": "last",
    }
    config = TrainConfig.model_validate(with_defaults(with_network(settings)))
    result = train(config, [load_variant("drawn~202")], tmp_path / "run", False)
    first, last = result.history[0]["objective"], result.history[-1]["objective"]
    assert last < first - 0.005
