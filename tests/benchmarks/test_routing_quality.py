"""The command behind docs/results.md, in small, and the recipe of the packaged policy."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import generalist, routing_quality
from fairlead.cli.options import scenario_list
from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter, actor_weights
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.train.teachers import make_teacher
from fairlead.workload.suites import load_scenarios

SCENARIO = """
replicas:
  - {device: a100-80g, count: 1}
  - {device: a100-80g, count: 1, slowdown: 2.0}
workload:
  arrivals: {kind: poisson}
  lengths: {kind: uniform, prompt: {min: 50, max: 200}, output: {min: 5, max: 20}}
loads: [0.5, 0.8]
"""


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["routing_quality.py", *options])
    routing_quality.main()


def test_a_scenario_of_ones_own_is_measured_judged_and_written_down(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(SCENARIO)
    policies = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for seed, path in enumerate(policies):
        export_onnx(RouterNetwork(seed=seed), path, config={}, training={})
    page = tmp_path / "docs" / "results.md"
    options = (
        *("--scenarios", f"{tmp_path / 'mine.yaml'}", "--policies", ",".join(map(str, policies))),
        *("--dials", "0.5", "--seeds", "2", "--requests", "60", "--no-lookahead", "--jobs", "1"),
        *("--out", str(tmp_path / "out"), "--page", str(page), "--json"),
    )
    run(monkeypatch, *options)
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "quality.json").read_text()) == found
    (scenario,) = found["scenarios"]
    assert scenario["scenario"] == "mine" and scenario["unequal"] and scenario["loads"] == [0.5, 0.8]
    assert scenario["default"]["e2e_mean_s"]["over"] == "training seeds"
    assert found["summary"]["scenarios"] == 1 and len(found["single_loads"]) == 2
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results") and "## mine" in text
    assert (page.parent / "frontiers" / "mine.svg").is_file()
    run(monkeypatch, *options)
    again = capsys.readouterr()
    assert json.loads(again.out) == found and again.err == ""  # nothing was run again


def test_many_scenarios_are_a_brief_page(tmp_path, monkeypatch):
    for name in ("mine", "yours"):
        (tmp_path / f"{name}.yaml").write_text(f"description: The cluster of {name}.\n{SCENARIO}")
    page = tmp_path / "docs" / "brief.md"
    run(
        monkeypatch,
        *("--scenarios", f"{tmp_path / 'mine.yaml'},{tmp_path / 'yours.yaml'}", "--dials", "0.75"),
        *("--seeds", "2", "--requests", "60", "--no-lookahead", "--brief", "--jobs", "1"),
        *("--out", str(tmp_path / "out"), "--page", str(page)),
    )
    text = page.read_text(encoding="utf-8")
    assert "--brief" in text and "- `yours`: The cluster of yours." in text
    assert "| **learned, favor 0.75** |" in text and "| least_work |" in text
    assert "## mine" not in text and not list(page.parent.glob("frontiers/*"))
    standings = json.loads((tmp_path / "out" / "quality.json").read_text())["standings"]
    assert set(standings["least_work"]) == {"e2e_mean_s", "ttft_p99_s"}


def test_what_cannot_be_measured_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(FairleadError, match="no policy file"):
        run(monkeypatch, "--policies", "none.onnx", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def recipe(*assignments: str, config: Path | None = None) -> argparse.Namespace:
    path = config or generalist.GENERALIST.with_suffix(".yaml")
    return argparse.Namespace(config=path, set=list(assignments), scenarios=None, out=Path("runs"))


def test_the_generalists_recipe_can_be_followed():
    """Every stage goes on from one before or from scratch, and is taught by what there is by then."""
    stages = generalist.settings(recipe("threads=2"))
    trainings = [training for stage in stages for training in stage.trainings]
    assert {training.config.threads for training in trainings} == {2}
    there: set[str] = set()
    for stage in stages:
        for training in stage.trainings:
            scenarios = {scenario.name for scenario in scenario_list(training.scenarios)}
            assert set(training.config.teachers) <= scenarios
            asked = {str(training.config.teacher), *training.config.teachers.values()}
            files = {who for who in asked if who.endswith(".onnx")} | {training.config.start_from} - {None}
            assert files <= there
            make_teacher(
                "lookahead",
                elsewhere={name: who for name, who in training.config.teachers.items() if who not in files},
            )
        there |= {f"runs/{training.name}/policy.onnx" for training in stage.trainings}
        there |= {f"runs/{stage.name}/policy.onnx"} if stage.mean_of else set()
    assert stages[-1].mean_of or len(stages[-1].trainings) == 1
    assert {scenario.name for scenario in load_scenarios("suite/standard")} <= scenarios


def test_kinds_teach_their_scenarios_in_the_next_stage(tmp_path):
    path = tmp_path / "recipe.yaml"
    stages = {
        "first": {},
        "alone": {
            "imitation": {"rounds": 3},
            "kinds": {"a": {"scenarios": ["chat-equal", "chat-stale"], "imitation": {"steps": 64}}},
        },
        "unite": {
            "scenarios": [[["drawn~1"], "drawn~2"]],
            "start_from": None,
            "teacher": "first",
            "teachers": {"code-equal": "lor"},
        },
    }
    content = {"scenarios": ["chat-equal", "code-equal"], "stages": stages}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    (first,), (alone,), (unite,) = (stage.trainings for stage in generalist.settings(recipe(config=path)))
    assert (alone.name, alone.scenarios) == ("alone/a", ["chat-equal", "chat-stale"])
    assert alone.config.start_from == unite.config.teacher == "runs/first/policy.onnx"
    assert alone.config.imitation is not None
    assert (alone.config.imitation.rounds, alone.config.imitation.steps) == (3, 64)
    assert unite.config.start_from is None
    assert unite.config.teachers == {"chat-equal": "runs/alone/a/policy.onnx", "code-equal": "lor"}
    assert first.scenarios == ["chat-equal", "code-equal"]
    assert unite.scenarios == [*first.scenarios, "drawn~1", "drawn~2"]


def test_who_teaches_can_be_said_once_for_many_scenarios(tmp_path):
    path = tmp_path / "recipe.yaml"
    unite = {
        "scenarios": [["drawn~1", "drawn~2"], ["drawn~2", "drawn~3", "chat-equal"]],
        "taught_by": {"first": [["drawn~1", "drawn~2"], "chat-equal"], "least_work": ["drawn~2"]},
        "teachers": {"chat-equal": "lor"},
    }
    kinds = {"a": {"scenarios": ["chat-equal", "chat-stale"]}}
    stages = {"first": {}, "alone": {"kinds": kinds}, "unite": unite}
    content = {"scenarios": ["chat-equal", "chat-stale"], "stages": stages}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    (united,) = generalist.settings(recipe(config=path))[-1].trainings
    assert united.scenarios == ["chat-equal", "chat-stale", "drawn~1", "drawn~2", "drawn~3"]
    assert united.config.teachers == {
        "chat-equal": "lor",
        "chat-stale": "runs/alone/a/policy.onnx",
        "drawn~1": "runs/first/policy.onnx",
        "drawn~2": "least_work",
    }


def test_the_generalist_is_trained_stage_by_stage(tmp_path, monkeypatch):
    """Each stage goes on from the last one's policy; called again, nothing is trained again."""
    small = {
        "environment": {"num_envs": 4, "group": 2, "imitation_envs": 4},
        "imitation": {"rounds": 1, "steps": 16, "teacher_steps": 16, "epochs": 1},
        "ppo": {"iterations": 0, "critic_warmup_iterations": 0, "rollout_steps": 32},
        "validation": {"loads": [0.6], "favors": [0.0, 1.0]},
    }
    kinds = {"one": {"scenarios": ["chat-equal"]}, "other": {"scenarios": ["chat-unequal"], "seed": 1}}
    stages = {"first": {}, "second": {"teacher": "least_work", "kinds": kinds}, "third": {"start_from": None}}
    path = tmp_path / "recipe.yaml"
    content = {"scenarios": ["chat-equal", "chat-unequal"], "training": small, "stages": stages}
    stages |= {"both": {"mean_of": ["first", "third"]}, "fourth": {}, "all": {"mean_of": ["both", "fourth"]}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    out = tmp_path / "out"
    arguments = ["generalist.py", "--config", str(path), "--out", str(out), "--no-install"]
    monkeypatch.setattr("sys.argv", arguments)
    generalist.main()
    written = (out / "generalist.json").read_text()
    found = json.loads(written)
    assert list(found["stages"]) == ["first", "second/one", "second/other", "third", "fourth"]
    assert found["stages"]["fourth"]["config"]["start_from"] == str(out / "both" / "policy.onnx")
    assert found["stages"]["second/other"]["config"]["start_from"] == str(out / "first" / "policy.onnx")
    teachers = found["stages"]["third"]["config"]["teachers"]
    assert teachers["chat-unequal"] == str(out / "second" / "other" / "policy.onnx")
    assert OnnxRouter(out / "all" / "policy.onnx").metadata.training["mean_of"] == [
        str(out / name / "policy.onnx") for name in ("both", "fourth")
    ]
    weights = [actor_weights(out / name / "policy.onnx") for name in ("first", "third", "both")]
    for name, both in weights[2].items():
        assert both == pytest.approx((weights[0][name] + weights[1][name]) / 2, abs=1e-6)
    generalist.main()
    assert (out / "generalist.json").read_text() == written


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("scenario: [chat-equal]")
    with pytest.raises(FairleadError, match="unknown key 'scenario'"):
        generalist.settings(recipe(config=tmp_path / "x.yaml"))
    (tmp_path / "y.yaml").write_text("scenarios: [chat-equal]\nstages: {only: {ppo: {clipp: 1}}}")
    with pytest.raises(FairleadError, match="clip"):
        generalist.settings(recipe(config=tmp_path / "y.yaml"))
    stages = "{first: {kinds: {a: {scenarios: [chat-equal]}}}, second: {mean_of: [first/a, other]}}"
    (tmp_path / "z.yaml").write_text(f"scenarios: [chat-equal]\nstages: {stages}")
    with pytest.raises(FairleadError, match="stage second: no stage before it is called 'other'"):
        generalist.settings(recipe(config=tmp_path / "z.yaml"))
    (tmp_path / "z.yaml").write_text(
        "scenarios: [chat-equal]\nstages: {a: {}, b: {mean_of: [a, a], seed: 1}}"
    )
    with pytest.raises(FairleadError, match="nothing stands beside mean_of"):
        generalist.settings(recipe(config=tmp_path / "z.yaml"))
