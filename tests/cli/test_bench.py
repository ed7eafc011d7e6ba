"""`fairlead bench`, from the command line."""

import json

import pytest

from fairlead.bench import decision, simulator


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulator, "CLUSTERS", 2)
    monkeypatch.setattr(simulator, "REQUESTS", 50)
    monkeypatch.setattr(decision, "LEAST_DECISIONS", 5)


def test_json_stands_alone_on_stdout(fairlead):
    ended = fairlead("bench", "simulator", "--seconds", "0.1", "--json")
    assert ended.code == 0
    assert {"requests_per_s_heuristic", "requests_per_s_learned"} <= set(json.loads(ended.out))
    assert "100 %" in ended.err


def test_the_table_has_a_row_for_every_number(fairlead):
    ended = fairlead("bench", "decision", "--seconds", "0.1")
    assert ended.code == 0
    assert "p50_us 4" in ended.out and "p99_us 64" in ended.out


def test_a_policy_that_is_not_there(fairlead):
    ended = fairlead("bench", "decision", "--policy", "none.onnx")
    assert ended.code == 2 and ended.err.startswith("error: ") and "none.onnx" in ended.err


def test_a_policy_where_none_is_used(fairlead):
    assert fairlead("bench", "simulator", "--policy", "some.onnx").code == 2
