"""The benchmark of what a gateway adds: its arithmetic, and ours alone in small."""

import json
import math
import subprocess
import sys
from types import ModuleType

import pytest
from tests.benchmarks import scripts

KINDS = ("json", "json-16k", "sse")
OURS, HEURISTIC, COPY = "ours (network)", "ours (least_work)", "copy"


@pytest.fixture(scope="module")
def overhead() -> ModuleType:
    return scripts.load("gateway_overhead")


def test_every_round_begins_with_another_gateway(overhead):
    names = ["a", "b", "c"]
    orders = [overhead.rotated(names, number) for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_a_ratio_is_a_geometric_mean_of_paired_rounds_with_students_interval(overhead):
    # Logarithms of the ratios: ln 2 and ln 8; mean ln 4, standard error ln 2, t(0.975, 1) = 12.706.
    mean, low, high = overhead.ratio([2.0, 8.0], [1.0, 1.0])
    assert mean == pytest.approx(4.0)
    assert low == pytest.approx(4.0 * math.exp(-12.7062 * math.log(2.0)), rel=1e-4)
    assert high == pytest.approx(4.0 * math.exp(12.7062 * math.log(2.0)), rel=1e-4)
    # Weather that both meet cancels.
    assert overhead.ratio([1.0, 4.0, 2.0], [2.0, 8.0, 4.0]) == pytest.approx((0.5, 0.5, 0.5))
    assert overhead.ratio([3.0], [1.0]) == (pytest.approx(3.0), 0.0, math.inf)


def test_the_summary_takes_medians_and_compares_ours_with_each_other(overhead):
    def row(value):
        return {"cpu_ms": value, "p50_ms": 2 * value, "p99_ms": 3 * value, "added_p50_ms": value - 1.0}

    rounds = [
        {"json": {OURS: row(value), "peer": row(2.0 * value)}} for value in (1.0, 5.0, 3.0)
    ]  # one round was slow for both
    medians, ratios = overhead.summary(rounds)
    assert medians["json"]["peer"]["added_p50_ms"] == 5.0
    assert medians["json"][OURS]["cpu_ms"] == 3.0
    assert list(ratios["json"]) == ["peer"]
    for column in overhead.COMPARED:
        assert ratios["json"]["peer"][column] == pytest.approx((0.5, 0.5, 0.5))


def test_ours_are_measured_in_turns(tmp_path):
    out = tmp_path / "overhead.json"
    options = ["--peers", "", "--policy", "fairlead/generalist", "--rounds", "2", "--seconds", "0.05"]
    command = [sys.executable, str(scripts.FOLDER / "gateway_overhead.py"), *options, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert tuple(found["results"]) == tuple(found["ratios"]) == KINDS
    assert len(found["rounds"]) == 2
    for kind in KINDS:
        assert set(found["results"][kind]) == {OURS, HEURISTIC, COPY}
        assert set(found["ratios"][kind]) == {HEURISTIC, COPY}
        for row in found["results"][kind].values():
            assert (
                row["cpu_ms"] > 0.0 and row["requests_per_s"] > 0.0 and row["p99_ms"] >= row["p50_ms"] > 0.0
            )
        for each in found["ratios"][kind].values():
            assert set(each) == {"cpu_ms", "p50_ms", "p99_ms"}
            assert all(low <= mean <= high for mean, low, high in each.values())
    assert "| json | ours (network) |" in done.stdout
