"""The terminal table shows every router and fits the terminal."""

import io
import re

import pytest
from rich.console import Console

from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.phrasing import MINUS, number
from fairlead.evaluate.results import Configuration, Results, Row
from fairlead.evaluate.tables import terminal_table


def printed(results: Results, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(terminal_table(results, "chat-unequal", 0.8))
    return file.getvalue()


def test_every_router_with_difference_and_interval(results: Results) -> None:
    text = printed(results, 120)
    for name in (
        "lor",
        "least_prefill",
        "lookahead",
        "learned",
        "TTFT",
        "E2E",
        "TPOT",
        "throughput",
        "imbalance",
    ):
        assert name in text
    assert "chat-unequal at 80\N{NO-BREAK SPACE}% load (6.40 requests/s)" in text
    learned = next(line for line in text.splitlines() if line.startswith("learned"))
    assert f"3.78 {MINUS}22" in learned and "+21" in learned
    assert f"✓{MINUS}24, {MINUS}21" in text and "✗+20, +21" in text


def test_pitfall_23_no_cell_is_empty(results: Results) -> None:
    words = set(printed(results, 120).replace(",", " ").split())
    assert not {"nan", "inf", "None", "N/A", "-"} & words


@pytest.mark.parametrize("width", [120, 80])
def test_nothing_is_cut_off(results: Results, width: int) -> None:
    text = printed(results, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    # The last column is the one that would suffer.
    cell = results.comparison("chat-unequal", 0.8, "lor", "imbalance")
    assert number("imbalance", cell.mean) in text


def test_a_reference_of_zero_is_shown_without_percentage(
    configuration: Configuration, rows: list[Row]
) -> None:
    zero = [row.model_copy(update={"imbalance": 0.0}) if row.router == "lor" else row for row in rows]
    table = printed(build_results(configuration, zero), 120)
    assert re.search(r" \+0\.\d+,", table)


def test_imbalance_is_not_judged_and_equal_runs_are_not_undecided(
    configuration: Configuration, rows: list[Row]
) -> None:
    by_seed = {(r.scenario, r.load, r.seed): r for r in rows if r.router == "least_prefill"}
    same = [
        by_seed[r.scenario, r.load, r.seed].model_copy(update={"router": "learned"})
        if r.router == "learned"
        else r
        for r in rows
    ]
    found = build_results(configuration, same)
    standings = {each.standing for each in found.comparisons if each.metric == "imbalance"}
    assert "least" in standings and standings <= {"least", "unjudged", "equal"}
    cell = found.comparison("chat-unequal", 0.8, "learned", "ttft_mean_s")
    assert (cell.reference_router, cell.standing) == ("least_prefill", "equal")
    learned = printed(found, 120).partition("\nlearned")[2].splitlines()[1].split()
    assert learned[0] == "=" and not any(mark in learned[-1] for mark in "✓✗~")
    assert any(
        "is equal on" in sentence and "the same as least_prefill" in sentence for sentence in found.words
    )
    assert "equal in 3" in found.words[0]


def test_huge_differences_stay_short(configuration: Configuration, rows: list[Row]) -> None:
    huge = [row.model_copy(update={"imbalance": 0.01}) if row.router == "lor" else row for row in rows]
    text = printed(build_results(configuration, huge), 120)
    assert re.search(r"\+\d\.\dk", text) and "least_prefill" in text


def test_long_names_are_folded_whole(configuration: Configuration, rows: list[Row]) -> None:
    name = "policy-trained-on-chat-unequal@0.5"
    routers = [
        r.model_copy(update={"name": name}) if r.name == "learned" else r for r in configuration.routers
    ]
    renamed = [r.model_copy(update={"router": name}) if r.router == "learned" else r for r in rows]
    text = printed(build_results(configuration.model_copy(update={"routers": routers}), renamed), 120)
    first_column = "".join(line[:13].strip() for line in text.splitlines())
    assert name in first_column
