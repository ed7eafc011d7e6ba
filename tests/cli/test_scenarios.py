"""`fairlead scenarios`, from the command line."""

import json

import yaml

from fairlead.workload.scenario import load_scenario, scenario_names


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
