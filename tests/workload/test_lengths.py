"""Laws of prompt and output lengths."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import spearmanr

from fairlead.errors import FairleadError
from fairlead.workload.lengths import (
    Empirical,
    Fixed,
    Lognormal,
    LognormalLength,
    Mixture,
    Part,
    Range,
    Trace,
    Uniform,
    Zipf,
    correlated_normals,
    rows_for_training,
)
from fairlead.workload.tables import load_table, table_names
from fairlead.workload.traces import Lengths

N = 100_000
SEEDS = st.integers(0, 2**40)


def same(left: Lengths, right: Lengths) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("rank_correlation", [-1.0, -0.7, -0.2, 0.0, 0.4, 0.9, 1.0])
def test_the_copula_reaches_the_rank_correlation(rank_correlation: float):
    deviates = correlated_normals(N, rank_correlation, 0, "train")
    assert spearmanr(deviates).statistic == pytest.approx(rank_correlation, abs=5 / N**0.5)
    np.testing.assert_allclose(deviates.mean(axis=0), 0, atol=5 / N**0.5)
    np.testing.assert_allclose(deviates.std(axis=0), 1, atol=5 / N**0.5)


@pytest.mark.parametrize("name", table_names())
def test_pitfall_02_lengths_come_from_public_traces(name: str):
    """Requests differ as they do in a public trace: its mean, its p99, its rank correlation."""
    table, tolerance = load_table(name), 5 * np.sqrt(0.0099 / N)
    prompt, output = Empirical(table=name).draw(N, 0, "train")
    for tokens, marginal in ((prompt, table.prompt), (output, table.output)):
        assert tokens.mean() == pytest.approx(marginal.mean, rel=0.02)
        # Few requests live around p99, so its share is compared (the length itself: test_tables.py).
        assert np.mean(tokens > marginal.p99) < 0.01 + tolerance
        assert np.mean(tokens >= np.floor(marginal.p99)) > 0.01 - tolerance
        assert tokens.min() >= marginal.quantiles[0]
        assert tokens.max() <= marginal.quantiles[-1]
        assert tokens.std() > 0.3 * tokens.mean(), "real lengths vary widely"
    assert spearmanr(prompt, output).statistic == pytest.approx(table.rank_correlation, abs=0.02)


def test_the_rank_correlation_of_a_table_can_be_overridden():
    lengths = Empirical(table="azure-conversation-2023", rank_correlation=0.6).draw(N, 0, "train")
    assert spearmanr(*lengths).statistic == pytest.approx(0.6, abs=0.02)
    plain = Empirical(table="azure-conversation-2023").draw(N, 0, "train")
    np.testing.assert_array_equal(lengths.prompt_tokens, plain.prompt_tokens)


def test_lognormal_lengths_have_the_given_mean_and_median():
    kind = Lognormal(
        prompt=LognormalLength(mean=900, median=600),
        output=LognormalLength(mean=250, median=250),
        rank_correlation=0.5,
    )
    prompt, output = kind.draw(N, 0, "train")
    assert prompt.mean() == pytest.approx(900, rel=0.02)
    assert np.median(prompt) == pytest.approx(600, rel=0.02)
    assert (output == 250).all(), "equal mean and median leave no spread"


def test_lognormal_lengths_are_cut_at_max():
    kind = Lognormal(
        prompt=LognormalLength(mean=1000, median=100, max=500), output=LognormalLength(mean=20, median=10)
    )
    prompt, output = kind.draw(N, 0, "train")
    assert prompt.max() == 500
    assert output.min() >= 1


def test_uniform_lengths_cover_their_range_evenly():
    kind = Uniform(prompt=Range(min=1, max=10), output=Range(min=7, max=7))
    prompt, output = kind.draw(N, 0, "train")
    counts = np.bincount(prompt, minlength=11)[1:]
    assert len(counts) == 10
    np.testing.assert_allclose(counts / N, 0.1, atol=5 * np.sqrt(0.09 / N))
    assert (output == 7).all()


@pytest.mark.parametrize("theta", [0.0, 0.6, 1.0, 2.0])
def test_zipf_totals_follow_the_power_law(theta: float):
    prompt, output = Zipf(theta=theta, min=20, max=29, prompt_to_output=3).draw(N, 0, "train")
    weights = np.arange(1, 11) ** -theta
    shares = np.bincount(prompt + output, minlength=30)[20:] / N
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=5 * np.sqrt(0.25 / N))


def test_zipf_splits_in_the_given_ratio():
    prompt, output = Zipf(theta=0.6, min=128, max=4096, prompt_to_output=6).draw(N, 0, "train")
    assert prompt.sum() / output.sum() == pytest.approx(6, rel=0.01)


def test_fixed_lengths_are_fixed():
    assert same(Fixed(prompt=5, output=3).draw(2, 9, "train"), Lengths(np.array([5, 5]), np.array([3, 3])))


@settings(max_examples=40, deadline=None)
@given(
    low=st.integers(1, 5000),
    spread=st.integers(0, 5000),
    theta=st.floats(0, 10),
    ratio=st.floats(0.001, 1000),
    correlation=st.floats(-1, 1),
    median=st.floats(1, 1e4),
    skew=st.floats(1, 1e4),
    seed=SEEDS,
)
def test_lengths_stay_within_their_bounds(
    low: int,
    spread: int,
    theta: float,
    ratio: float,
    correlation: float,
    median: float,
    skew: float,
    seed: int,
):
    side = Range(min=low, max=low + spread)
    for tokens in Uniform(prompt=side, output=side, rank_correlation=correlation).draw(50, seed, "train"):
        assert low <= tokens.min() <= tokens.max() <= low + spread
    prompt, output = Zipf(theta=theta, min=low + 1, max=low + 1 + spread, prompt_to_output=ratio).draw(
        50, seed, "train"
    )
    assert min(prompt.min(), output.min()) >= 1
    assert low + 1 <= (prompt + output).min() <= (prompt + output).max() <= low + 1 + spread
    length = LognormalLength(mean=median * skew, median=median, max=20_000)
    for tokens in Lognormal(prompt=length, output=length, rank_correlation=correlation).draw(
        50, seed, "train"
    ):
        assert 1 <= tokens.min() <= tokens.max() <= 20_000
    for tokens in Empirical(table="azure-code-2023", rank_correlation=correlation).draw(50, seed, "train"):
        assert 1 <= tokens.min() <= tokens.max() <= 7437


@pytest.mark.parametrize(
    "kind",
    [
        Empirical(table="azure-conversation-2023"),
        Uniform(prompt=Range(min=1, max=900), output=Range(min=1, max=900)),
        Zipf(theta=0.6, min=128, max=4096, prompt_to_output=6),
        Lognormal(prompt=LognormalLength(mean=900, median=600), output=LognormalLength(mean=300, median=200)),
    ],
    ids=lambda kind: kind.kind,
)
def test_draws_depend_on_seed_and_split_only_and_continue(kind: Empirical | Uniform | Zipf | Lognormal):
    first = kind.draw(500, 7, "train")
    assert same(kind.draw(500, 7, "train"), first)
    assert not same(kind.draw(500, 8, "train"), first)
    assert not same(kind.draw(500, 7, "evaluate"), first)
    longer = kind.draw(800, 7, "train")
    assert same(Lengths(longer.prompt_tokens[:500], longer.output_tokens[:500]), first)


def test_a_trace_of_lengths_is_taken_in_order_and_split(tmp_path: Path):
    path = tmp_path / "lengths.csv"
    path.write_text(
        "num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i + 1},{i + 2}\n" for i in range(40))
    )
    for seed in range(10):
        trained = Trace(path=path, train_share=0.25).draw(10, seed, "train")
        np.testing.assert_array_equal(trained.prompt_tokens, np.arange(1, 11))
        evaluated = Trace(path=path, train_share=0.25).draw(20, seed, "evaluate")
        assert evaluated.prompt_tokens.min() > 10
        np.testing.assert_array_equal(np.diff(evaluated.prompt_tokens), 1)
        np.testing.assert_array_equal(evaluated.output_tokens, evaluated.prompt_tokens + 1)
    with pytest.raises(FairleadError, match=r"31 requests asked for.*40 rows, of which 30 for evaluate"):
        Trace(path=path, train_share=0.25).draw(31, 0, "evaluate")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Range(min=5, max=4), "min (5) must not be above max (4)"),
        (lambda: Zipf(theta=1, min=5, max=4, prompt_to_output=1), "min (5) must not be above max (4)"),
        (lambda: LognormalLength(mean=10, median=20), "the median (20) of a lognormal length is never above"),
        (lambda: LognormalLength(mean=90, median=80, max=50), "max (50) must be at least the median (80)"),
        (lambda: Fixed(prompt=0, output=1), "greater than or equal to 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(build: object, message: str):
    assert callable(build)
    with pytest.raises(ValidationError) as error:
        build()
    assert message in str(error.value)


def test_an_unknown_table_is_refused_with_a_hint():
    with pytest.raises(
        FairleadError, match=r"'azure-conversation-2032'; did you mean azure-conversation-2023"
    ):
        Empirical(table="azure-conversation-2032")


CHAT, CODE = Empirical(table="azure-conversation-2023"), Empirical(table="azure-code-2023")
TASKS = Mixture(
    parts=(
        Part(weight=6, lengths=CHAT),
        Part(weight=3, lengths=CODE),
        Part(weight=1, lengths=Fixed(prompt=20_000, output=300)),
    )
)


def test_a_mixture_has_its_parts_in_their_shares_and_each_with_its_own_lengths():
    prompt, output = TASKS.draw(N, 0, "train")
    sorts = TASKS.sorts(N, 0, "train")
    for index, share in enumerate((0.6, 0.3, 0.1)):
        assert np.mean(sorts == index) == pytest.approx(share, abs=5 * (share * (1 - share) / N) ** 0.5)
    assert set(prompt[sorts == 2]) == {20_000} and set(output[sorts == 2]) == {300}
    for index, name in ((0, "azure-conversation-2023"), (1, "azure-code-2023")):
        table = load_table(name)
        assert prompt[sorts == index].mean() == pytest.approx(table.prompt.mean, rel=0.03)
        assert output[sorts == index].mean() == pytest.approx(table.output.mean, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 60), seed=SEEDS)
def test_parts_do_not_disturb_each_other_and_more_requests_continue_the_run(count: int, seed: int):
    """Equal parts draw different lengths; a change of one part changes only its own requests."""
    twins = Mixture(parts=(Part(weight=1, lengths=CHAT), Part(weight=1, lengths=CHAT)))
    changed = Mixture(parts=(Part(weight=1, lengths=CHAT), Part(weight=1, lengths=CODE)))
    sorts = twins.sorts(count, seed, "train")
    before, after = twins.draw(count, seed, "train"), changed.draw(count, seed, "train")
    np.testing.assert_array_equal(before.prompt_tokens[sorts == 0], after.prompt_tokens[sorts == 0])
    longer = twins.draw(count + 9, seed, "train")
    assert same(Lengths(longer.prompt_tokens[:count], longer.output_tokens[:count]), before)
    long = twins.draw(400, seed, "train").prompt_tokens
    sorts = twins.sorts(400, seed, "train")
    few = min((sorts == 0).sum(), (sorts == 1).sum())
    assert not np.array_equal(long[sorts == 0][:few], long[sorts == 1][:few])
    assert not np.array_equal(long, twins.draw(400, seed, "evaluate").prompt_tokens)


def test_a_mixture_with_a_trace_knows_how_much_it_can_draw(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "7,3\n" * 10)
    trace = Trace(path=path)
    mixed = Mixture(parts=(Part(weight=1, lengths=trace), Part(weight=1, lengths=CHAT)))
    assert rows_for_training(mixed) == rows_for_training(trace) == 5
    assert rows_for_training(TASKS) is None
    with pytest.raises(FairleadError, match="at most 5"):
        mixed.draw(60, 0, "train")
    # The same rows, where the boundary is between two of them.
    rounded = Trace(path=path, train_share=0.37)
    assert rows_for_training(rounded) == 4
    rounded.draw(4, 0, "train")
    rounded.draw(6, 0, "evaluate")
