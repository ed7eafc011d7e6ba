"""Rules of a scenario's faults, and the plan of a run that is made from them."""

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.workload.faults import Faults, Outage, Slowdown, plan
from fairlead.workload.scenario import generate, load_scenario


def rows(made: Faults) -> list[tuple[float, int, float, bool]]:
    columns = (made.time_s, made.replica, made.pace, made.up)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_windows_begin_and_end() -> None:
    rules: list[Slowdown | Outage] = [
        Slowdown(kind="slowdown", replica=1, factor=3, start_s=10, duration_s=5, every_s=20),
        Outage(kind="outage", replica=0, start_s=12, duration_s=4),
    ]
    assert rows(plan(rules, 2, 40.0, 0, "train")) == [
        (10.0, 1, 3.0, True),
        (12.0, 0, 1.0, False),
        (15.0, 1, 1.0, True),
        (16.0, 0, 1.0, True),
        (30.0, 1, 3.0, True),
        (35.0, 1, 1.0, True),
    ]


def test_no_window_begins_after_the_last_arrival_but_all_end() -> None:
    rule = Outage(kind="outage", replica=0, start_s=5, duration_s=8, every_s=10)
    assert rows(plan([rule], 2, 15.0, 0, "train"))[-1] == (23.0, 0, 1.0, True)
    assert len(plan([rule], 2, 4.9, 0, "train")) == 0


def test_where_windows_overlap_factors_multiply_and_the_last_outage_counts() -> None:
    rules: list[Slowdown | Outage] = [
        Slowdown(kind="slowdown", replica=0, factor=2, start_s=0, duration_s=10),
        Slowdown(kind="slowdown", replica=0, factor=3, start_s=5, duration_s=10),
        Outage(kind="outage", replica=0, start_s=6, duration_s=2),
        Outage(kind="outage", replica=0, start_s=8, duration_s=1),
    ]
    assert rows(plan(rules, 2, 99.0, 0, "train")) == [
        (0.0, 0, 2.0, True),
        (5.0, 0, 6.0, True),
        (6.0, 0, 6.0, False),
        (9.0, 0, 6.0, True),
        (10.0, 0, 3.0, True),
        (15.0, 0, 1.0, True),
    ]


def test_drawn_replicas_are_a_function_of_seed_and_split_and_a_longer_run_goes_on() -> None:
    rule = Outage(kind="outage", replica="any", start_s=0, duration_s=1, every_s=2)
    short, long = (plan([rule], 4, until, 7, "train") for until in (60.0, 400.0))
    assert rows(long)[: len(short)] == rows(short)
    assert set(long.replica.tolist()) == {0, 1, 2, 3}
    assert (
        rows(plan([rule], 4, 60.0, 8, "train")) != rows(short) != rows(plan([rule], 4, 60.0, 7, "evaluate"))
    )


def test_faults_change_neither_arrivals_nor_lengths() -> None:
    plain = load_scenario("chat-equal")
    faulty = plain.replace(faults=({"kind": "outage", "replica": "any", "start_s": 2, "duration_s": 3},))
    found = [generate(s, requests=50, rate=9.0, seed=1, split="train") for s in (plain, faulty)]
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert found[0].faults is None and found[1].faults is not None and len(found[1].faults) == 2


def test_estimates_are_off_by_the_error_and_change_nothing_else() -> None:
    plain = load_scenario("chat-equal")
    wrong = plain.replace(view={"prompt_estimate_error": 0.3})
    first, second = (generate(s, requests=3000, rate=9.0, seed=1, split="train") for s in (plain, wrong))
    np.testing.assert_array_equal(first.prompt_tokens, second.prompt_tokens)
    np.testing.assert_array_equal(first.arrival_s, second.arrival_s)
    assert first.estimate is None and second.estimate is not None
    ratio = second.estimate / second.prompt_tokens
    large = second.prompt_tokens > 200
    assert 0.69 < ratio[large].min() < 0.72 and 1.28 < ratio[large].max() < 1.31
    assert ratio[large].mean() == pytest.approx(1.0, abs=0.02)


def test_requests_are_spread_evenly_over_the_routers() -> None:
    several = load_scenario("chat-equal").replace(routers=4)
    router = generate(several, requests=4000, rate=9.0, seed=1, split="train").router
    assert router is not None
    assert np.bincount(router, minlength=4) == pytest.approx([1000] * 4, abs=120)


OUTAGE = {"kind": "outage", "replica": 0, "start_s": 1, "duration_s": 2}


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            [OUTAGE | {"replica": 4}],
            r"there is no replica 4: the 4 replicas are numbered from 0 to 3",
        ),
        ([OUTAGE | {"replica": -1}], r"faults.0.replica"),
        ([OUTAGE | {"start_s": -1}], r"faults.0.start_s: input should be greater than or equal to 0"),
        ([OUTAGE | {"duration_s": 0}], r"faults.0.duration_s: input should be greater than 0"),
        ([OUTAGE | {"every_s": 2}], r"duration_s \(2\) must be less than every_s \(2\)"),
        ([OUTAGE | {"duration_s": None, "every_s": 5}], "an outage that never ends cannot repeat"),
        ([OUTAGE | {"factor": 3}], "unknown key 'factor'"),
        ([{"kind": "outage", "replica": 0, "start_s": 1}], r"faults.0.duration_s: is missing"),
        ([{**OUTAGE, "kind": "slowdown"}], r"faults.0.factor: is missing"),
        ([{**OUTAGE, "kind": "outtage"}], "unknown kind 'outtage'; did you mean outage"),
        (
            [OUTAGE | {"replica": r, "start_s": r, "duration_s": None} for r in range(4)],
            "from 3 s on no replica is left, and none returns: requests would wait for ever",
        ),
    ],
)
def test_rules_that_make_no_sense_are_errors(faults: list[dict[str, object]], message: str) -> None:
    with pytest.raises(FairleadError, match=message):
        load_scenario("chat-equal").replace(faults=tuple(faults))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routers": 0}, "routers: input should be greater than or equal to 1"),
        ({"view": {"prompt_estimate_error": 1.0}}, "prompt_estimate_error: input should be less than 1"),
        ({"view": {"prompt_estimate_error": -0.1}}, "prompt_estimate_error: input should be greater than"),
    ],
)
def test_other_values_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FairleadError, match=message):
        load_scenario("chat-equal").replace(**changes)


def test_drawn_outages_that_leave_no_replica_for_ever_are_found_when_they_happen() -> None:
    rules = tuple(OUTAGE | {"replica": "any", "start_s": i, "duration_s": None} for i in range(40))
    doomed = load_scenario("chat-equal").replace(faults=rules)
    with pytest.raises(FairleadError, match="no replica is left, and none returns"):
        generate(doomed, requests=1000, rate=9.0, seed=1, split="train")
