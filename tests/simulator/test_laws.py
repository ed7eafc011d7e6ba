"""Laws of the compiled engine, checked at every iteration of random workloads (see `books.py`).

Conservation of requests, tokens and KV blocks; limits; first come, first served; work conservation;
causality. The twin's own log obeys the same laws in test_reference_laws.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator.books import keep_books
from tests.simulator.tables import operator_tables

from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.outcomes import Outcomes
from fairlead.simulator.schedulers import SchedulerOptions
from fairlead.simulator.timing import analytic
from fairlead.workload.content import Content, full_blocks
from fairlead.workload.faults import Outage, Slowdown, plan
from fairlead.workload.requests import Requests

A100 = analytic(model("llama-3-8b"), device("a100-80g"))

SCHEDULERS = [
    SchedulerOptions("vllm"),
    SchedulerOptions("sarathi"),
    SchedulerOptions("sarathi", watermark=0.1),
    SchedulerOptions("vllm_v0"),
    SchedulerOptions("vllm_v0", padded=False),
    SchedulerOptions("vidur_v1"),
]


def cluster(
    scheduler: SchedulerOptions,
    *,
    longest: int,
    spare: int,
    seqs: int,
    budget: int,
    block_size: int,
    caching: bool = False,
) -> Fleet:
    """Two replicas of different speed whose memory is short: `spare` blocks beyond the longest request."""
    least = math.ceil(-(-2 * longest // block_size) * 1.12) + 1
    return custom_fleet(
        [A100, operator_tables(tokens=600)],
        np.full(2, least + spare),
        token_budget=budget + 2 * longest if scheduler.name == "vllm_v0" else max(budget, seqs),
        max_num_seqs=seqs,
        block_size=block_size,
        routers=2,
        scheduler=scheduler,
        prefix_caching=caching,
    )


def workload(seed: int, count: int, rate: float, longest: int, *, faults: bool) -> Requests:
    draw = np.random.default_rng(seed)
    # Some come at the same instant.
    times = np.cumsum(draw.exponential(1 / rate, count) * (draw.random(count) < 0.9))
    prompts = draw.integers(1, longest, count)
    return Requests(
        times,
        prompts,
        draw.integers(1, longest, count),
        router=draw.integers(0, 2, count),
        estimate=draw.integers(1, longest, count),
        faults=plan(FAULTS, 2, float(times[-1]), seed, "train") if faults else None,
    )


FAULTS = (
    Outage(kind="outage", replica="any", start_s=0.3, duration_s=0.5, every_s=1.1),
    Slowdown(kind="slowdown", replica="any", factor=3, start_s=0.1, duration_s=0.4, every_s=0.7),
)
"""One of two replicas dies, again and again; sometimes the one that is left is slow."""


def in_one_go(fleet: Fleet, requests: Requests, choose: np.random.Generator) -> Outcomes:
    clusters = Clusters([fleet], [requests])
    while True:
        clusters.observe()
        if clusters.done:
            break
        clusters.route(choose.choice(np.flatnonzero(clusters.state.replicas["available"]), 1))
    clusters.drain()
    return clusters.outcomes(0)


@settings(max_examples=40, deadline=None)
@given(
    scheduler=st.sampled_from(SCHEDULERS),
    seed=st.integers(0, 2**31),
    rate=st.floats(0.5, 100.0),
    longest=st.integers(2, 60),
    spare=st.integers(0, 40),
    seqs=st.integers(1, 12),
    budget=st.integers(1, 100),
    block_size=st.sampled_from([1, 4, 16]),
    faults=st.booleans(),
)
def test_every_iteration_obeys_the_laws_and_leaps_change_nothing(
    scheduler: SchedulerOptions,
    seed: int,
    rate: float,
    longest: int,
    spare: int,
    seqs: int,
    budget: int,
    block_size: int,
    faults: bool,
) -> None:
    fleet = cluster(scheduler, longest=longest, spare=spare, seqs=seqs, budget=budget, block_size=block_size)
    requests = workload(seed, 25, rate, longest, faults=faults)
    clusters, _ = keep_books(fleet, requests, np.random.default_rng(seed))
    stepped, leapt = clusters.outcomes(0), in_one_go(fleet, requests, np.random.default_rng(seed))
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(getattr(stepped, name), getattr(leapt, name), rtol=1e-9)
    for name in ("preemptions", "retries", "replica"):
        np.testing.assert_array_equal(getattr(stepped, name), getattr(leapt, name))
    assert_causal(leapt)
    assert_littles_law(leapt)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: each.name)
def test_the_laws_hold_when_memory_is_so_short_that_work_is_lost(scheduler: SchedulerOptions) -> None:
    fleet = cluster(scheduler, longest=80, spare=6, seqs=16, budget=64, block_size=4)
    requests = workload(5, 60, 30.0, 80, faults=False)
    _, books = keep_books(fleet, requests, np.random.default_rng(5))
    assert sum(each.preemptions for each in books) > 10
    assert sum(each.lost for each in books) > 100
    assert sum(each.iterations for each in books) > 200


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: each.name)
def test_the_laws_hold_when_replicas_die_under_load(scheduler: SchedulerOptions) -> None:
    fleet = cluster(scheduler, longest=60, spare=20, seqs=16, budget=64, block_size=4)
    requests = workload(6, 60, 15.0, 60, faults=True)
    clusters, _ = keep_books(fleet, requests, np.random.default_rng(6))
    assert clusters.outcomes(0).retried.sum() > 5


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(1.0, 60.0),
    longest=st.integers(8, 60),
    spare=st.integers(0, 40),
    seqs=st.integers(1, 12),
    block_size=st.sampled_from([1, 4, 16]),
    faults=st.booleans(),
)
def test_every_iteration_obeys_the_laws_with_prefix_caching(
    seed: int, rate: float, longest: int, spare: int, seqs: int, block_size: int, faults: bool
) -> None:
    fleet = cluster(
        SCHEDULERS[0], longest=longest, spare=spare, seqs=seqs, budget=48, block_size=block_size, caching=True
    )
    requests = with_shared_prefixes(
        workload(seed, 25, rate, longest, faults=faults), block_size, np.random.default_rng(seed)
    )
    clusters, _ = keep_books(fleet, requests, np.random.default_rng(seed))
    stepped, leapt = clusters.outcomes(0), in_one_go(fleet, requests, np.random.default_rng(seed))
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(getattr(stepped, name), getattr(leapt, name), rtol=1e-9)
    np.testing.assert_array_equal(stepped.cached_tokens, leapt.cached_tokens)
    assert_causal(leapt)


def test_the_laws_hold_where_much_is_found_in_the_cache() -> None:
    fleet = cluster(SCHEDULERS[0], longest=60, spare=60, seqs=12, budget=48, block_size=4, caching=True)
    requests = with_shared_prefixes(workload(3, 60, 20.0, 60, faults=False), 4, np.random.default_rng(3))
    _, books = keep_books(fleet, requests, np.random.default_rng(3))
    assert sum(each.found for each in books) > 200


def with_shared_prefixes(requests: Requests, block_size: int, draw: np.random.Generator) -> Requests:
    """The same requests, most of which begin like one of three others."""
    counts = full_blocks(requests.prompt_tokens, requests.output_tokens, block_size)
    own = iter(range(10_000, 1_000_000))
    ids: list[int] = []
    for count in counts:
        family, common = int(draw.integers(3)), int(draw.integers(0, count + 1))
        ids += [1000 * family + place for place in range(common)]
        ids += [next(own) for _ in range(int(count) - common)]
    content = Content(np.array(ids, np.int64), np.concatenate([[0], np.cumsum(counts)]), block_size)
    return replace(requests, content=content)


def assert_causal(outcomes: Outcomes) -> None:
    assert outcomes.scheduled_s is not None
    assert (outcomes.arrival_s <= outcomes.scheduled_s).all()
    assert (outcomes.scheduled_s < outcomes.first_token_s).all()
    later = outcomes.output_tokens > 1
    assert (outcomes.first_token_s[later] < outcomes.finish_s[later]).all()
    np.testing.assert_array_equal(outcomes.first_token_s[~later], outcomes.finish_s[~later])


def assert_littles_law(outcomes: Outcomes) -> None:
    """The integral over time of the number in the system is the sum of the times in it."""
    times = np.concatenate([outcomes.arrival_s, outcomes.finish_s])
    steps = np.repeat([1, -1], len(outcomes))
    order = np.argsort(times, kind="stable")
    area = (np.cumsum(steps[order])[:-1] * np.diff(times[order])).sum()
    assert area == pytest.approx(outcomes.e2e_s.sum(), rel=1e-9)
