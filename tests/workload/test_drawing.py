"""Scenarios on hardware drawn at random."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

from benchmarks import generalist
from fairlead.errors import FairleadError
from fairlead.evaluate.tournament import simulate_once
from fairlead.workload import load_scenario
from fairlead.workload.drawing import HARDWARE, SLOWDOWN, split_draw, with_drawn_hardware
from fairlead.workload.suites import load_scenarios


def hardware(scenario):
    """What makes a cluster fast or slow: its model and devices."""
    return {(scenario.model, group.device) for group in scenario.replicas}


def test_a_number_behind_a_tilde_draws_hardware():
    plain = load_scenario("chat-undeclared")
    (drawn,) = load_scenarios("chat-undeclared~5")
    assert drawn.name == "chat-undeclared~5"
    assert drawn.num_replicas == plain.num_replicas
    assert drawn.workload == plain.workload and drawn.view == plain.view and drawn.loads == plain.loads
    assert load_scenarios("chat-undeclared~5") == [drawn], "the same number is the same hardware"


def test_numbers_differ():
    drawn = [with_drawn_hardware(load_scenario("chat-undeclared"), number) for number in range(40)]
    assert len({str(each.replicas) for each in drawn}) > 35
    assert {pair for each in drawn for pair in hardware(each)} == {
        (model, device) for model, device, _ in HARDWARE
    }
    assert {each.replicas[0].count for each in drawn} == {1, 2, 3}
    slow = [each.replicas[1].slowdown for each in drawn]
    assert all(each.replicas[0].slowdown == 1 for each in drawn)
    assert min(slow) >= SLOWDOWN[0] and max(slow) <= SLOWDOWN[1]
    assert sum(each < 2.4 for each in slow) in range(10, 31), (
        "log-uniform: as often below as above the middle"
    )


def test_equal_replicas_stay_equal():
    (drawn,) = load_scenarios("chat-straggler~8")
    assert [(group.count, group.slowdown) for group in drawn.replicas] == [(4, 1.0)]
    assert drawn.faults == load_scenario("chat-straggler").faults


def test_scaling_comes_first_and_suites_can_be_drawn():
    (both,) = load_scenarios("chat-undeclared:8~2")
    assert (both.name, both.num_replicas, len(both.replicas)) == ("chat-undeclared:8~2", 8, 2)
    assert {each.name.rpartition("~")[2] for each in load_scenarios("suite/hardware~3")} == {"3"}


def test_what_is_no_number_belongs_to_the_name():
    assert split_draw("chat-equal") == ("chat-equal", None)
    assert split_draw("~/my.yaml") == ("~/my.yaml", None)
    assert split_draw("my.yaml~12") == ("my.yaml", 12)
    assert split_draw("chat~x") == ("chat~x", None)


@pytest.mark.parametrize("combination", HARDWARE, ids=str)
def test_every_model_fits_where_it_is_drawn_and_can_be_simulated(combination):
    drawn = (with_drawn_hardware(load_scenario("chat-undeclared"), number) for number in range(200))
    scenario = next(
        each
        for each in drawn
        if (each.model, each.replicas[0].device, each.replicas[0].tensor_parallel) == combination
    )
    assert simulate_once(scenario, 0.7, "lor", requests=50, seed=1)["ttft_mean_s"] > 0


def test_hardware_of_its_own_is_not_replaced(tmp_path):
    content = {
        "replicas": [{"device": "a100-80g", "count": 4}],
        "engine": {"num_gpu_blocks": 500},
        "workload": {
            "arrivals": {"kind": "poisson"},
            "lengths": {"kind": "fixed", "prompt": 10, "output": 10},
        },
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(FairleadError, match=r"own~1: timing and num_gpu_blocks"):
        load_scenarios(f"{path}~1")


def test_the_generalist_is_not_trained_on_the_hardware_that_tests_it():
    """What `suite/hardware` runs on is in no training with undeclared speeds, but for conversations.

    Nor is it drawn for scenarios that somebody thought of. And the clusters of docs/unseen.md are in none.
    That holds for the recipe, and for what the policy that ships was trained on last.
    """
    recipe = argparse.Namespace(
        config=generalist.GENERALIST.with_suffix(".yaml"), set=[], scenarios=None, out=Path("runs")
    )
    names, _ = generalist.recipe(recipe)
    shipped = json.loads(generalist.GENERALIST.with_suffix(".json").read_text(encoding="utf-8"))["scenarios"]
    trained = [scenario for name in {*names, *shipped} for scenario in load_scenarios(name)]
    tested = load_scenarios("suite/hardware")
    undeclared = [scenario for scenario in tested if not scenario.view.speeds_declared]
    assert len(undeclared) == 3
    alone = [scenario for scenario in trained if scenario.workload.sessions is None]
    seen = {pair for each in alone if not each.view.speeds_declared for pair in hardware(each)}
    assert not seen & {pair for each in undeclared for pair in hardware(each)}
    whole = [scenario for scenario in trained if scenario.name.startswith("drawn~")]
    drawn = {pair for each in trained if "~" in each.name and each not in whole for pair in hardware(each)}
    assert drawn and not drawn & {pair for each in tested for pair in hardware(each)}
    measured = {f"drawn~{number}" for number in range(1000, 1024)}
    assert len(whole) > 200 and not measured & {scenario.name.split("@")[0] for scenario in whole}
