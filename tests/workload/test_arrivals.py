"""Laws of the arrivals that have no seconds of their own; tolerances are five standard errors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fairlead.errors import FairleadError
from fairlead.workload.arrivals import Deterministic, Gamma, Poisson, Replay

N = 100_000


def gaps_of(arrivals: Poisson | Gamma | Deterministic | Replay, count: int, seed: int, split: str):
    """The gaps at a rate of 1 request/s, (count,)."""
    return np.diff(arrivals.times(count, 1.0, seed, split), prepend=0)


def write_trace(path: Path, times: list[float]) -> Path:
    rows = [f"{time},{10 + row},{1 + row}" for row, time in enumerate(times)]
    path.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]) + "\n")
    return path


def test_poisson_gaps_are_exponential():
    gaps = gaps_of(Poisson(), N, 0, "train")
    assert gaps.mean() == pytest.approx(1, abs=5 / N**0.5)
    assert gaps.std() == pytest.approx(1, abs=10 / N**0.5)
    # No gap is capped, and the law forgets: P(gap > 1) = P(gap > 2 | gap > 1) = 1/e.
    assert np.mean(gaps > 1) == pytest.approx(np.exp(-1), abs=0.01)
    assert np.mean(gaps[gaps > 1] > 2) == pytest.approx(np.exp(-1), abs=0.02)
    assert gaps.max() > 8


@pytest.mark.parametrize("cv", [0.25, 1.0, 3.0])
def test_gamma_gaps_have_mean_one_and_the_given_variation(cv: float):
    gaps = gaps_of(Gamma(cv=cv), N, 1, "train")
    assert gaps.mean() == pytest.approx(1, abs=5 * cv / N**0.5)
    # Variance of a sample variance: (kurtosis - 1) / N with kurtosis 3 + 6 cv^2.
    assert gaps.var() == pytest.approx(cv**2, rel=5 * np.sqrt((2 + 6 * cv**2) / N))


def test_deterministic_gaps_are_equal():
    np.testing.assert_array_equal(Deterministic().times(4, 0.5, 3, "evaluate"), [2, 4, 6, 8])


@settings(max_examples=30, deadline=None)
@given(cv=st.floats(0.05, 20), count=st.integers(1, 200), seed=st.integers(0, 2**40))
def test_gaps_are_finite_and_not_negative_and_more_requests_continue_the_run(
    cv: float, count: int, seed: int
):
    for arrivals in (Poisson(), Gamma(cv=cv)):
        gaps = gaps_of(arrivals, count, seed, "train")
        assert gaps.shape == (count,)
        assert np.isfinite(gaps).all()
        assert (gaps >= 0).all()
        np.testing.assert_array_equal(gaps_of(arrivals, count + 7, seed, "train")[:count], gaps)


@pytest.mark.parametrize("arrivals", [Poisson(), Gamma(cv=2), Deterministic()])
def test_another_rate_only_stretches_the_times(arrivals: Poisson | Gamma | Deterministic):
    slow, fast = (arrivals.times(300, rate, 5, "train") for rate in (2.0, 14.0))
    np.testing.assert_allclose(slow, 7 * fast, rtol=1e-14)


def test_replay_keeps_the_proportions_of_the_trace(tmp_path: Path):
    path = write_trace(tmp_path / "trace.csv", [0, 1, 4, 5, 9, 10, 10, 12, 20, 21])
    gaps = gaps_of(Replay(path=path, train_share=0.04), 10, 0, "evaluate")  # all rows are for evaluation
    assert gaps.sum() == pytest.approx(10)
    assert gaps[0] == pytest.approx(1)
    np.testing.assert_allclose(gaps[1:] / gaps[1], [1, 3, 1, 4, 1, 0, 2, 8, 1])


def test_replay_gives_training_the_first_part_and_evaluation_the_rest(tmp_path: Path):
    # Gaps of 1 in the first half, then alternating 1 and 3: evaluation must never look like training.
    times = [*range(50), *np.cumsum([50] + [1, 3] * 24 + [1]).tolist()]
    path = write_trace(tmp_path / "trace.csv", times)
    starts = set()
    for seed in range(20):
        np.testing.assert_allclose(gaps_of(Replay(path=path), 9, seed, "train"), 1)
        evaluated = gaps_of(Replay(path=path), 9, seed, "evaluate")
        assert evaluated.sum() == pytest.approx(9)
        assert evaluated.std() > 0.3
        starts.add(float(evaluated[1]))
    assert len(starts) > 1, "the seed picks the window"


def test_replay_of_too_few_rows_says_how_many_there_are(tmp_path: Path):
    path = write_trace(tmp_path / "trace.csv", list(range(10)))
    with pytest.raises(
        FairleadError, match=r"11 requests asked for.*10 rows, of which 5 for train.*at most 5"
    ):
        gaps_of(Replay(path=path), 11, 0, "train")
    assert len(gaps_of(Replay(path=path, train_share=0.8), 8, 0, "train")) == 8


def test_replay_of_one_instant_is_refused(tmp_path: Path):
    path = write_trace(tmp_path / "trace.csv", [3, 3, 3, 3])
    with pytest.raises(FairleadError, match="same instant"):
        gaps_of(Replay(path=path, train_share=0.1), 4, 0, "evaluate")
    np.testing.assert_array_equal(gaps_of(Replay(path=path), 1, 0, "train"), [1])


def test_a_trace_of_which_nothing_is_for_training_is_refused(tmp_path: Path):
    with pytest.raises(ValidationError, match="train_share"):
        Replay(path=write_trace(tmp_path / "trace.csv", [1, 2]), train_share=0)


@pytest.mark.parametrize("cv", [0, -1, 21, float("nan"), float("inf")])
def test_a_variation_out_of_range_is_refused(cv: float):
    with pytest.raises(ValidationError):
        Gamma(cv=cv)
