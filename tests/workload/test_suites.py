"""Suites: what is in them, and how they are named."""

import pytest
import yaml

from fairlead.cli.options import scenario_list
from fairlead.errors import FairleadError
from fairlead.policy.packaged import DIRECTORY
from fairlead.workload import load_scenario
from fairlead.workload.suites import load_scenarios, load_suite, load_variant, suite_names


def test_the_standard_suite_has_a_dozen_scenarios_with_two_or_three_loads_each():
    suite = load_suite("standard")
    assert len(suite.scenarios) >= 12
    for name, teaches in suite.scenarios.items():
        assert 2 <= len(load_scenario(name).loads) <= 3
        assert 20 < len(teaches) < 150


def test_the_standard_suite_can_be_trained_on_as_a_whole():
    assert {scenario.num_replicas for scenario in load_scenarios("suite/standard")} == {4}


def test_the_standard_suite_covers_the_kinds_of_traffic():
    scenarios = load_scenarios("suite/standard")
    arrivals = {each.workload.arrivals.kind for each in scenarios if each.workload.arrivals}
    assert {"poisson", "gamma", "mmpp", "diurnal", "flash_crowd"} <= arrivals
    lengths = {each.workload.lengths.kind for each in scenarios if each.workload.lengths}
    assert {"empirical", "lognormal", "mixture"} <= lengths


def test_the_hardware_suite_is_not_what_the_generalist_was_trained_on():
    """Else it would not say how the policy does on hardware that it has not seen.

    Of drawn clusters only those whose speeds are undeclared matter (test_drawing.py).
    """
    trained = yaml.safe_load((DIRECTORY / "generalist.yaml").read_text())["scenarios"]

    def fleets(names: list[str]) -> set[tuple[str, frozenset[str]]]:
        found = [each for each in scenario_list(names) if not each.name.startswith("drawn~")]
        return {(each.model, frozenset(group.device for group in each.replicas)) for each in found}

    assert len(fleets(["suite/hardware"])) >= 4
    assert not fleets(["suite/hardware"]) & fleets(trained)


def test_a_suite_stands_for_its_scenarios_and_a_scenario_for_itself():
    suite = load_scenarios("suite/standard")
    assert [each.name for each in suite] == list(load_suite("suite/standard").scenarios)
    assert load_scenarios("chat-equal") == [load_scenario("chat-equal")]


def test_an_unknown_suite_names_the_known_ones():
    assert suite_names() == ["hardware", "standard"]
    with pytest.raises(FairleadError, match="unknown suite 'standart'; did you mean standard"):
        load_scenarios("suite/standart")


def test_a_suite_where_one_scenario_is_needed_is_an_error_that_says_so():
    with pytest.raises(FairleadError, match=r"suite of scenarios, and one is needed.*--suite standard"):
        load_scenario("suite/standard")


def test_one_scenario_can_be_a_variant():
    assert load_variant("chat-unequal:8~3") == load_scenarios("chat-unequal:8~3")[0]
    assert load_variant("chat-unequal") == load_scenario("chat-unequal")
    assert load_variant("chat-unequal:8~3@0.5").name == "chat-unequal:8~3@0.5"
    with pytest.raises(FairleadError, match="suite of scenarios, and one is needed"):
        load_variant("suite/standard:8")
