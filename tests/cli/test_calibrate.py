import json
from pathlib import Path

import numpy as np
import pytest

from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import analytic
from fairlead.workload.scenario import load_scenario

LLAMA = analytic(model("llama-3-8b"), device("a100-80g"))


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    draw = np.random.default_rng(2)
    rows = ["tokens,seqs,kv_tokens,pairs,seconds"]
    for _ in range(300):
        decodes, chunk = int(draw.integers(1, 100)), int(draw.integers(0, 1000))
        kv, pairs = decodes * int(draw.integers(100, 2000)), chunk * int(draw.integers(500, 3000))
        tokens, seqs = decodes + chunk, decodes + (chunk > 0)
        seconds = LLAMA.base_s + max(LLAMA.weights_s, LLAMA.token_s * tokens) + LLAMA.seq_s * seqs
        seconds += LLAMA.kv_s * kv + LLAMA.pair_s * pairs
        rows.append(f"{tokens},{seqs},{kv},{pairs},{seconds * draw.lognormal(0, 0.01)}")
    path = tmp_path / "iterations.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_fitted_coefficients_run_a_scenario(fairlead, tmp_path: Path, measurements: Path):
    out = tmp_path / "coefficients.json"
    ended = fairlead("calibrate", "fit", "--measurements", str(measurements), "--out", str(out))
    assert ended.code == 0, ended.err
    assert "R^2 0.99" in ended.out
    scenario = tmp_path / "mine.yaml"
    scenario.write_text(
        "replicas:\n- device: a100-80g\n  timing: {kind: fitted, path: coefficients.json}\n  slowdown: 2\n"
        "workload:\n  arrivals: {kind: poisson}\n"
        "  lengths: {kind: fixed, prompt: 100, output: 10}\n"
    )
    fleet = build_fleet(load_scenario(scenario))
    assert fleet.timing[0, 2] == pytest.approx(2 * LLAMA.token_s, rel=0.05)
    exported = tmp_path / "exported"
    args = ("--scenario", str(scenario), "--max-context", "512", "--out", str(exported))
    assert fairlead("calibrate", "export-vidur", *args).code == 0
    header, *rows = (exported / "mlp.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    ms = sum(float(value) for name, value in last.items() if name.startswith("time_stats."))
    full = 2 * (LLAMA.base_s + LLAMA.token_s * 2048)
    assert ms * 32e-3 == pytest.approx(full, rel=0.03)


def test_the_fit_as_json(fairlead, tmp_path: Path, measurements: Path):
    ended = fairlead(
        "calibrate", "fit", "--measurements", str(measurements), "--out", str(tmp_path / "c.json"), "--json"
    )
    found = json.loads(ended.out)
    assert found["rows"] == 300
    assert found["coefficients"]["kv_s"] == pytest.approx(LLAMA.kv_s, rel=0.05)


def test_export_tells_how_vidur_is_run(fairlead, tmp_path: Path):
    args = ("--max-context", "512", "--out", str(tmp_path / "a"))
    ended = fairlead("calibrate", "export-vidur", "--model", "llama-3-8b", "--device", "a100-80g", *args)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("HF_HUB_OFFLINE=1 python -m vidur.main")
    assert "--replica_config_device a100" in ended.out
    assert (tmp_path / "a" / "attention.csv").is_file()
    again = fairlead("calibrate", "export-vidur", "--scenario", "chat-equal", "--out", str(tmp_path / "a"))
    assert again.code == 2
    assert "not an empty folder" in again.err


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ((), "either --scenario, or both --model and --device"),
        (("--model", "llama-3-8b"), "both"),
        (("--model", "qwen2.5-7b", "--device", "h100"), "Vidur does not know qwen2.5-7b"),
        (("--scenario", "chat-unequal"), "2 kinds of replicas"),
        (("--scenario", "chat-equal", "--tensor-parallel", "2"), "leave out --tensor-parallel"),
        (("--scenario", "chat-equal", "--device", "h100"), "leave out --device"),
    ],
)
def test_what_cannot_be_exported_is_one_line(fairlead, tmp_path: Path, args, hint):
    ended = fairlead("calibrate", "export-vidur", *args, "--out", str(tmp_path / "x"))
    assert ended.code == 2
    assert hint in ended.err
    assert ended.err.count("\n") == 1


def test_without_a_command_they_are_listed(fairlead):
    ended = fairlead("calibrate")
    assert ended.code == 0
    assert "export-vidur" in ended.out and "fit" in ended.out
