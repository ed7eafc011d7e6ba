"""`fairlead scenarios`, from the command line."""

import json

import pytest
import yaml

from fairlead.evaluate import headroom
from fairlead.workload import suites
from fairlead.workload.scenario import load_scenario, scenario_names
from fairlead.workload.suites import Suite


def test_every_scenario_is_listed(fairlead):
    ended = fairlead("scenarios")
    assert ended.code == 0
    assert all(name in ended.out for name in scenario_names())


def test_the_list_as_json(fairlead):
    ended = fairlead("scenarios", "--json")
    rows = json.loads(ended.out)
    assert [row["name"] for row in rows] == list(scenario_names())
    assert all(row["num_replicas"] >= 1 and row["loads"] and row["hardware"] for row in rows)
    assert ended.err == ""


def test_one_scenario_in_full_can_be_used_as_a_file_of_ones_own(fairlead, tmp_path):
    shown = fairlead("scenarios", "uniform-lengths")
    assert shown.code == 0 and "requests/s" in shown.out
    file = tmp_path / "mine.yaml"
    file.write_text(shown.out)
    assert yaml.safe_load(shown.out)["name"] == "uniform-lengths"
    assert load_scenario(str(file)).hash() == load_scenario("uniform-lengths").hash()


def test_one_scenario_as_json_tells_its_capacity(fairlead):
    ended = fairlead("scenarios", "uniform-lengths", "--json")
    shown = json.loads(ended.out)
    assert shown["capacity_rps"] > 0
    assert shown["scenario"]["name"] == "uniform-lengths"


def test_an_unknown_scenario_is_an_error_that_names_the_known_ones(fairlead):
    ended = fairlead("scenarios", "chat-equql")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert "chat-equal" in ended.err


@pytest.fixture
def small_suite(monkeypatch, tmp_path):
    suite = Suite(
        name="small", description="Two.", scenarios={"chat-equal": "One.", "uniform-lengths": "Two."}
    )
    monkeypatch.setattr(suites, "load_suite", lambda name: suite)
    monkeypatch.setattr(headroom, "cache_directory", lambda: tmp_path / "kept")


QUICK = ("--seeds", "2", "--requests", "60")


def test_a_suite_shows_loads_capacity_and_headroom(fairlead, small_suite):
    ended = fairlead("scenarios", "--suite", "small", *QUICK)
    assert ended.code == 0
    for word in (
        "chat-equal, capacity",
        "uniform-lengths",
        "0.9",
        "round robin",
        "mean E2E",
        "p99 TTFT",
        "@1",
    ):
        assert word in ended.out
    assert "streams of their own" in ended.out and "2 paired seeds of 60 requests" in ended.out
    assert "headroom" in ended.err, "progress"


def test_a_suite_as_json(fairlead, small_suite):
    ended = fairlead("scenarios", "--suite", "small", *QUICK, "--json")
    shown = json.loads(ended.out)
    assert [each["name"] for each in shown["scenarios"]] == ["chat-equal", "uniform-lengths"]
    for each in shown["scenarios"]:
        assert each["capacity_rps"] > 0 and each["teaches"]
        assert [cell["load"] for cell in each["headroom"]] == each["loads"]
        for cell in each["headroom"]:
            assert cell["rate_rps"] == pytest.approx(cell["load"] * each["capacity_rps"])
            assert {metric["metric"] for metric in cell["metrics"]} == set(headroom.DIALS)


def test_wrong_suites(fairlead):
    ended = fairlead("scenarios", "--suite", "standart")
    assert ended.code == 2 and "did you mean standard" in ended.err
    ended = fairlead("scenarios", "chat-equal", "--suite", "standard")
    assert ended.code == 2 and "give one of the two" in ended.err
    ended = fairlead("simulate", "--scenario", "suite/standard")
    assert ended.code == 2 and "one is needed" in ended.err and ended.err.count("\n") == 1
