import csv
import json

import numpy as np
import pytest
import torch

from fairlead import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.train import checkpoint
from fairlead.train.state import new_network
from fairlead.train.tracking import Progress
from fairlead.train.trainer import TrainingInterrupted, train


@pytest.fixture
def go(toy):
    """Train on the queues."""

    def run(directory, config=None, make=toy.make, **options):
        return train(config or toy.config(), directory, make, features=toy.features, **options)

    return run


def comparable(directory, config):
    """The checkpoint without the clocks."""
    saved = checkpoint.load(directory / "checkpoint.pt", config)
    saved["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in saved["history"]]
    return {k: v for k, v in saved.items() if k not in ("seconds", "seconds_by_phase")}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_the_main_path(go, toy, tmp_path):
    seen: list[Progress] = []
    result = go(tmp_path / "run", evaluate=toy.evaluate, on_progress=seen.append)
    assert {each.stage for each in seen} == {"imitation", "critic warm-up", "ppo", "evaluation"}
    assert (seen[-1].done, seen[-1].total) == (5, 5)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    logs = {"imitation.csv", "training.csv", "features.csv", "tensorboard"}
    assert names == {"config.json", "checkpoint.pt", "policy.onnx"} | logs
    assert result.decisions == 2 * 20 * 16 + 5 * 32 * 16
    # After imitation, then every second iteration except the critic's warm-up, then at the end.
    assert [row["iteration"] for row in result.history] == [0, 2, 4, 5]
    assert result.objective == min(row["objective"] for row in result.history)
    assert {"simulate", "forward", "learn", "teacher", "evaluate"} <= {
        phase for phase, seconds in result.seconds_by_phase.items() if seconds > 0
    }
    with (tmp_path / "run" / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == list("01234")
    assert rows[0]["losses/policy_loss"] == "0.0"  # the critic warms up alone
    router = OnnxRouter(result.policy, features=toy.features)
    assert router.metadata.training["objective"] == result.objective
    assert router.metadata.config["seed"] == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1


def test_a_run_whose_time_is_over_stops_after_the_round_or_iteration_that_it_is_in(go, toy, tmp_path):
    """And resumed it trains nothing more, but says why; what it leaves has been evaluated."""
    config = toy.config().model_copy(update={"minutes": 1e-6})
    result = go(tmp_path / "run", config, evaluate=toy.evaluate)
    assert result.decisions == 20 * 16  # one round of imitation
    assert result.ended_early == "its 1e-06 minutes are over"
    assert len(result.history) == 1 and result.policy.is_file()
    again = go(tmp_path / "run", config, evaluate=toy.evaluate, resume=True)
    assert (again.decisions, again.ended_early) == (result.decisions, result.ended_early)
    alone = config.model_copy(update={"imitation": None})
    result = go(tmp_path / "alone", alone, evaluate=toy.evaluate)
    assert result.decisions == 32 * 16
    again = go(tmp_path / "alone", alone, evaluate=toy.evaluate, resume=True)
    assert (again.decisions, again.ended_early) == (result.decisions, result.ended_early)


def test_a_directory_below_a_file_is_refused(go, tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file" / "run", tmp_path / "file" / "more" / "run"):
        with pytest.raises(
            FairleadError, match=r"file is a file, so that there can be no .*run: choose another"
        ):
            go(directory)


@pytest.mark.parametrize(("keep", "kept"), [("best", 1.0), ("last", 3.0)])
def test_imitation_is_evaluated_between_its_rounds(go, toy, tmp_path, keep, kept):
    """The best of all is kept, also where it was found before the last round; or the last, if so asked."""
    marks = iter([1.0, 2.0, 3.0])
    config = toy.config()
    nothing = config.ppo.model_copy(update={"iterations": 0, "critic_warmup_iterations": 0})
    often = config.imitation.model_copy(update={"rounds": 5, "evaluate_every": 2})
    config = config.model_copy(update={"imitation": often, "ppo": nothing, "keep": keep})
    result = go(tmp_path / "run", config, evaluate=lambda router: next(marks))
    assert [row["objective"] for row in result.history] == [1.0, 2.0, 3.0]  # rounds 2, 4 and the last
    decisions = [row["decisions"] for row in result.history]
    assert decisions == sorted(set(decisions)) and decisions[-1] == result.decisions
    assert (
        result.objective
        == OnnxRouter(result.policy, features=toy.features).metadata.training["objective"]
        == kept
    )


def test_pitfall_14_acting_training_and_exported_policy_agree(go, toy, tmp_path):
    result = go(tmp_path / "run")
    network = new_network(toy.config(), toy.features)
    checkpoint.load_weights(network, comparable(tmp_path / "run", toy.config())["network"])
    observation, _ = toy.make().reset(seed=5)
    observation = np.random.default_rng(0).exponential(1, observation.shape).astype(np.float32)
    tensor = torch.from_numpy(observation)
    training = network(tensor)[0].detach().numpy()  # as in the update
    with torch.inference_mode():
        acting = torch.cat([network(tensor[i : i + 1])[0] for i in range(len(tensor))]).numpy()  # one by one
    exported = OnnxRouter(result.policy, features=toy.features).logits(observation)
    assert np.abs(training).max() > 0.1
    np.testing.assert_allclose(acting, training, atol=1e-5)
    np.testing.assert_allclose(exported, training, atol=1e-5)


def test_training_twice_gives_the_same_weights(go, toy, tmp_path):
    for name in "ab":
        go(tmp_path / name, evaluate=toy.evaluate)
    a, b = (comparable(tmp_path / name, toy.config()) for name in "ab")
    assert same(a, b)
    assert (tmp_path / "a" / "policy.onnx").read_bytes() == (tmp_path / "b" / "policy.onnx").read_bytes()
    other = toy.config().model_copy(update={"seed": 2})
    go(tmp_path / "c", other)
    assert not same(comparable(tmp_path / "c", other)["network"], a["network"])


def interrupting(toy, decisions):
    """The queues with somebody who presses Ctrl-C in the middle of a rollout."""

    class Interrupted(toy.make):  # type: ignore[misc, name-defined]
        steps = 0

        def step(self, actions):
            type(self).steps += 1
            if type(self).steps == decisions:
                raise KeyboardInterrupt
            return super().step(actions)

    return Interrupted


# Imitation takes 2 x 20 steps; an iteration 32; episodes begin every second iteration.
@pytest.mark.parametrize("at", [5, 30, 50, 40 + 33, 40 + 32 * 3 + 7])
def test_an_interrupted_run_resumes_bit_for_bit(go, toy, tmp_path, at):
    config = toy.config(kl_control="adaptive")
    go(tmp_path / "whole", config, evaluate=toy.evaluate)
    with pytest.raises(TrainingInterrupted, match="can be resumed"):
        go(tmp_path / "cut", config, make=interrupting(toy, at), evaluate=toy.evaluate)
    result = go(tmp_path / "cut", config, evaluate=toy.evaluate, resume=True)
    assert same(comparable(tmp_path / "cut", config), comparable(tmp_path / "whole", config))
    assert (tmp_path / "cut" / "policy.onnx").read_bytes() == (
        tmp_path / "whole" / "policy.onnx"
    ).read_bytes()
    for name, skip in (("training.csv", (2, 3)), ("imitation.csv", (2,))):
        rows = []
        for run in ("whole", "cut"):
            with (tmp_path / run / name).open(newline="") as file:
                rows.append([[x for i, x in enumerate(row) if i not in skip] for row in csv.reader(file)])
        assert rows[0] == rows[1]
    assert result.seconds > 0


def test_resuming_a_finished_run_changes_nothing(go, toy, tmp_path):
    go(tmp_path / "run", evaluate=toy.evaluate)
    before = (tmp_path / "run" / "policy.onnx").read_bytes()
    result = go(tmp_path / "run", evaluate=toy.evaluate, resume=True)
    assert (tmp_path / "run" / "policy.onnx").read_bytes() == before
    assert [row["iteration"] for row in result.history] == [0, 2, 4, 5]


def test_the_best_weights_are_kept_not_the_last(go, toy, tmp_path):
    marks = iter([3.0, 1.0, 2.0, 5.0])
    result = go(tmp_path / "run", evaluate=lambda router: next(marks))
    assert (result.objective, result.iteration) == (1.0, 2)
    exported = OnnxRouter(result.policy, features=toy.features)
    assert exported.metadata.training["iteration"] == 2
    saved = comparable(tmp_path / "run", toy.config())
    observation = np.random.default_rng(0).exponential(1, (8, 3, 3)).astype(np.float32)
    for weights, expected in ((saved["best"]["weights"], True), (saved["network"], False)):
        network = new_network(toy.config(), toy.features)
        checkpoint.load_weights(network, weights)
        logits = network.logits(torch.from_numpy(observation)).detach().numpy()
        assert np.allclose(logits, exported.logits(observation), atol=1e-5) == expected


@pytest.mark.parametrize("critic", ["shared", "decoupled"])
def test_critic_warm_up_leaves_the_policy_alone(go, toy, tmp_path, critic):
    config = toy.config(critic, iterations=0, critic_warmup_iterations=2)
    result = go(tmp_path / "run", config, evaluate=toy.evaluate)
    saved = comparable(tmp_path / "run", config)
    actor = {name for name in saved["network"] if name.startswith(("trunk", "score_head"))}
    assert all(torch.equal(saved["best"]["weights"][name], saved["network"][name]) for name in actor)
    critic = set(saved["network"]) - actor
    assert not any(torch.equal(saved["best"]["weights"][name], saved["network"][name]) for name in critic)
    assert result.iteration == 0


def test_a_directory_with_something_in_it_is_refused(go, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FairleadError, match="not empty"):
        go(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_there_must_be_something_to_resume(go, tmp_path):
    with pytest.raises(FairleadError, match="no checkpoint"):
        go(tmp_path / "run", resume=True)


def test_an_evaluation_that_gives_nan_is_an_error(go, tmp_path):
    with pytest.raises(FairleadError, match="gave NaN"):
        go(tmp_path / "run", evaluate=lambda router: float("nan"))


def test_the_callers_torch_settings_are_left_alone(go, tmp_path):
    before = torch.get_rng_state()
    go(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 1
