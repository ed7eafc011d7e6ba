"""Text on the command line becomes values, or an error that says how to write it."""

from pathlib import Path

import pytest

from fairlead.cli.options import load_list, read_settings, scenario_list, seed_list, split
from fairlead.errors import FairleadError


def test_names_are_split_at_commas_and_kept_in_order():
    assert split(["b, a", "c,b"], "router") == ["b", "a", "c"]


def test_no_name_at_all_is_an_error():
    with pytest.raises(FairleadError, match="no router given"):
        split([" , "], "router")


def test_a_suite_stands_for_its_scenarios_each_of_them_once():
    suite = scenario_list(["suite/standard"])
    assert len(suite) >= 12
    assert scenario_list(["chat-8,chat-equal", "suite/standard"])[2:] == suite[1:]


def test_two_scenarios_of_one_name_are_an_error(tmp_path: Path):
    file = tmp_path / "chat-equal.yaml"
    file.write_text(
        "replicas: [{device: a10}]\n"
        "workload: {arrivals: {kind: poisson}, lengths: {kind: fixed, prompt: 9, output: 9}}\n"
    )
    with pytest.raises(FairleadError, match="two scenarios are called chat-equal"):
        scenario_list(["suite/standard", str(file)])


def test_loads():
    assert load_list(None) is None
    assert load_list("0.5, 0.85") == [0.5, 0.85]
    assert load_list("0.5, 0.85, .50, 0.850") == [0.5, 0.85]


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "nan", "inf", "70%", "much", ""])
def test_a_load_that_makes_no_sense(text):
    with pytest.raises(FairleadError):
        load_list(text)


def test_seeds():
    assert seed_list(3, 2) == [3, 4]
    with pytest.raises(FairleadError):
        seed_list(0, 0)


def test_settings_come_from_the_file_and_then_from_the_command_line(tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_text("ppo:\n  learning_rate: 0.1\n  epochs: 2\nseed: 5\n")
    settings = read_settings(file, ["ppo.learning_rate=3e-4", "net.widths=[8, 16]", "quick=true", "name=x"])
    assert settings == {
        "ppo": {"learning_rate": 3e-4, "epochs": 2},
        "seed": 5,
        "net": {"widths": [8, 16]},
        "quick": True,
        "name": "x",
    }


def test_an_integer_stays_an_integer():
    assert type(read_settings(None, ["n=3"])["n"]) is int


@pytest.mark.parametrize("assignment", ["ppo.learning_rate", "=3", "a..b=3", "seed.deep=1"])
def test_an_assignment_that_cannot_be_read(tmp_path: Path, assignment):
    file = tmp_path / "settings.yaml"
    file.write_text("seed: 5\n")
    with pytest.raises(FairleadError, match="--set"):
        read_settings(file, [assignment])


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\x00"])
def test_a_file_that_is_no_settings_file(tmp_path: Path, content):
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(FairleadError, match=r"settings\.yaml"):
        read_settings(file, [])


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(FairleadError, match="cannot read"):
        read_settings(tmp_path / "none.yaml", [])


def test_a_section_that_is_given_twice_is_an_error(tmp_path: Path):
    file = tmp_path / "train.yaml"
    file.write_text("ppo: {epochs: 4}\nseed: 1\nppo: {clip: 0.1}\n")
    with pytest.raises(
        FairleadError, match=r"train\.yaml is not valid YAML: line 3: the key ppo is given twice"
    ):
        read_settings(file, [])
