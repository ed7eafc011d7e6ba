"""Training on named scenarios: teachers, validation, what cannot be trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from fairlead.env.vector import RouterVectorEnv
from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.train.config import TrainConfig
from fairlead.train.run import make_teacher, saved_run, train
from fairlead.train.validation import Validation
from fairlead.workload.scenario import load_scenario

DEMO = [load_scenario("chat-equal"), load_scenario("chat-unequal")]
SMALL = {
    "threads": 1,
    "environment": {"num_envs": 16, "group": 4, "imitation_envs": 8},
    "imitation": {"rounds": 2, "steps": 40, "teacher_steps": 40, "epochs": 2},
    "ppo": {"iterations": 2, "critic_warmup_iterations": 1, "rollout_steps": 32, "reset_every": 2},
    "validation": {"loads": [0.8], "favors": [0.0, 1.0]},
    "evaluate_every": 1,
}


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig.model_validate(SMALL), DEMO, out)
    return out


def test_a_run_leaves_a_policy_that_says_how_it_was_made(run_directory: Path) -> None:
    router = OnnxRouter(run_directory / "policy.onnx")
    assert router.metadata.config["ppo"]["rollout_steps"] == 32
    assert router.metadata.training["seed"] == 0
    config, scenarios = saved_run(run_directory)
    assert config == TrainConfig.model_validate(SMALL)
    assert [s.hash() for s in scenarios] == [s.hash() for s in DEMO]


def test_training_twice_gives_the_same_policy(run_directory: Path, tmp_path: Path) -> None:
    train(TrainConfig.model_validate(SMALL), DEMO, tmp_path / "again")
    first, second = (p / "policy.onnx" for p in (run_directory, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_another_run_is_not_disturbed(run_directory: Path) -> None:
    told: list[str] = []
    with pytest.raises(FairleadError, match="is not empty"):
        train(TrainConfig.model_validate(SMALL), DEMO, run_directory, say=told.append)
    assert told == []


def test_scenarios_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match="4 and 8 replicas cannot be trained on together"):
        train(TrainConfig(), [DEMO[0], load_scenario("chat-8")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match="holds no training run"):
        train(TrainConfig(), [], tmp_path, resume=True)


@pytest.mark.parametrize("name", ["random", "round_robin", "p2c"])
def test_pitfall_22_routers_that_do_not_follow_from_the_view_cannot_teach(name: str) -> None:
    with pytest.raises(FairleadError, match=f"{name} cannot be imitated"):
        make_teacher(name)


def test_a_heuristic_labels_what_it_would_do() -> None:
    env = RouterVectorEnv(DEMO[1:], num_envs=8, group=1, episode_requests=50)
    env.reset(seed=0)
    labels = make_teacher("weighted_lor").label(env)
    assert labels.shape == (8,)
    assert set(np.unique(labels)) <= {0, 1}  # all replicas are idle: one of the fast ones


class Like:
    """Scores replicas by one feature: the least wins."""

    def __init__(self, feature: int) -> None:
        self.feature = feature

    def logits(self, features: np.ndarray) -> np.ndarray:
        return -features[..., self.feature]


def test_validation_ranks_routers_as_they_deserve() -> None:
    validation = Validation(DEMO, [0.7], [0.0, 1.0], seeds=2, requests=300)
    uniform = validation(NetworkRouter(RouterNetwork()))  # argmax of equal scores: always replica 0
    fewest = validation(Like(0))
    assert 1.0 <= fewest.objective < uniform.objective
    assert uniform.beaten == 0.0
    assert set(uniform.ratios) == {(s.name, 0.7, f) for s in DEMO for f in (0.0, 1.0)}
    assert validation(Like(0)) == fewest


def test_the_log_has_the_objective(run_directory: Path) -> None:
    header, *rows = (run_directory / "training.csv").read_text().splitlines()
    column = header.split(",").index("evaluation/objective")
    assert len(rows) == 3
    assert float(rows[-1].split(",")[column]) > 0
    assert json.loads((run_directory / "config.json").read_text())["threads"] == 1
