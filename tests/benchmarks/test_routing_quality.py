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


RECIPE = generalist.GENERALIST.with_suffix(".yaml")


def recipe(*assignments: str, config: Path = RECIPE) -> argparse.Namespace:
    return argparse.Namespace(config=config, set=list(assignments), scenarios=None, out=Path("runs"))


def test_the_generalists_recipe_can_be_followed():
    """Its stages go on from one another, over the whole suite."""
    scenarios, stages = generalist.recipe(recipe("threads=2"))
    assert {config.threads for config in stages.values()} == {2}
    known = {scenario.name for scenario in scenario_list(scenarios)}
    assert {scenario.name for scenario in load_scenarios("suite/standard")} <= known
    before = None
    for name, config in stages.items():
        assert config.start_from == before
        assert set(config.teachers) <= known
        if config.imitation is not None:
            make_teacher(config.teacher, privileged=config.privileged, elsewhere=config.teachers)
        before = f"runs/{name}/policy.onnx"


def test_the_generalist_is_trained_stage_by_stage(tmp_path, monkeypatch):
    """Each stage goes on from the last one's policy; called again, nothing is trained again."""
    small = {
        "environment": {"num_envs": 4, "group": 2, "imitation_envs": 4},
        "imitation": {"rounds": 1, "steps": 16, "teacher_steps": 16, "epochs": 1},
        "ppo": {"iterations": 0, "critic_warmup_iterations": 0, "rollout_steps": 32},
        "validation": {"loads": [0.6], "favors": [0.0, 1.0]},
    }
    stages = {"first": {}, "second": {"seed": 3, "imitation": {"rounds": 2}}}
    path = tmp_path / "recipe.yaml"
    content = {"scenarios": ["chat-equal", "chat-unequal"], "training": small, "stages": stages}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    out = tmp_path / "out"
    arguments = ["generalist.py", "--config", str(path), "--out", str(out), "--no-install"]
    monkeypatch.setattr("sys.argv", arguments)
    generalist.main()
    written = (out / "generalist.json").read_text()
    found = json.loads(written)
    assert found["scenarios"] == ["chat-equal", "chat-unequal"]
    assert list(found["stages"]) == ["first", "second"]
    first, second = (each["config"] for each in found["stages"].values())
    assert (first["start_from"], second["start_from"]) == (None, str(out / "first" / "policy.onnx"))
    assert (first["seed"], second["seed"]) == (0, 3)
    assert second["imitation"] == first["imitation"] | {"rounds": 2}
    generalist.main()
    assert (out / "generalist.json").read_text() == written


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("scenario: [chat-equal]")
    with pytest.raises(FairleadError, match="unknown key 'scenario'"):
        generalist.recipe(recipe(config=tmp_path / "x.yaml"))
    (tmp_path / "y.yaml").write_text("scenarios: [chat-equal]\nstages: {only: {ppo: {clipp: 1}}}")
    with pytest.raises(FairleadError, match="clip"):
        generalist.recipe(recipe(config=tmp_path / "y.yaml"))
