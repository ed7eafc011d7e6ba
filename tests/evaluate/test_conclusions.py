"""The reference is the best heuristic for each metric, and comparisons are paired by seed."""

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.results import Configuration, Results, Row


def test_pitfall_26_the_reference_is_the_best_heuristic_for_the_metric(results: Results) -> None:
    for scenario, load in results.configuration.settings:
        for metric, best in (("ttft_mean_s", min), ("e2e_p99_s", min), ("goodput_rps", max)):
            means = {
                router: float(np.mean(results.values(scenario, load, router, metric)))
                for router in ("lor", "least_prefill")
            }
            cell = results.comparison(scenario, load, "learned", metric)
            assert cell.reference == pytest.approx(best(means.values()))
            assert cell.reference_router in means  # never lookahead, never a learned router


def test_the_reference_is_marked_in_its_own_cell(results: Results) -> None:
    cell = results.comparison("chat-equal", 0.7, "least_prefill", "ttft_mean_s")
    assert (cell.verdict, cell.method, cell.difference) == ("reference", "itself", 0.0)
    cell = results.comparison("chat-equal", 0.7, "lor", "ttft_mean_s")
    assert cell.verdict == "worse"
    assert cell.relative_interval is not None and cell.relative_interval[0] > 0


def test_files_from_before_keep_the_interval_that_they_had(results: Results) -> None:
    cell = results.comparison("chat-equal", 0.7, "lor", "ttft_mean_s")
    old = cell.model_copy(update={"relative_ci_low": None, "relative_ci_high": None})
    assert old.relative_interval == (cell.ci_low / cell.reference, cell.ci_high / cell.reference)


def test_the_order_of_the_rows_does_not_matter(
    configuration: Configuration, rows: list[Row], results: Results
) -> None:
    assert build_results(configuration, rows[::-1]).comparisons == results.comparisons


def test_without_a_heuristic_there_is_nothing_to_compare_with(
    configuration: Configuration, rows: list[Row]
) -> None:
    only = configuration.model_copy(update={"routers": configuration.routers[2:]})
    kept = [row for row in rows if row.router in only.router_names]
    with pytest.raises(FairleadError, match="no heuristic"):
        build_results(only, kept)


def test_pitfall_27_one_seed_is_refused(configuration: Configuration, rows: list[Row]) -> None:
    single = configuration.model_copy(update={"seeds": [0]})
    with pytest.raises(FairleadError, match="at least two seeds"):
        build_results(single, [row for row in rows if row.seed == 0])


def test_unknown_cells_are_named(results: Results) -> None:
    with pytest.raises(FairleadError, match=r"no ttft_mean_s of p2c for chat-equal at load 0\.7"):
        results.comparison("chat-equal", 0.7, "p2c", "ttft_mean_s")
