"""Conversations: histories that grow, think times, system prompts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.workload.content import chains, dense, unshared
from fairlead.workload.lengths import Fixed, Range, Uniform
from fairlead.workload.requests import Requests
from fairlead.workload.sessions import GeometricTurns, Sessions, SystemPrompts, ThinkTime, UniformTurns

THINK = ThinkTime(mean_s=20, median_s=10, max_s=100)
LENGTHS = Uniform(prompt=Range(min=20, max=200), output=Range(min=10, max=300))


def sessions(**changes: object) -> Sessions:
    settings = {"turns": GeometricTurns(mean=4, max=12), "lengths": LENGTHS, "think_time": THINK, **changes}
    return Sessions.model_validate(settings)


def run(
    made: Sessions, count: int = 800, *, rate: float = 5.0, seed: int = 0, block_size: int = 16
) -> Requests:
    return made.requests(count, rate, seed, "evaluate", None, block_size)


def blocks(requests: Requests, i: int) -> np.ndarray:
    assert requests.content is not None
    return requests.content.ids[requests.content.offsets[i] : requests.content.offsets[i + 1]]


def turns_of(requests: Requests, session: int) -> np.ndarray:
    assert requests.session is not None
    return np.flatnonzero(requests.session == session)


def test_a_prompt_is_all_that_was_said_and_something_new() -> None:
    requests = run(sessions())
    assert requests.session is not None
    followed = 0
    for session in np.unique(requests.session):
        rows = turns_of(requests, session)
        for before, turn in itertools.pairwise(rows):
            said = requests.prompt_tokens[before] + requests.output_tokens[before]
            assert 20 <= requests.prompt_tokens[turn] - said <= 200
            shared = len(blocks(requests, before))
            np.testing.assert_array_equal(blocks(requests, turn)[:shared], blocks(requests, before))
            served_s = 0.5 + 0.03 * requests.output_tokens[before]
            assert 0 < requests.arrival_s[turn] - requests.arrival_s[before] - served_s <= 100.0 + 1e-9
            followed += 1
    assert followed > 400


def test_different_sessions_share_nothing_without_system_prompts() -> None:
    requests = run(sessions())
    assert requests.content is not None
    assert requests.session is not None
    owner = np.repeat(requests.session, np.diff(requests.content.offsets))
    pairs = np.unique(np.column_stack([requests.content.ids, owner]), axis=0)
    assert len(pairs) == len(np.unique(requests.content.ids))


def test_system_prompts_are_shared_block_by_block_and_the_popular_more_often() -> None:
    made = sessions(system_prompts=SystemPrompts(count=3, tokens=100, zipf=2.0))
    requests = run(made, 2000)
    assert requests.prompt_tokens.min() >= 120
    first = np.array([blocks(requests, i)[:6] for i in range(2000)])
    # 100 tokens fill 6 blocks of 16; the 7th holds the user's words too.
    assert len(np.unique(first, axis=0)) == 3
    seventh = {(int(blocks(requests, i)[6])) for i in range(2000)}
    assert requests.session is not None
    assert len(seventh) == len(np.unique(requests.session))
    counts = np.bincount(first[:, 0] // 6, minlength=3) / 2000
    assert counts[0] > 0.6 > 0.3 > counts[1] > counts[2]


def test_no_turn_is_longer_than_the_context_and_sessions_end_there() -> None:
    requests = run(sessions(max_context=1000))
    assert (requests.prompt_tokens + requests.output_tokens).max() <= 1000
    with pytest.raises(FairleadError, match="no turn fits into max_context 40"):
        run(sessions(max_context=40, lengths=Fixed(prompt=30, output=30)))


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_the_rate_is_the_one_asked_for_from_the_start(rate: float) -> None:
    arrivals = np.concatenate([run(sessions(), 1500, rate=rate, seed=s).arrival_s for s in range(4)])
    spans = [run(sessions(), 1500, rate=rate, seed=s).arrival_s[-1] for s in range(4)]
    assert np.mean(spans) == pytest.approx(1500 / rate, rel=0.1)
    assert (arrivals < 375 / rate).mean() == pytest.approx(0.25, abs=0.04)


def test_more_requests_continue_fewer_and_splits_differ() -> None:
    few, many = run(sessions(), 200), run(sessions(), 900)
    np.testing.assert_array_equal(few.arrival_s, many.arrival_s[:200])
    np.testing.assert_array_equal(few.prompt_tokens, many.prompt_tokens[:200])
    assert few.content is not None
    assert many.content is not None
    np.testing.assert_array_equal(dense_by_first(few.content.ids), dense_by_first(many[:200].content.ids))  # type: ignore[union-attr]
    train = sessions().requests(200, 5.0, 0, "train", None, None)
    assert train.content is None
    assert (train.arrival_s != few.arrival_s).any()


def dense_by_first(ids: np.ndarray) -> np.ndarray:
    """Ids renumbered in the order in which they appear."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def test_a_limit_on_the_output_shortens_the_history_too() -> None:
    short = sessions().requests(300, 5.0, 0, "evaluate", 40, 16)
    assert short.output_tokens.max() == 40


@given(st.integers(2, 30), st.floats(1.5, 20))
@settings(max_examples=20, deadline=None)
def test_turns_have_the_mean_asked_for(least: int, mean: float) -> None:
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    assert GeometricTurns(mean=mean, max=10_000).turns(uniforms).mean() == pytest.approx(mean, rel=0.02)
    found = UniformTurns(min=least, max=least + 3).turns(uniforms)
    assert np.bincount(found)[least:].tolist() == [5000] * 4


def test_think_times_have_the_mean_and_median_asked_for() -> None:
    deviates = np.random.default_rng(0).standard_normal(200_000)
    seconds = ThinkTime(mean_s=20, median_s=10, max_s=1e6).seconds(deviates)
    assert (np.mean(seconds), np.median(seconds)) == pytest.approx((20, 10), rel=0.03)


def test_chains_and_dense_ids() -> None:
    assert chains(np.array([2, 0, 3]), np.array([5, 9, 0])).tolist() == [5, 6, 0, 1, 2]
    assert chains(np.array([], np.int64), np.array([], np.int64)).tolist() == []
    assert dense(np.array([900, -4, 900])).tolist() == [1, 0, 1]
    nothing = unshared(np.array([17, 3]), np.array([16, 1]), 16)
    assert nothing.ids.tolist() == [0, 1]
    assert nothing.offsets.tolist() == [0, 2, 2]
