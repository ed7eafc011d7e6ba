"""Intervals that cover, verdicts that point the right way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fairlead.errors import FairleadError
from fairlead.evaluate.statistics import LOWER_IS_BETTER, compare, compare_ratios, paired_interval, typical
from fairlead.simulator.metrics import METRICS


def test_every_metric_has_a_direction() -> None:
    assert tuple(LOWER_IS_BETTER) == METRICS
    higher = {name for name, lower in LOWER_IS_BETTER.items() if not lower}
    assert higher == {"throughput_rps", "goodput_rps", "prefix_hit_rate"}


@pytest.mark.parametrize(
    ("seeds", "method", "least"), [(5, "paired t", 0.92), (8, "bootstrap-t", 0.92), (20, "bootstrap-t", 0.92)]
)
def test_intervals_cover_the_true_difference(seeds: int, method: str, least: float) -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(200):
        differences = (
            rng.gamma(2.0, size=seeds) - 2.0 + 0.3 if method != "paired t" else rng.normal(0.3, size=seeds)
        )
        low, high, used = paired_interval(differences)
        assert used == method
        covered.append(low <= 0.3 <= high)
    assert least <= np.mean(covered) <= 0.99


def test_few_seeds_use_the_paired_t_interval() -> None:
    ours, theirs = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.5, 2.2, 4.9, 3.1])
    found = compare(ours, theirs, lower_is_better=True)
    expected = stats.ttest_rel(ours, theirs).confidence_interval()
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high))
    assert found.method == "paired t"


def test_pairing_finds_what_unpaired_runs_hide() -> None:
    rng = np.random.default_rng(3)
    workload = rng.normal(10.0, 3.0, 12)  # what the seed does to every router
    ours, theirs = workload - 0.2 + rng.normal(0, 0.05, 12), workload + rng.normal(0, 0.05, 12)
    assert stats.ttest_ind(ours, theirs).pvalue > 0.5
    found = compare(ours, theirs, lower_is_better=True)
    assert found.verdict == "better" and found.method == "bootstrap-t"
    assert found.ci_low < -0.2 < found.ci_high < 0
    assert found.relative_difference == pytest.approx(found.difference / theirs.mean())


def test_pitfall_27_a_single_run_has_no_interval() -> None:
    with pytest.raises(FairleadError, match="at least two seeds"):
        compare([1.0], [2.0], lower_is_better=True)


def test_mostly_equal_differences_still_have_an_interval() -> None:
    low, high, method = paired_interval(np.array([0.0] * 9 + [1.0]))
    assert method == "paired t" and low < 0.0 < high


@pytest.mark.parametrize("seeds", [2, 7, 8, 30])
def test_equal_routers_are_undecided(seeds: int) -> None:
    values = np.random.default_rng(0).normal(size=seeds)
    found = compare(values, values * (1 + 1e-15), lower_is_better=True)
    assert (found.ci_low, found.ci_high, found.difference, found.relative_difference) == (0, 0, 0, 0)
    assert (found.verdict, found.method) == ("undecided", "equal differences")


def test_constant_differences_have_no_width() -> None:
    found = compare(np.arange(10.0) + 0.5, np.arange(10.0), lower_is_better=False)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.5, 0.5))
    assert found.verdict == "better"


def test_a_reference_of_zero_has_no_relative_difference() -> None:
    assert compare([1.0, 2.0], [0.0, 0.0], lower_is_better=True).relative_difference is None
    assert compare([0.0, 0.0], [0.0, 0.0], lower_is_better=True).relative_difference == 0.0


def test_ratios_never_pass_minus_100_percent_where_differences_do() -> None:
    ours, theirs = np.array([1.0, 1.2]), np.array([2.0, 9.0])
    plain = compare(ours, theirs, lower_is_better=True)
    assert plain.relative_interval is not None and plain.relative_interval[0] < -1.0
    found = compare_ratios(ours, theirs, lower_is_better=True)
    assert found.relative_difference == pytest.approx(np.sqrt(1.0 / 2.0 * 1.2 / 9.0) - 1.0)
    assert found.relative_interval is not None
    low, high = found.relative_interval
    assert -1.0 < low < np.sqrt(1.0 / 2.0 * 1.2 / 9.0) - 1.0 < high
    assert (found.difference, found.ci_low, found.ci_high) == (plain.difference, plain.ci_low, plain.ci_high)


def test_the_verdict_is_that_of_the_ratios() -> None:
    theirs = np.array([1.0, 1.1, 0.9, 1.0, 50.0, 1.05])  # one backlog makes differences incomparable
    found = compare_ratios(0.9 * theirs, theirs, lower_is_better=True)
    assert found.relative_difference == pytest.approx(-0.1) and found.verdict == "better"
    assert compare(0.9 * theirs, theirs, lower_is_better=True).verdict == "undecided"
    assert compare_ratios(0.9 * theirs, theirs, lower_is_better=False).verdict == "worse"


def test_without_ratios_the_differences_decide() -> None:
    found = compare_ratios([0.0, 0.0, 0.0], [0.5, 0.1, 3.0], lower_is_better=True)
    assert found.relative_difference == -1.0
    assert found.relative_interval is not None and found.relative_interval[0] == -1.0
    assert compare_ratios([1.0, 2.0], [0.0, 0.0], lower_is_better=True).relative_interval is None
    assert typical([0.0, 4.0]) == 2.0
    assert typical([1.0, 4.0]) == pytest.approx(2.0)


def test_the_end_of_an_interval_is_a_number_however_far_two_runs_are_apart() -> None:
    found = compare_ratios([1.0, 1e90], [1.0, 1.0], lower_is_better=True)
    assert found.relative_interval is not None and np.isfinite(found.relative_interval).all()


def test_equal_runs_are_told_from_undecided_ones() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert compare_ratios(values, values * (1 + 1e-15), lower_is_better=True).equal
    assert not compare_ratios(values, values[::-1], lower_is_better=True).equal
    assert not compare_ratios(values, values + 1.0, lower_is_better=True).equal  # but the same difference


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        compare([1.0, bad], [1.0, 2.0], lower_is_better=True)


def test_unpaired_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare([1.0, 2.0, 3.0], [1.0, 2.0], lower_is_better=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_swapping_the_pair_mirrors_the_comparison(seed: int, seeds: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.gamma(2.0, size=seeds), rng.gamma(2.0, size=seeds)
    one = compare(ours, theirs, lower_is_better=True)
    other = compare(theirs, ours, lower_is_better=True)
    assert one.difference == pytest.approx(-other.difference)
    assert one.ci_low <= one.difference <= one.ci_high
    mirrored = {"better": "worse", "worse": "better", "undecided": "undecided"}
    if one.method == "paired t":  # bootstrap intervals mirror only up to the resampling
        assert one.verdict == mirrored[other.verdict]
    assert one.verdict == mirrored[compare(ours, theirs, lower_is_better=False).verdict]
