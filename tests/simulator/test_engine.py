"""The compiled engine against its plain twin, request by request and column by column."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator.tables import operator_tables, step_table

from fairlead.simulator import reference
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.schedulers import VLLM_V1, SchedulerOptions
from fairlead.simulator.tables import TimingModel
from fairlead.simulator.timing import analytic
from fairlead.view.schema import View
from fairlead.workload.requests import Requests

A100 = analytic(model("llama-3-8b"), device("a100-80g"))


def fleet(
    slowdowns: Sequence[float | TimingModel],
    *,
    blocks: int,
    budget: int,
    seqs: int,
    block_size: int,
    interval: float,
    routers: int = 1,
    scheduler: SchedulerOptions = VLLM_V1,
) -> Fleet:
    timing = [A100.scaled(x) if isinstance(x, float) else x for x in slowdowns]
    return custom_fleet(
        timing,
        np.full(len(slowdowns), blocks),
        token_budget=budget,
        max_num_seqs=seqs,
        block_size=block_size,
        scrape_interval_s=interval,
        routers=routers,
        scheduler=scheduler,
    )


def requests(seed: int, count: int, rate: float, longest: int, routers: int = 1) -> Requests:
    draw = np.random.default_rng(seed)
    return Requests(
        np.cumsum(draw.exponential(1 / rate, count)),
        draw.integers(1, longest, count),
        draw.integers(1, longest, count),
        draw.integers(0, routers, count),
    )


def compiled(made: Fleet, wanted: Requests, choices: np.ndarray) -> tuple[Clusters, View]:
    cluster = Clusters([made], [wanted])
    views = []
    for i in range(cluster.N):
        view = cluster.observe()
        views.append((view.replicas[0].copy(), view.request[0].copy()))
        cluster.route(choices[i : i + 1])
    cluster.drain()
    return cluster, View(np.array([v[0] for v in views]), np.array([v[1] for v in views]))


def assert_agree(made: Fleet, wanted: Requests, choices: np.ndarray) -> int:
    """Same times, preemptions and views; the number of preemptions."""
    plain = reference.simulate(made, wanted, choices, record_views=True)
    cluster, views = compiled(made, wanted, choices)
    fast = cluster.outcomes(0)
    assert fast.scheduled_s is not None
    np.testing.assert_allclose(fast.scheduled_s, plain.scheduled_s, rtol=1e-9)
    np.testing.assert_allclose(fast.first_token_s, plain.first_token_s, rtol=1e-9)
    np.testing.assert_allclose(fast.finish_s, plain.finish_s, rtol=1e-9)
    np.testing.assert_array_equal(fast.preemptions, plain.preemptions)
    np.testing.assert_array_equal(fast.replica, choices)
    assert plain.view is not None
    np.testing.assert_allclose(views.request, plain.view.request, rtol=1e-9)
    np.testing.assert_allclose(views.replicas, plain.view.replicas, rtol=1e-7, atol=1e-9)
    return int(fast.preemptions.sum())


@pytest.mark.parametrize("seed", range(4))
def test_engine_agrees_with_the_twin_at_ease(seed: int) -> None:
    made = fleet([1.0, 1.0, 2.5], blocks=20_000, budget=512, seqs=64, block_size=16, interval=0.5)
    wanted = requests(seed, 400, 12.0, 900)
    choices = np.random.default_rng(seed + 100).integers(0, 3, 400)
    assert assert_agree(made, wanted, choices) == 0


@pytest.mark.parametrize("seed", range(4))
def test_engine_agrees_with_the_twin_under_preemption(seed: int) -> None:
    made = fleet([1.0, 1.7], blocks=150, budget=256, seqs=48, block_size=16, interval=0.3)
    wanted = requests(seed, 300, 6.0, 500)
    choices = np.random.default_rng(seed + 100).integers(0, 2, 300)
    assert assert_agree(made, wanted, choices) > 50


@pytest.mark.parametrize("blocks", [2000, 90])
def test_engine_agrees_with_the_twin_by_tables(blocks: int) -> None:
    models: list[TimingModel | float] = [
        step_table(),
        operator_tables(),
        operator_tables(recent=True),
        A100,
        step_table(kv_s=0.0),
    ]
    made = fleet(models, blocks=blocks, budget=256, seqs=48, block_size=16, interval=0.5)
    wanted = requests(blocks, 300, 8.0, 400)
    choices = np.random.default_rng(blocks).integers(0, 5, 300)
    assert (assert_agree(made, wanted, choices) > 20) == (blocks == 90)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(0.5, 200.0),
    longest=st.integers(2, 300),
    spare=st.integers(0, 80),
    seqs=st.integers(1, 24),
    budget=st.integers(24, 400),
    block_size=st.sampled_from([1, 4, 16, 32]),
    interval=st.sampled_from([0.1, 1.0, 5.0]),
    routers=st.integers(1, 4),
)
def test_engine_agrees_with_the_twin_on_anything(
    seed: int,
    rate: float,
    longest: int,
    spare: int,
    seqs: int,
    budget: int,
    block_size: int,
    interval: float,
    routers: int,
) -> None:
    least = -(-2 * longest // block_size)
    made = fleet(
        [1.0, 3.0],
        blocks=least + spare,
        budget=budget,
        seqs=seqs,
        block_size=block_size,
        interval=interval,
        routers=routers,
    )
    wanted = requests(seed, 60, rate, longest, routers)
    choices = np.random.default_rng(seed).integers(0, 2, 60)
    assert_agree(made, wanted, choices)


OTHER_SCHEDULERS = [
    SchedulerOptions("sarathi"),
    SchedulerOptions("sarathi", watermark=0.0, restart_loses_prompt=True),
    SchedulerOptions("vllm_v0"),
    SchedulerOptions("vllm_v0", watermark=0.1, padded=False),
    SchedulerOptions("vidur_v1", restart_loses_prompt=True),
    SchedulerOptions("vidur_v1"),
]


@pytest.mark.parametrize("scheduler", OTHER_SCHEDULERS, ids=str)
def test_other_schedulers_agree_with_their_twins(scheduler: SchedulerOptions) -> None:
    for blocks, seed in ((2000, 1), (90, 2), (80, 3)):
        made = fleet(
            [A100, operator_tables(tokens=800), step_table(tokens=800)],
            blocks=blocks,
            budget=800 if scheduler.name == "vllm_v0" else 96,
            seqs=24,
            block_size=16,
            interval=0.5,
            scheduler=scheduler,
        )
        wanted = requests(seed, 300, 6.0, 400)
        choices = np.random.default_rng(seed).integers(0, 3, 300)
        assert (assert_agree(made, wanted, choices) > 20) == (blocks < 2000)


@settings(max_examples=100, deadline=None)
@given(
    scheduler=st.sampled_from(OTHER_SCHEDULERS),
    seed=st.integers(0, 2**31),
    rate=st.floats(0.5, 200.0),
    longest=st.integers(2, 200),
    spare=st.integers(0, 80),
    seqs=st.integers(1, 24),
    budget=st.integers(1, 100),
    block_size=st.sampled_from([1, 4, 16]),
)
def test_other_schedulers_agree_with_their_twins_on_anything(
    scheduler: SchedulerOptions,
    seed: int,
    rate: float,
    longest: int,
    spare: int,
    seqs: int,
    budget: int,
    block_size: int,
) -> None:
    least = math.ceil(-(-2 * longest // block_size) * 1.12) + 1
    made = fleet(
        [A100, operator_tables(tokens=600)],
        blocks=least + spare,
        budget=budget + 2 * longest if scheduler.name == "vllm_v0" else budget,
        seqs=seqs,
        block_size=block_size,
        interval=1.0,
        scheduler=scheduler,
    )
    wanted = requests(seed, 60, rate, longest)
    choices = np.random.default_rng(seed).integers(0, 2, 60)
    assert_agree(made, wanted, choices)
