"""Whole scenarios drawn at random."""

from collections import Counter

import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.tournament import simulate_once
from fairlead.simulator.fleet import build_fleet
from fairlead.workload.drawn import LONGEST_OUTPUT, LONGEST_PROMPT, MODELS, drawn_scenario, split_range
from fairlead.workload.scenario import generate
from fairlead.workload.suites import load_scenarios, load_variant

MANY = [drawn_scenario(number) for number in range(300)]


def test_a_number_is_a_scenario():
    drawn = load_variant("drawn~17")
    assert drawn == drawn_scenario(17) and drawn.name == "drawn~17"
    assert drawn.replace(name="x", description="").hash() == MANY[17].hash(), (
        "the same number is the same scenario"
    )
    assert load_variant("drawn~17@1.2").loads == (1.2,)
    assert load_variant("drawn~17@1.2").replicas == drawn.replicas


def test_numbers_differ_in_all_that_a_scenario_says():
    assert len({each.hash() for each in MANY}) == len(MANY)
    assert {each.model for each in MANY} == set(MODELS)
    assert {each.num_replicas for each in MANY} >= {2, 3, 4, 8, 16}
    assert {(len(each.replicas), each.view.speeds_declared) for each in MANY} == {
        (1, True),
        (2, True),
        (2, False),
    }
    assert {each.routers for each in MANY} == {1, 2, 3, 4}
    arrivals = Counter(each.workload.arrivals.kind for each in MANY if each.workload.arrivals)
    assert set(arrivals) == {"poisson", "gamma", "mmpp", "flash_crowd", "diurnal"}
    lengths = {each.workload.lengths.kind for each in MANY if each.workload.lengths}
    assert lengths == {"empirical", "lognormal", "mixture"}
    assert sum(each.workload.sessions is not None for each in MANY) in range(50, 130)
    assert {fault.kind for each in MANY for fault in each.faults} == {"outage", "slowdown"}


def test_what_is_drawn_is_said():
    for each in MANY:
        assert each.model in each.description and each.replicas[0].device in each.description
        assert ("undeclared" in each.description) == (not each.view.speeds_declared)
        assert ("routers" in each.description) == (each.routers > 1)


def test_every_request_fits_into_every_kv_cache():
    """The simulator refuses a request that no replica could ever hold: none of the longest ones is."""
    smallest = [each for each in MANY if {"a10"} & {group.device for group in each.replicas}]
    assert len(smallest) > 20
    for each in (*smallest[:4], *(s for s in MANY if s.workload.sessions))[:7]:
        assert simulate_once(each, each.loads[0], "lor", requests=60, seed=1)["ttft_mean_s"] > 0
    for each in smallest:
        requests = generate(each, requests=2000, rate=5.0, seed=0, split="evaluate")
        longest = (requests.prompt_tokens + requests.output_tokens).max()
        assert longest <= LONGEST_PROMPT + LONGEST_OUTPUT == 28_000
        assert longest <= min(build_fleet(each).kv_blocks) * each.engine.block_size


def test_a_range_is_its_numbers():
    names = [each.name for each in load_scenarios("drawn~1000..1003")]
    assert names == ["drawn~1000", "drawn~1001", "drawn~1002", "drawn~1003"]
    assert split_range("drawn~3..4@1.2") == ["drawn~3@1.2", "drawn~4@1.2"]
    assert split_range("chat-equal") == ["chat-equal"]
    assert [each.loads for each in load_scenarios("drawn~3..4@1.2")] == [(1.2,), (1.2,)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("drawn", "have numbers, for example drawn~3"),
        ("drawn:8~3", "how many replicas is drawn too"),
        ("drawn~9..3", "from a number to a higher one"),
        ("drawn~0..5000", "at most 1000"),
    ],
)
def test_what_is_no_number_is_refused(name, said):
    with pytest.raises(FairleadError, match=said):
        load_scenarios(name)
