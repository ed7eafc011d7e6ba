"""Where the tail of TTFTs begins: closed forms, forgetting, and no dependence on order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.view.tail import BINS, TAIL_PRIOR_S, TAIL_SHARE, forget_and_find, tail_bin, tail_cost

KEPT = 1.0 - 1.0 / 1024.0
TTFTS = st.lists(st.floats(1e-4, 1e4), max_size=60)


def histogram(ttfts: list[float] | np.ndarray) -> np.ndarray:
    counts = np.zeros(BINS)
    for ttft in ttfts:
        counts[tail_bin(float(ttft))] += 1.0
    return counts


def edge_s(b: float) -> float:
    """Where bin `b` begins."""
    return float(0.005 * 1.2**b)


def test_nothing_seen_means_the_prior() -> None:
    counts = np.zeros(BINS)
    assert forget_and_find(counts) == TAIL_PRIOR_S
    assert not counts.any()


def test_bins_are_twenty_percent_wide_and_take_everything() -> None:
    for b in range(BINS):
        assert tail_bin(1.0001 * edge_s(b)) == tail_bin(1.1999 * edge_s(b)) == b
    assert tail_bin(0.0) == tail_bin(1e-9) == tail_bin(0.005) == 0
    assert tail_bin(1e9) == BINS - 1


@pytest.mark.parametrize("b", [0, 7, 30, BINS - 1])
def test_of_equal_ttfts_the_tail_begins_near_the_end_of_their_bin(b: int) -> None:
    assert forget_and_find(histogram([1.1 * edge_s(b)] * 50)) == pytest.approx(edge_s(b + 1 - TAIL_SHARE))


def test_a_few_long_ones_are_the_tail_when_there_are_enough() -> None:
    low, high = 0.1, 30.0
    few = histogram([low] * 990 + [high] * 10)  # 1 %: less than the tail
    # The other percent comes from the top of the bin of the short ones.
    assert forget_and_find(few) == pytest.approx(edge_s(tail_bin(low) + 1 - 10 / 990))
    enough = histogram([low] * 960 + [high] * 40)  # 4 %: the upper half of their bin is the tail
    assert forget_and_find(enough) == pytest.approx(edge_s(tail_bin(high) + 0.5))


def test_forgetting_alone_moves_nothing_but_the_counts() -> None:
    counts = histogram(np.geomspace(0.01, 100.0, 200))
    before = counts.copy()
    found = {round(forget_and_find(counts), 9) for _ in range(100)}
    assert len(found) == 1
    np.testing.assert_allclose(counts, before * KEPT**100)


def test_what_is_long_ago_is_forgotten() -> None:
    """One new TTFT for each decision: 2000 long ones fade to 2 % of all."""
    counts = histogram([10.0] * 2000)
    tails = []
    for _ in range(6000):
        counts[tail_bin(0.1)] += 1.0
        tails.append(forget_and_find(counts))
    assert tails[0] > 9.0 and tails[-1] < 0.13
    gone = next(n for n, tail in enumerate(tails, 1) if tail < 1.0)
    old = 2000 * KEPT**gone
    new = (1.0 - KEPT**gone) / (1.0 - KEPT) * KEPT
    assert old / (old + new) == pytest.approx(TAIL_SHARE, rel=0.01)


def test_it_is_the_quantile_up_to_the_width_of_a_bin() -> None:
    ttfts = np.random.default_rng(0).lognormal(-1.0, 1.0, 20_000)
    found = forget_and_find(histogram(ttfts))
    assert found == pytest.approx(np.quantile(ttfts, 1.0 - TAIL_SHARE), rel=0.03)


@settings(max_examples=100, deadline=None)
@given(st.lists(TTFTS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_between_two_decisions_does_not_matter(between: list[list[float]], random) -> None:
    plain, shuffled = np.zeros(BINS), np.zeros(BINS)
    for ttfts in between:
        plain += histogram(ttfts)
        for ttft in random.sample(ttfts, len(ttfts)):
            shuffled[tail_bin(ttft)] += 1.0
        assert forget_and_find(plain) == forget_and_find(shuffled)
    np.testing.assert_array_equal(plain, shuffled)


@settings(max_examples=100, deadline=None)
@given(TTFTS.filter(bool))
def test_later_first_tokens_never_let_the_tail_begin_earlier(ttfts: list[float]) -> None:
    later = [1.5 * ttft for ttft in ttfts]
    assert forget_and_find(histogram(later)) >= forget_and_find(histogram(ttfts)) * (1 - 1e-12)


@pytest.mark.parametrize("late", [0.0, 0.01, 0.03])
def test_late_ttfts_do_not_become_free_by_moving_where_the_tail_begins(late: float) -> None:
    """What is charged as the tail begins later and later is still the share times the mean of the worst."""
    draw = np.random.default_rng(0)
    ttfts = draw.exponential(1.0, 40_000)
    ttfts[draw.random(40_000) < late] *= 5.0
    counts, charged, beyond = np.zeros(BINS), 0.0, 0.0
    for ttft in ttfts:
        begins = forget_and_find(counts)
        charged += tail_cost(ttft, begins)
        beyond += max(0.0, ttft - begins)
        counts[tail_bin(ttft)] += 1.0
    worst = np.sort(ttfts)[-round(TAIL_SHARE * len(ttfts)) :]
    assert charged / len(ttfts) == pytest.approx(TAIL_SHARE * worst.mean(), rel=0.05)
    assert beyond < 0.6 * charged  # what would be charged without the beginning


def test_the_cost_by_the_tail_is_least_where_the_tail_begins() -> None:
    ttfts = np.random.default_rng(1).exponential(1.0, 10_000)
    quantile = float(np.quantile(ttfts, 1.0 - TAIL_SHARE))
    costs = {q: np.mean([tail_cost(t, q) for t in ttfts]) for q in (0.5 * quantile, quantile, 2.0 * quantile)}
    assert min(costs, key=lambda q: costs[q]) == quantile
    assert costs[quantile] == pytest.approx(TAIL_SHARE * np.sort(ttfts)[-200:].mean(), rel=1e-3)
