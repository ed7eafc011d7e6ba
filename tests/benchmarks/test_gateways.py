"""The comparison of gateways: what is said of runs, and ours alone in small."""

import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from tests.benchmarks import scripts


@pytest.fixture(scope="module")
def gateways() -> ModuleType:
    return scripts.load("gateways")


def row(gateway: str, policy: str, seed: int, e2e: float, ttft: float = 1.0) -> dict[str, Any]:
    times = {"ttft_mean_s": ttft, "ttft_p99_s": ttft, "e2e_mean_s": e2e, "e2e_p99_s": e2e}
    return {"gateway": gateway, "policy": policy, "seed": seed, "failed": 0, **times}


def test_ours_are_compared_with_the_best_public_one_metric_by_metric(gateways):
    rows = [
        each
        for seed in range(4)
        for each in (
            row("fairlead", "mine", seed, 8.0 + 0.1 * seed, 0.9 + 0.2 * (seed % 2)),
            row("smg", "random", seed, 12.0 + seed, 1.0),
            row("vllm-router", "cache_aware", seed, 10.0 + 0.12 * seed, 2.0),
            row("simulated", "mine", seed, 1.0, 0.1),
        )
    ]
    found = {each["metric"]: each for each in gateways.against_the_best(rows)}
    assert found["e2e_mean_s"]["best"] == "vllm-router cache_aware"
    assert found["e2e_mean_s"]["verdict"] == "better"
    assert found["e2e_mean_s"]["difference_percent"][0] == pytest.approx(-19.94, abs=0.005)
    assert (found["ttft_mean_s"]["best"], found["ttft_mean_s"]["verdict"]) == ("smg random", "undecided")
    words = gateways.sentences(found.values())
    assert "e2e_mean: -19.9 %" in words[2] and "better (4 seeds)" in words[2]
    assert "no difference shown" in words[0]
    assert len(gateways.table(rows).splitlines()) == 5


def test_no_interval_passes_minus_100_percent(gateways):
    late = [1.0, 8.0, 1.0, 30.0, 2.0]  # one seed has a backlog, which ours does not have
    rows = [row("fairlead", "mine", seed, 1.0, 0.5) for seed in range(5)]
    rows += [row("smg", "random", seed, 2.0, ttft) for seed, ttft in enumerate(late)]
    for each in gateways.against_the_best(rows):
        middle, low, high = each["difference_percent"]
        assert -100 < low <= middle <= high


def test_seeds_that_not_everybody_has_are_not_compared(gateways):
    rows = [row("fairlead", "mine", seed, 8.0 + seed) for seed in range(3)]
    rows += [row("smg", "random", seed, 10.0 + seed) for seed in range(3)]
    failed = [
        {**row("smg", "least_load", 0, 0.1), "seed": 0},
        {"gateway": "smg", "policy": "least_load", "seed": 1},
    ]
    assert {each["best"] for each in gateways.against_the_best(rows + failed)} == {"smg random"}
    assert gateways.against_the_best(rows[:3]) == []
    assert gateways.against_the_best(rows[2:]) == []  # one seed in common
    assert "-" in gateways.table(failed).splitlines()[1]


@pytest.mark.slow
def test_ours_alone_in_small_and_what_is_there_is_not_repeated(tmp_path):
    options = ["--gateways", "--requests", "25", "--seeds", "1", "--speed", "20"]
    options += ["--json", str(tmp_path / "found.json"), "--environments", str(tmp_path / "environments")]
    said = []
    for ours in (["least_work"], ["least_work", "fairlead/generalist"]):
        command = [sys.executable, str(scripts.FOLDER / "gateways.py"), *options, "--ours", *ours]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert "least_work" in said[0]
    assert "fairlead/generalist" in said[1] and "least_work" not in said[1]
    (document,) = json.loads((tmp_path / "found.json").read_text())["settings"]
    names = [(each["gateway"], each["policy"], each["seed"]) for each in document["rows"]]
    assert len(names) == len(set(names)) == 4
    assert all(each["e2e_mean_s"] > 0 and each.get("failed", 0) == 0 for each in document["rows"])
