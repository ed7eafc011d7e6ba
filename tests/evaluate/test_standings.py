"""How routers stand over many scenarios, on made-up results whose truth is known."""

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.contest import NEEDED, Contest
from fairlead.evaluate.phrasing import MINUS
from fairlead.evaluate.quality_page import across
from fairlead.evaluate.standings import standings


def values(e2e, p99):
    """Two loads and three seeds, all alike."""
    levels = dict.fromkeys(NEEDED, 1.0) | {"e2e_mean_s": e2e, "ttft_p99_s": p99}
    return {metric: np.full((2, 3), level) for metric, level in levels.items()}


def contest(name, heuristics, learned):
    return Contest(
        name,
        (0.5, 0.9),
        4,
        False,
        {router: values(*levels) for router, levels in heuristics.items()},
        {0.75: [values(*learned)]},
    )


CONTESTS = [
    contest("one", {"lor": (2.0, 1.0), "least_work": (4.0, 2.0)}, (1.0, 1.0)),
    contest("two", {"lor": (8.0, 4.0), "least_work": (4.0, 1.0)}, (4.0, 2.0)),
]


def test_against_the_best_heuristic_of_each_scenario():
    found = standings(CONTESTS)
    assert set(found) == {"lor", "least_work", "learned, favor 0.75"}
    for router in ("lor", "least_work"):  # each twice as slow in one of two
        assert found[router]["e2e_mean_s"].mean == pytest.approx(2**0.5 - 1)
    assert found["lor"]["ttft_p99_s"].mean == pytest.approx(1.0)
    assert found["lor"]["ttft_p99_s"].worst_in == "two"
    assert found["lor"]["ttft_p99_s"].worst == pytest.approx(3.0)
    learned = found["learned, favor 0.75"]
    assert learned["e2e_mean_s"].mean == pytest.approx(0.5**0.5 - 1)
    assert learned["e2e_mean_s"].ci_low < learned["e2e_mean_s"].mean < learned["e2e_mean_s"].ci_high
    assert learned["e2e_mean_s"].worst_in == "two"
    assert learned["e2e_mean_s"].worst == pytest.approx(0.0)


def test_who_was_not_everywhere_is_left_out():
    more = contest("three", {"lor": (1.0, 1.0)}, (1.0, 1.0))
    assert "least_work" not in standings([*CONTESTS, more])


def test_a_single_scenario_says_nothing_about_others():
    with pytest.raises(FairleadError):
        standings(CONTESTS[:1])


def test_the_page_has_a_line_for_each_router():
    lines = across(CONTESTS)
    (learned,) = (line for line in lines if "**learned, favor 0.75**" in line)
    assert f"| {MINUS}29.3 % [" in learned and "| +0.0 % (two) |" in learned
    assert sum(line.startswith("| ") for line in lines) == 4  # the heading too
