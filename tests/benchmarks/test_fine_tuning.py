"""The benchmark that fine-tunes on each scenario by itself, in small: what it leaves can be measured."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.benchmarks import scripts

from benchmarks import routing_quality
from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork

SMALL = (
    "environment.num_envs=4",
    "environment.group=2",
    "ppo.iterations=1",
    "ppo.rollout_steps=16",
    "ppo.critic_warmup_iterations=1",
    "validation.favors=[0.5]",
    "validation.seeds=1",
    "validation.requests=100",
)


@pytest.fixture(scope="module")
def fine_tuning() -> ModuleType:
    return scripts.load("fine_tuning")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "start.onnx"
    shape: dict[str, Any] = {"hidden": 8, "layer_norm": False}
    export_onnx(RouterNetwork(**shape, seed=0), path, config={"network": shape}, training={})
    return path


def test_a_policy_for_each_scenario_is_trained_and_measured(
    fine_tuning, start, tmp_path, monkeypatch, capsys
):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "replicas: [{device: a100-80g, count: 2}]\nloads: [0.5]\n"
        "workload:\n  arrivals: {kind: poisson}\n  lengths: {kind: fixed, prompt: 50, output: 9}\n"
    )
    names, out = f"{mine},uniform-lengths", tmp_path / "out"
    asked = f"fine_tuning.py --scenarios {names} --policy {start} --out {out} --jobs 1"
    asked += "".join(f" --set {assignment}" for assignment in SMALL)
    monkeypatch.setattr(sys, "argv", asked.split())
    fine_tuning.main()
    told = capsys.readouterr().err
    for name in ("mine", "uniform-lengths"):
        assert re.search(rf"^{name}: \d\.\d{{4}} before, \d\.\d{{4}} in the end$", told, re.M)
        config = OnnxRouter(out / "policies" / f"{name}.onnx").metadata.config
        assert (config["start_from"], config["imitation"]) == (str(start), None)
        assert config["network"]["hidden"] == 8
        assert config["ppo"]["rollout_steps"] == 16
    kept = (out / "policies" / "mine.onnx").read_bytes()
    fine_tuning.main()  # goes on where it ended: a folder that is in use is never begun anew
    assert (out / "policies" / "mine.onnx").read_bytes() == kept

    asked = f"routing_quality.py --scenarios {names} --policies {out / 'policies'} --dials 0.5 --seeds 2"
    asked += f" --requests 60 --no-lookahead --jobs 1 --out {tmp_path / 'quality'} --json"
    monkeypatch.setattr(sys, "argv", asked.split())
    routing_quality.main()
    found = json.loads(capsys.readouterr().out)
    assert [each["scenario"] for each in found["scenarios"]] == ["mine", "uniform-lengths"]


def test_what_cannot_be_trained_is_an_error(fine_tuning, start):
    with pytest.raises(FairleadError, match="clipp"):
        fine_tuning.settings(str(start), ["ppo.clipp=1"])
    with pytest.raises(FairleadError, match="chat-equal"):
        fine_tuning.one_by_one("chat-equl")
    found = fine_tuning.one_by_one("drawn~3..5,chat-equal")
    assert [(text, each.name) for text, each in found] == [
        (name, name) for name in ("drawn~3", "drawn~4", "drawn~5", "chat-equal")
    ]
