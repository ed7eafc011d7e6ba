"""Paces: sums in closed form, what is believed of them, and which columns they correct."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.simulator import reference
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import analytic
from fairlead.view import schema
from fairlead.view.pace import (
    BELIEVED,
    ENOUGH_ITERATIONS,
    IGNORED,
    MOST,
    believed,
    common_pace,
    due_growth,
    due_of_iteration,
    pace,
    slow_down,
)
from fairlead.workload.requests import Requests

A100 = analytic(model("llama-3-8b"), device("a100-80g"))
SPEEDS = [schema.SPEED, schema.PREFILL_TOKENS_PER_S, schema.DECODE_ITERATION_S]


def test_before_anything_is_seen_all_are_as_declared() -> None:
    assert common_pace(0.0, 0.0) == 1.0
    assert pace(0.0, 0.0, 0.01, 1.0) == 1.0


def test_a_replica_that_was_not_seen_has_the_pace_of_the_others() -> None:
    common = common_pace(30.0, 20.0)
    assert pace(0.0, 0.0, 0.01, common) == pytest.approx(1.5)


def test_what_was_not_seen_is_at_the_common_pace() -> None:
    enough = ENOUGH_ITERATIONS * 0.01
    assert pace(enough, enough / 2.0, 0.01, 1.0) == pytest.approx(1.5)  # half of it, twice as long
    assert pace(2.0 * enough, enough, 0.01, 1.0) == pytest.approx(2.0)
    assert pace(20.0 * enough, 10.0 * enough, 0.01, 1.0) == pytest.approx(2.0)


@given(st.floats(0.1, 20.0), st.floats(0.1, 20.0))
def test_what_is_believed_grows_with_the_pace_and_never_exceeds_it(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert believed(low) <= believed(high)
    assert 1.0 <= believed(high) <= max(1.0, min(high, MOST))
    if high <= IGNORED:
        assert believed(high) == 1.0
    if high >= BELIEVED:
        assert believed(high) == min(high, MOST)


@given(st.integers(1, 50), st.floats(1.0, 50.0), st.floats(0.0, 1e5))
def test_contexts_grow_by_a_token_for_each_request(steps: int, decoding: float, context: float) -> None:
    later = due_of_iteration(0.01, decoding, context + steps * decoding)
    assert later == pytest.approx(
        due_of_iteration(0.01, decoding, context) + steps * due_growth(0.01, decoding)
    )


def test_no_time_at_all_is_no_pace_of_zero() -> None:
    """Tokens that were held up on their way come all at once."""
    assert common_pace(0.0, 5.0) > 0.0
    assert pace(0.0, 5.0, 0.01, common_pace(0.0, 5.0)) > 0.0


def test_the_three_declared_columns_are_corrected_and_no_other() -> None:
    before = np.arange(1.0, 1.0 + schema.NUM_REPLICA_COLUMNS)
    after = before.copy()
    slow_down(after, 2.0)
    assert after[schema.SPEED] == before[schema.SPEED] / 2.0
    assert after[schema.PREFILL_TOKENS_PER_S] == before[schema.PREFILL_TOKENS_PER_S] / 2.0
    assert after[schema.DECODE_ITERATION_S] == before[schema.DECODE_ITERATION_S] * 2.0
    others = np.delete(np.arange(len(before)), SPEEDS)
    np.testing.assert_array_equal(after[others], before[others])


def fleet(slowdowns: list[float], told: list[float], routers: int = 1) -> Fleet:
    def like(factors: list[float]) -> Fleet:
        return custom_fleet(
            [A100.scaled(x) for x in factors],
            np.full(len(factors), 20_000),
            token_budget=2048,
            max_num_seqs=128,
            block_size=16,
            routers=routers,
        )

    return replace(like(slowdowns), static=like(told).static)


def seen(made: Fleet, count: int = 600, rate: float = 10.0, routers: int = 1) -> np.ndarray:
    """(count, R): declared speed by the one in the view, at decisions that go round robin."""
    draw = np.random.default_rng(3)
    wanted = Requests(
        np.cumsum(draw.exponential(1 / rate, count)),
        draw.integers(50, 3000, count),
        draw.integers(20, 400, count),
        draw.integers(0, routers, count),
    )
    cluster = Clusters([made], [wanted])
    found = []
    for i in range(count):
        found.append(made.static[:, 0] / cluster.observe().replicas[0, :, schema.SPEED])
        cluster.route(np.array([i % made.num_replicas]))
    return np.array(found)


def test_what_nobody_declared_is_found() -> None:
    found = seen(fleet([1.0, 1.0, 2.5], told=[1.0, 1.0, 1.0]))
    assert (found[0] == 1.0).all()
    np.testing.assert_allclose(found[100:].mean(axis=0), [1.0, 1.0, 2.5], rtol=0.1)


def test_what_is_declared_rightly_is_left_alone() -> None:
    for slowdowns in ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.5, 2.5]):
        found = seen(fleet(slowdowns, told=slowdowns))
        assert (found > 1.0).mean() < 0.05
        assert found.mean(axis=0) == pytest.approx(1.0, abs=0.01)


def test_what_is_declared_wrongly_is_corrected() -> None:
    # Said to be four times slower; in truth as fast: then the other is the slow one, by what was said.
    found = seen(fleet([1.0, 1.0], told=[1.0, 4.0]))
    np.testing.assert_allclose(found[100:].mean(axis=0), [4.0, 1.0], rtol=0.15)


def test_each_router_finds_out_by_itself() -> None:
    found = seen(fleet([1.0, 1.0, 3.0], told=[1.0, 1.0, 1.0], routers=3), count=900, rate=3.0, routers=3)
    # The prompts of others, which it does not see, make the slow one look slower still.
    fast, second, slow = found[300:].mean(axis=0)
    assert max(fast, second) < 1.1
    assert 2.5 < slow < 4.5


def test_prompts_alone_show_nothing() -> None:
    """Answers of one token: no stream shows an iteration, and the twin agrees that nothing is known."""
    made = fleet([1.0, 3.0], told=[1.0, 1.0])
    wanted = Requests(np.linspace(0.0, 0.5, 50), np.full(50, 200), np.ones(50, np.int64))
    cluster = Clusters([made], [wanted])
    for i in range(50):
        assert (cluster.observe().replicas[0, :, schema.SPEED] == 1.0).all()
        cluster.route(np.array([i % 2]))
    plain = reference.simulate(made, wanted, np.arange(50) % 2, record_views=True)
    assert plain.view is not None
    assert (plain.view.replicas[:, :, schema.SPEED] == 1.0).all()
