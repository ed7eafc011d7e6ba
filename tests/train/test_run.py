"""Training on named scenarios: teachers, validation, what cannot be trained on."""

import csv
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import fairlead.train.run
from fairlead.env.vector import RouterVectorEnv
from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.train.config import TrainConfig
from fairlead.train.run import Judge, saved_run, shares, train
from fairlead.train.teachers import make_teacher
from fairlead.train.validation import Report, Setting, Validation, Validations
from fairlead.view.features import NUM_FEATURES
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


def test_ppo_sees_fewer_clusters_that_weigh_the_tail_and_imitation_all_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[int, float] = {}

    class Noted(RouterVectorEnv):
        def __init__(self, *args: Any, **options: Any) -> None:
            made[options["group"]] = options["favor_power"]
            super().__init__(*args, **options)

    monkeypatch.setattr(fairlead.train.run, "RouterVectorEnv", Noted)
    train(TrainConfig.model_validate(SMALL), DEMO, tmp_path / "run")
    assert made == {1: 1.0, 4: TrainConfig().environment.favor_power} == {1: 1.0, 4: 2.0}


def test_training_twice_gives_the_same_policy(run_directory: Path, tmp_path: Path) -> None:
    train(TrainConfig.model_validate(SMALL), DEMO, tmp_path / "again")
    first, second = (p / "policy.onnx" for p in (run_directory, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_another_run_is_not_disturbed(run_directory: Path) -> None:
    told: list[str] = []
    with pytest.raises(FairleadError, match="is not empty"):
        train(TrainConfig.model_validate(SMALL), DEMO, run_directory, say=told.append)
    assert told == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teachers": {"chat-mmpp": "lor"}}, "teachers"),
        ({"imitation": SMALL["imitation"] | {"weights": {"chat-mmpp": 2}}}, r"imitation\.weights"),  # type: ignore[operator]
    ],
)
def test_settings_of_scenarios_that_are_not_trained_on_are_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(FairleadError, match=f"{named} names chat-mmpp, which is not trained on"):
        train(TrainConfig.model_validate(SMALL | changes), DEMO, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_round_of_imitation_is_one_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long: clusters that begin anew over and over are never seen in full swing."""
    lengths = []

    def recorded(*args: Any, **settings: Any) -> RouterVectorEnv:
        lengths.append(settings["episode_requests"])
        return RouterVectorEnv(*args, **settings)

    monkeypatch.setattr(fairlead.train.run, "RouterVectorEnv", recorded)
    longer = SMALL["imitation"] | {"steps": 100}  # type: ignore[operator]
    train(TrainConfig.model_validate(SMALL | {"imitation": longer}), DEMO, tmp_path / "run")
    assert sorted(lengths) == [32 * 2, 100]


MIXED = SMALL | {
    "environment": {"num_envs": 24, "group": 4, "imitation_envs": 6},
    "ppo": SMALL["ppo"]
    | {"minibatch": 200, "cloning": [[0, 0.5], [1, 0]], "reference_kl": [[0, 0.1], [1, 0]]},  # type: ignore[operator]
}


def test_scenarios_of_different_sizes_are_trained_on_together(tmp_path: Path) -> None:
    """Side by side, one environment for each size; the same run twice gives the same policy."""
    scenarios = [load_scenario("chat-8"), *DEMO]
    for name in ("first", "second"):
        result = train(TrainConfig.model_validate(MIXED), scenarios, tmp_path / name)
    assert result.decisions == 2 * 40 * 6 + 3 * 32 * 24
    policies = [(tmp_path / name / "policy.onnx").read_bytes() for name in ("first", "second")]
    assert policies[0] == policies[1]
    with (tmp_path / "first" / "training.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert sum(float(row[f"actions/replica_{r}_r8"]) for r in range(8)) == pytest.approx(1.0)
    assert float(row["performance/ttft_p90_s_r4"]) > 0
    assert float(row["evaluation/vs_random"]) > 0
    router = OnnxRouter(tmp_path / "first" / "policy.onnx")
    for replicas in (2, 4, 64):
        features = np.zeros((3, replicas, NUM_FEATURES), np.float32)
        assert router.logits(features).shape == (3, replicas)


def test_clusters_are_dealt_to_sizes_in_whole_groups() -> None:
    assert shares(128, [2], 8) == [128]
    assert shares(128, [3, 1], 8) == [96, 32]
    assert shares(24, [1, 9, 1], 8) == [8, 72, 8]  # every scenario is seen
    assert sum(shares(4096, [7, 2, 5], 16)) == 4096


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


def test_when_the_heuristics_are_beaten_is_said_once_without_saying_too_much() -> None:
    found = Report(0.974, {Setting("chat-equal", 0.7, 0.0): 0.93, Setting("chat-equal", 0.9, 0.0): 1.018}, {})
    said: list[str] = []
    judge = Judge(cast(Validations, lambda router: found), said.append)
    for _ in range(2):
        judge(cast(NetworkRouter, None))
    (words,) = said
    assert "what the dial weighs is on average 2.6 % below the best heuristic of each setting" in words
    assert "(below it in 50 % of them), on the validation requests" in words


def test_the_log_has_the_objective(run_directory: Path) -> None:
    header, *rows = (run_directory / "training.csv").read_text().splitlines()
    column = header.split(",").index("evaluation/objective")
    assert len(rows) == 3
    assert float(rows[-1].split(",")[column]) > 0
    assert json.loads((run_directory / "config.json").read_text())["threads"] == 1
