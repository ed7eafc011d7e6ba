"""The command behind docs/results.md, in small, and the recipe of the packaged policy."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import generalist, routing_quality
from fairlead.cli.options import scenario_list
from fairlead.errors import FairleadError
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork

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


def test_what_cannot_be_measured_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(FairleadError, match="no policy file"):
        run(monkeypatch, "--policies", "none.onnx", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def recipe(*assignments: str, config: Path | None = None) -> argparse.Namespace:
    path = config or generalist.GENERALIST.with_suffix(".yaml")
    return argparse.Namespace(config=path, set=list(assignments), scenarios=None)


def test_the_generalists_recipe_can_be_followed():
    config, names = generalist.settings(recipe("seed=3"))
    assert config.seed == 3
    assert len(scenario_list(names)) >= 2


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("scenario: [chat-equal]")
    with pytest.raises(FairleadError, match="unknown key 'scenario'"):
        generalist.settings(recipe(config=tmp_path / "x.yaml"))
    (tmp_path / "y.yaml").write_text("scenarios: [chat-equal]\ntraining: {ppo: {clipp: 1}}")
    with pytest.raises(FairleadError, match="clip"):
        generalist.settings(recipe(config=tmp_path / "y.yaml"))
