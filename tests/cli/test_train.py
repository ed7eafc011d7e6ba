"""`fairlead train`, from the command line."""

import json

import pytest
import yaml
from tests.emulated import emulated

from fairlead.policy import packaged
from fairlead.workload.scenario import load_scenario

SHORT = {
    "arrivals": {"kind": "poisson"},
    "lengths": {"kind": "uniform", "prompt": {"min": 20, "max": 100}, "output": {"min": 2, "max": 10}},
}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--scenario"),
        (("--scenario", "chat-unequl"), "chat-unequal"),
        (("--scenario", "uniform-lengths", "--load", "1.5"), "1.5"),
        (("--scenario", "uniform-lengths", "--set", "ppo.learning_rate"), "--set"),
        (("--scenario", "uniform-lengths", "--set", "ppo.clipp=0.1"), "clip"),
        (("--scenario", "uniform-lengths", "--set", "ppo.clip=-1"), "ppo.clip"),
        (("--scenario", "uniform-lengths", "--config", "none.yaml"), "none.yaml"),
        (("--scenario", "uniform-lengths", "--resume"), "--resume"),
        (("--resume", "--seed", "1"), "--resume"),
        (("--scenario", "uniform-lengths", "--favor", "2"), "favor"),
        (("--scenario", "uniform-lengths", "--start-from", "none.onnx"), "none.onnx"),
        (("--scenario", "uniform-lengths", "--start-from", "fairlead/generalst"), "fairlead/generalist"),
        (("--scenario", "uniform-lengths", "--rate", "2"), "--backend"),
        (("--scenario", "uniform-lengths", "--set", "live.request_s=3", "--from-scratch"), "--start-from"),
        (("--scenario", "uniform-lengths", "--from-scratch", "--teacher", "lor"), "leave out teacher"),
        (("--backend", "http://127.0.0.1:1", "-s", "chat-equal,chat-unequal", "--rate", "2"), "name one"),
        (("--backend", "http://127.0.0.1:1", "--scenario", "uniform-lengths"), "--rate 4"),
        (("--backend", "http://127.0.0.1:1", "-s", "uniform-lengths", "--rate", "2"), "--start-from"),
        (("--backend", "http://127.0.0.1:1", "-s", "uniform-lengths", "--load", "0.5"), "--load"),
        (("--backend", "x", "-s", "uniform-lengths", "--rate", "2"), "not the address of a server"),
        (("--backend", "http://127.0.0.1:1", "--resume"), "no training run"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(fairlead, tmp_path, options, named):
    out = tmp_path / "run"
    ended = fairlead("train", "--out", str(out), *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert named in ended.err
    assert not out.exists()


def test_a_directory_in_use_is_refused_before_anything_is_measured(fairlead, tmp_path, monkeypatch):
    def measure(scenario):
        raise AssertionError("too late")

    monkeypatch.setattr("fairlead.cli.train.capacity", measure)
    (tmp_path / "notes.txt").write_text("keep me")
    ended = fairlead("train", "--scenario", "uniform-lengths", "--out", str(tmp_path))
    assert ended.code == 2 and "is not empty" in ended.err
    assert (tmp_path / "notes.txt").read_text() == "keep me"


SMALL = (
    "--scenario=uniform-lengths",
    "--load=0.6,0.8",
    "--set=environment.num_envs=4",
    "--set=environment.group=2",
    "--set=environment.imitation_envs=2",
    "--set=ppo.rollout_steps=16",
    "--set=ppo.reset_every=2",
    "--set=ppo.critic_warmup_iterations=1",
    "--set=imitation.rounds=1",
    "--set=imitation.steps=16",
    "--set=imitation.teacher_steps=16",
    "--set=imitation.epochs=1",
    "--set=validation.loads=[0.7]",
    "--set=validation.favors=[0.5]",
    "--set=environment.favor=[0.5,0.5]",
    "--set=threads=1",
    "--set=evaluate_every=1",
)


def test_a_policy_is_trained_and_takes_part_in_an_evaluation(fairlead, tmp_path):
    out = tmp_path / "policy"
    ended = fairlead("train", *SMALL, "--iterations", "1", "--out", str(out))
    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert str(out / "policy.onnx") in ended.err
    evaluated = fairlead(
        *("evaluate", "--scenario", "uniform-lengths", "--load", "0.7", "--requests", "60", "--seeds", "2"),
        *("--routers", f"lor,{out / 'policy.onnx'}", "--training-log", str(out / "training.csv")),
        *("--out", str(tmp_path / "evaluation"), "--dependence"),
    )
    assert evaluated.code == 0, evaluated.err
    assert "What the policy depends on" in (tmp_path / "evaluation" / "report.html").read_text(
        encoding="utf-8"
    )
    assert "policy" in evaluated.out

    again = fairlead("train", *SMALL, "--iterations", "1", "--out", str(out))
    assert again.code == 2 and str(out) in again.err


def test_a_trained_policy_is_fine_tuned_and_settings_come_from_toml(fairlead, tmp_path, monkeypatch):
    settings = tmp_path / "settings.toml"
    settings.write_text("evaluate_every = 1\n[network]\nhidden = 16\n", encoding="utf-8")
    first = fairlead(
        *("train", *SMALL, "--iterations", "1", "--config", str(settings), "--out", str(tmp_path / "first"))
    )
    assert first.code == 0, first.err
    (tmp_path / "policies").mkdir()
    (tmp_path / "first" / "policy.onnx").rename(tmp_path / "policies" / "generalist.onnx")
    monkeypatch.setattr(packaged, "DIRECTORY", tmp_path / "policies")
    settings = tuple(s for s in SMALL if "imitation." not in s)
    second = fairlead(
        *("train", *settings, "--start-from", "fairlead/generalist"),
        *("--iterations", "1", "--favor", "0.5", "--device", "cpu", "--out", str(tmp_path / "second")),
    )
    assert second.code == 0, second.err
    assert "with the policy that it started from" in second.err
    config = json.loads((tmp_path / "second" / "config.json").read_text(encoding="utf-8"))
    assert config["network"]["hidden"] == 16  # that of the policy
    assert (config["imitation"], config["environment"]["favor"]) == (None, [0.5, 0.5])
    assert config["start_from"] == "fairlead/generalist"

    # With a teacher it imitates after all, and keeps what it started from if that was better.
    third = fairlead(
        *("train", *SMALL, "--start-from", "fairlead/generalist", "--teacher", "counterfactual"),
        *("--iterations", "1", "--out", str(tmp_path / "taught")),
    )
    assert third.code == 0, third.err
    config = json.loads((tmp_path / "taught" / "config.json").read_text(encoding="utf-8"))
    assert config["teacher"] == "counterfactual" and config["imitation"]["rounds"] > 0
    assert config["imitation"]["soft_labels"] == 0.0

    larger = ("--set", "network.hidden=32", "--out", str(tmp_path / "third"))
    refused = fairlead("train", *settings, "--start-from", "fairlead/generalist", *larger)
    assert refused.code == 2 and "another architecture" in refused.err


def test_a_run_that_was_interrupted_goes_on_with_resume(fairlead, tmp_path, monkeypatch):
    from fairlead.train.state import TrainState
    from fairlead.train.surroundings import Judgement, Run

    out = tmp_path / "policy"
    judged: list[int] = []
    judge = Run.judge

    def interrupting(run: Run, state: TrainState) -> Judgement:
        judged.append(state.iteration)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(run, state)

    monkeypatch.setattr(Run, "judge", interrupting)
    alone = [option for option in SMALL if "imitation." not in option]
    ended = fairlead("train", *alone, "--iterations", "2", "--from-scratch", "--out", str(out))
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1].startswith("interrupted: ")
    assert f"fairlead train --out {out} --resume" in ended.err
    assert fairlead("train", "--out", str(out), "--resume").code == 0
    assert (out / "policy.onnx").is_file()


def test_a_policy_is_fine_tuned_on_live_servers(fairlead, tmp_path):
    first = fairlead("train", *SMALL, "--iterations", "1", "--out", str(tmp_path / "first"))
    assert first.code == 0, first.err
    scenario = load_scenario("uniform-lengths").replace(workload=SHORT)
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(scenario.model_dump(mode="json", exclude={"name"})), encoding="utf-8")
    out = tmp_path / "tuned"
    with emulated(scenario, model="tiny") as urls:
        ended = fairlead(
            *("train", "--backend", urls[0], "--backend", urls[1], "--rate", "40", "--scenario", str(file)),
            *("--start-from", str(tmp_path / "first" / "policy.onnx"), "--requests", "200"),
            *(
                "--set",
                "ppo.rollout_steps=20",
                "--set",
                "ppo.critic_warmup_iterations=0",
                "--iterations",
                "1",
            ),
            *("--set", "live.comparison_requests=10", "--set", "live.comparison_seeds=2", "--out", str(out)),
        )
    assert (ended.code, ended.out) == (0, ""), ended.err
    assert "1 iterations of 20 decisions on 2 live servers" in ended.err
    assert str(out / "policy.onnx") in ended.err and str(out / "comparison" / "report.html") in ended.err
