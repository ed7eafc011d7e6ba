"""Prefix caching: the compiled engine against its plain twin, and the laws that both obey."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.simulator import forecast, reference
from fairlead.simulator.block_pool import NO_BLOCK
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, build_fleet, custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.outcomes import IntArray, Outcomes
from fairlead.simulator.reference_cache import CachingReplica
from fairlead.simulator.schedulers import VLLM_V1, SchedulerOptions
from fairlead.simulator.timing import analytic
from fairlead.view import schema
from fairlead.view.privilege import EVERYTHING
from fairlead.view.schema import View
from fairlead.workload.content import Content, full_blocks
from fairlead.workload.faults import Faults
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import generate, load_scenario

A100 = np.array([list(analytic(model("llama-3-8b"), device("a100-80g")))])


def fleet(
    replicas: int = 1,
    *,
    blocks: int = 100,
    budget: int = 64,
    seqs: int = 8,
    block_size: int = 4,
    caching: bool = True,
    scheduler: SchedulerOptions = VLLM_V1,
) -> Fleet:
    return custom_fleet(
        A100.repeat(replicas, 0),
        np.full(replicas, blocks),
        token_budget=budget,
        max_num_seqs=seqs,
        block_size=block_size,
        scrape_interval_s=0.3,
        prefix_caching=caching,
        scheduler=scheduler,
    )


def tree(
    seed: int,
    rate: float,
    count: int,
    longest: int,
    block_size: int,
    branches: int,
    *,
    last_token: bool = False,
) -> Requests:
    """Requests whose contents are paths in a small tree, down to identical prompts *and* outputs."""
    draw = np.random.default_rng(seed)
    prompts, outputs = draw.integers(1, longest, count), draw.integers(1, longest, count)
    counts = full_blocks(prompts, outputs + last_token, block_size)
    ids: dict[tuple[int, ...], int] = {}
    contents = []
    for blocks in counts:
        # Branching is rare, so that many requests share long paths.
        path = np.where(draw.random(blocks) < 0.15, draw.integers(0, branches, blocks), 0)
        contents += [ids.setdefault(tuple(path[: i + 1]), len(ids)) for i in range(blocks)]
    content = Content(np.array(contents), np.concatenate([[0], np.cumsum(counts)]), block_size)
    arrival = np.cumsum(draw.exponential(1 / rate, count))
    return Requests(arrival, prompts, outputs, session=draw.integers(0, 5, count), content=content)


def free_contents(cluster: Clusters, k: int) -> list[int | None]:
    """What the free blocks of a replica have cached, first to be taken first."""
    pool = cluster.state
    found, b = [], int(pool.block_queues[k].first)
    while b != NO_BLOCK:
        content = int(pool.blocks[k, b].content)
        found.append(None if content == NO_BLOCK else content)
        b = int(pool.blocks[k, b].after)
    return found


def step_by_step(made: Fleet, requests: Requests, choices: Sequence[int]) -> int:
    """Engine and twin side by side: the same views, caches and outcomes; tokens found cached."""
    fast = Clusters([made], [requests])
    specs = reference.from_fleet(made)
    slow = reference.Cluster(specs, made.scrape_interval_s, 0, None, 1)
    everyone = reference.in_flight_requests(requests, specs[0])
    for i, (request, choice) in enumerate(zip(everyone, choices, strict=True)):
        slow.advance(request.arrival_s)
        expected, view = slow.observe(request, request.arrival_s), fast.observe()
        np.testing.assert_allclose(view.request, expected.request, rtol=1e-9)
        np.testing.assert_allclose(view.replicas, expected.replicas, rtol=1e-7, atol=1e-9)
        if i % 5 == 0:
            assert_same_caches(fast, slow)
        slow.submit(choice, request, request.arrival_s)
        fast.route(np.array([choice]))
    fast.drain()
    for replica in slow.replicas:
        replica.advance(np.inf)
    assert_same_caches(fast, slow)
    done = fast.outcomes(0)
    np.testing.assert_allclose(done.first_token_s, [q.first_token_s for q in everyone], rtol=1e-9)
    np.testing.assert_allclose(done.finish_s, [q.finish_s for q in everyone], rtol=1e-9)
    np.testing.assert_array_equal(done.preemptions, [q.preemptions for q in everyone])
    assert done.cached_tokens is not None
    np.testing.assert_array_equal(done.cached_tokens, [q.cached for q in everyone])
    return int(done.cached_tokens.sum())


def assert_same_caches(fast: Clusters, slow: reference.Cluster) -> None:
    for k, replica in enumerate(slow.replicas):
        assert isinstance(replica, CachingReplica)
        # An iteration under way has its blocks in both.
        assert int(fast.state.replicas[k].free_blocks) == replica.free == len(replica.pool.free)
        assert free_contents(fast, k) == [block.content for block in replica.pool.free]


def run(made: Fleet, requests: Requests, choices: Sequence[int] | None = None) -> Outcomes:
    cluster = Clusters([made], [requests])
    for choice in choices or [0] * len(requests):
        cluster.observe()
        cluster.route(np.array([choice]))
    cluster.drain()
    return cluster.outcomes(0)


def alike(times: list[float], prompts: list[int], outputs: list[int], ids: list[list[int]]) -> Requests:
    """Requests that begin with these contents, in blocks of 4 tokens, and go on with their own."""
    counts = full_blocks(np.array(prompts), np.array(outputs), 4)
    own = iter(range(1000, 2000))
    filled = [
        each[:n] + [next(own) for _ in range(n - len(each))] for each, n in zip(ids, counts, strict=True)
    ]
    content = Content(np.concatenate(filled), np.concatenate([[0], np.cumsum(counts)]), 4)
    return Requests(np.array(times), np.array(prompts), np.array(outputs), content=content)


def test_a_repeated_prompt_computes_only_its_last_block() -> None:
    chain = list(range(10))
    done = run(fleet(), alike([0.0, 9.0], [40, 40], [1, 2], [chain[:10], chain]))
    # Both prompts are 10 full blocks, but the last token has to be computed.
    assert done.cached_tokens is not None
    assert done.cached_tokens.tolist() == [0, 36]
    assert done.ttft_s[1] < done.ttft_s[0]


def test_a_hit_is_charged_as_context_of_the_chunk() -> None:
    """The twin's log, by hand: 8 tokens of a prompt of 21 are cached, 13 are computed behind them."""
    requests = alike([0.0, 9.0], [9, 21], [1, 1], [[0, 1], [0, 1, 5, 6, 7]])
    log = reference.simulate(fleet(), requests, [0, 0], record_iterations=True).iterations
    slot = log[-1].slots[0]
    assert (slot.computed, slot.chunk, slot.blocks) == (8, 13, 6)


def test_requests_of_one_iteration_share_what_it_computes() -> None:
    """Blocks can be found as soon as they are scheduled, as in vLLM."""
    done = run(fleet(), alike([0.0, 0.0], [20, 20], [5, 5], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 9]]))
    assert done.cached_tokens is not None
    assert done.cached_tokens.tolist() == [0, 16]


def test_the_next_turn_finds_the_answer_too() -> None:
    chain = list(range(20))
    done = run(fleet(), alike([0.0, 9.0], [20, 45], [20, 5], [chain[:9], chain[:12]]))
    # Of 20 + 20 tokens, the last one was never computed: 9 full blocks.
    assert done.cached_tokens is not None
    assert done.cached_tokens.tolist() == [0, 36]


@pytest.mark.parametrize("seed", range(3))
def test_engine_agrees_with_the_twin_at_ease(seed: int) -> None:
    made = fleet(2, blocks=900, budget=256, seqs=32)
    choices = np.random.default_rng(seed).integers(0, 2, 150).tolist()
    assert step_by_step(made, tree(seed, 20.0, 150, 120, 4, 3), choices) > 1000


@pytest.mark.parametrize("seed", range(3))
def test_engine_agrees_with_the_twin_when_blocks_are_short(seed: int) -> None:
    made = fleet(2, blocks=70, budget=96, seqs=12)
    choices = np.random.default_rng(seed).integers(0, 2, 150).tolist()
    requests = tree(seed, 30.0, 150, 120, 4, 3)
    assert step_by_step(made, requests, choices) > 100
    assert run(made, requests, choices).preemptions.sum() > 10


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rate=st.floats(1.0, 300.0),
    longest=st.integers(2, 90),
    spare=st.integers(0, 60),
    seqs=st.integers(1, 12),
    budget=st.integers(12, 200),
    block_size=st.sampled_from([1, 4, 16]),
    branches=st.integers(1, 4),
)
def test_engine_agrees_with_the_twin_on_anything(
    seed: int, rate: float, longest: int, spare: int, seqs: int, budget: int, block_size: int, branches: int
) -> None:
    blocks = -(-2 * longest // block_size) + spare
    made = fleet(2, blocks=blocks, budget=budget, seqs=seqs, block_size=block_size)
    requests = tree(seed, rate, 40, longest, block_size, branches)
    step_by_step(made, requests, np.random.default_rng(seed).integers(0, 2, 40).tolist())


VIDUR = [SchedulerOptions("vidur_v1", restart_loses_prompt=lost) for lost in (False, True)]


@pytest.mark.parametrize("scheduler", VIDUR, ids=str)
def test_vidurs_scheduler_agrees_with_its_twin(scheduler: SchedulerOptions) -> None:
    choices = np.random.default_rng(0).integers(0, 2, 150).tolist()
    for blocks in (900, 75):
        made = fleet(2, blocks=blocks, budget=96, seqs=12, scheduler=scheduler)
        requests = tree(0, 30.0, 150, 120, 4, 3, last_token=True)
        assert step_by_step(made, requests, choices) > 100
        assert (run(made, requests, choices).preemptions.sum() > 10) == (blocks < 900)


@settings(max_examples=40, deadline=None)
@given(
    scheduler=st.sampled_from(VIDUR),
    seed=st.integers(0, 2**31),
    rate=st.floats(1.0, 300.0),
    longest=st.integers(2, 90),
    spare=st.integers(0, 60),
    seqs=st.integers(1, 12),
    budget=st.integers(12, 200),
    block_size=st.sampled_from([1, 4, 16]),
    branches=st.integers(1, 4),
)
def test_vidurs_scheduler_agrees_with_its_twin_on_anything(
    scheduler: SchedulerOptions,
    seed: int,
    rate: float,
    longest: int,
    spare: int,
    seqs: int,
    budget: int,
    block_size: int,
    branches: int,
) -> None:
    blocks = -(-2 * longest // block_size) + spare
    made = fleet(2, blocks=blocks, budget=budget, seqs=seqs, block_size=block_size, scheduler=scheduler)
    requests = tree(seed, rate, 40, longest, block_size, branches, last_token=True)
    step_by_step(made, requests, np.random.default_rng(seed).integers(0, 2, 40).tolist())


def test_in_vidur_the_next_turn_finds_the_block_that_the_last_token_fills() -> None:
    chain = list(range(20))
    own = SchedulerOptions("vidur_v1")
    times, prompts = np.array([0.0, 9.0]), np.array([20, 45])
    content = Content(np.array(chain[:10] + chain[:12]), np.array([0, 10, 22]), 4)
    requests = Requests(times, prompts, np.array([20, 5]), content=content)
    for made, found in ((fleet(scheduler=own), 40), (fleet(), 36)):
        cached = run(made, requests).cached_tokens
        assert cached is not None
        assert cached.tolist() == [0, found]


def test_vidurs_scheduler_wants_the_content_of_the_last_block() -> None:
    requests = alike([0.0, 9.0], [20, 45], [20, 5], [[], []])
    with pytest.raises(FairleadError, match="request 0: the content of its last block is missing"):
        Clusters([fleet(scheduler=SchedulerOptions("vidur_v1"))], [requests])


def test_vidurs_scheduler_has_room_for_the_last_token() -> None:
    requests = Requests(np.zeros(1), np.array([20]), np.array([20]))
    made = fleet(blocks=10, scheduler=SchedulerOptions("vidur_v1"))
    assert run(made, requests).preemptions.tolist() == [0]
    longer = Requests(np.zeros(1), np.array([20]), np.array([21]))
    with pytest.raises(FairleadError, match="needs 40 tokens"):
        run(made, longer)
    with pytest.raises(FairleadError, match="needs 40 tokens"):
        reference.simulate(made, longer, [0])


def test_without_anything_in_common_caching_changes_nothing_but_after_preemptions() -> None:
    draw = np.random.default_rng(0)
    requests = Requests(
        np.cumsum(draw.exponential(0.05, 300)), draw.integers(1, 90, 300), draw.integers(1, 90, 300)
    )
    made = fleet(blocks=3000, seqs=16, budget=128)
    on, off = run(made, requests), run(replace(made, prefix_caching=False), requests)
    np.testing.assert_array_equal(on.first_token_s, off.first_token_s)
    np.testing.assert_array_equal(on.finish_s, off.finish_s)
    assert on.cached_tokens is not None
    assert on.cached_tokens.sum() == 0


def test_blocks_are_conserved_at_every_iteration_and_hits_leave_a_token() -> None:
    checked = 0

    class Checked(CachingReplica):
        def schedule(self) -> None:
            super().schedule()
            nonlocal checked
            held = [block for request in self.running for block in self.held[request.index]]
            refs = {id(block): sum(other is block for other in held) for block in held}
            assert all(block.refs == refs[id(block)] for block in held)
            assert len(refs) + len(self.pool.free) == self.spec.kv_blocks
            assert not {id(block) for block in self.pool.free} & refs.keys()
            for request in self.running:
                assert request.computed < request.known
                assert len(self.held[request.index]) == self.blocks(request.computed + request.chunk)
            checked += 1

    requests = tree(1, 30.0, 80, 100, 4, 2)
    spec = reference.from_fleet(fleet(blocks=60, budget=96, seqs=12))[0]
    replica = Checked(0, spec)
    for request in reference.in_flight_requests(requests, spec):
        replica.advance(request.arrival_s)
        replica.submit(request, request.arrival_s)
    replica.advance(np.inf)
    assert replica.preemptions > 0
    assert checked > 500
    assert len(replica.pool.free) == 60


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    """Two requests outgrow the cache; the second is preempted and resumes behind what is still cached."""
    requests = Requests(np.zeros(2), np.array([40, 40]), np.array([40, 40]))
    made = fleet(blocks=30, budget=128)
    log = reference.simulate(made, requests, [0, 0], record_iterations=True).iterations
    assert any(iteration.preempted for iteration in log)
    resumed = [slot for i in log for slot in i.slots if slot.request == 1 and slot.chunk > 1][-1]
    assert resumed.computed >= 40
    assert run(made, requests).preemptions.tolist() == [0, 1]


def test_the_view_tells_the_hit_that_the_ledger_expects_and_the_rate_that_the_engine_reports() -> None:
    chain = list(range(12))
    requests = alike([0.0, 5.0, 9.0], [40, 48, 47], [4, 1, 1], [chain[:10], chain[:12], [*chain[:9], 99, 98]])
    cluster = Clusters([fleet(2)], [requests])
    seen = []
    for choice in (1, 1, 0):
        view = cluster.observe().replicas[0]
        seen.append(
            (
                view[:, schema.EXPECTED_PREFIX_HIT_TOKENS].tolist(),
                view[:, schema.SCRAPED_PREFIX_HIT_RATE].tolist(),
            )
        )
        cluster.route(np.array([choice]))
    # The answers here end within their prompts' last blocks.
    assert seen == [([0, 0], [0, 0]), ([0, 40], [0, 0]), ([0, 36], [0, 40 / 48])]


def test_what_is_expected_to_hit_is_not_pending() -> None:
    requests = alike(
        [0.0, 5.0, 5.0], [40, 44, 44], [2, 2, 2], [list(range(10)), list(range(11)), list(range(11))]
    )
    cluster = Clusters([fleet()], [requests])
    for expected in (0, 0, 44 - 40):
        assert cluster.observe().replicas[0, 0, schema.PENDING_PREFILL_TOKENS] == expected
        cluster.route(np.zeros(1, np.int64))


def test_a_small_memory_forgets_and_the_engine_does_not() -> None:
    chain = list(range(10))
    requests = alike([0.0, 5.0, 9.0], [41, 64, 41], [1, 1, 1], [chain, list(range(100, 116)), chain])
    cluster = Clusters([replace(fleet(), prefix_memory_blocks=8)], [requests])
    for _ in range(3):
        expected = cluster.observe().replicas[0, 0, schema.EXPECTED_PREFIX_HIT_TOKENS]
        cluster.route(np.zeros(1, np.int64))
    cluster.drain()
    found = cluster.outcomes(0).cached_tokens
    assert expected == 0
    assert found is not None
    assert found[2] == 40


@pytest.mark.parametrize(("routers", "remembered"), [(1, 40), (2, 40), (5, 16)])
def test_routers_count_on_their_part_of_a_cache(routers: int, remembered: int) -> None:
    """Of 100 blocks five routers have 20 each: 16 of another prompt leave room for 4 of 10."""
    chain = list(range(10))
    requests = alike([0.0, 5.0, 9.0], [41, 64, 41], [1, 1, 1], [chain, list(range(100, 116)), chain])
    requests = replace(requests, router=np.zeros(3, np.int64))
    made = replace(fleet(blocks=100), routers=routers)
    assert made.memory_blocks.tolist() == [100 // routers]
    cluster = Clusters([made], [requests])
    for _ in range(3):
        expected = cluster.observe().replicas[0, 0, schema.EXPECTED_PREFIX_HIT_TOKENS]
        cluster.route(np.zeros(1, np.int64))
    assert expected == remembered


@pytest.mark.parametrize("seed", range(3))
def test_engine_agrees_with_the_twin_when_replicas_die_and_routers_err(seed: int) -> None:
    """A replica that returns has nothing cached, and no router believes that it has."""
    draw = np.random.default_rng(seed)
    happens = Faults(
        np.array([0.6, 1.1, 1.5, 2.0]),
        np.array([0, 1, 0, 1]),
        np.ones(4),
        np.array([False, False, True, True]),
    )
    plain_requests = tree(seed, 40.0, 120, 120, 4, 3)
    requests = replace(
        plain_requests,
        router=draw.integers(0, 2, 120),
        estimate=draw.integers(1, 120, 120),
        faults=happens,
    )
    made = replace(fleet(3, blocks=120, budget=96, seqs=12), routers=2, prefix_memory_blocks=40)

    def choose(view: View) -> int:
        up = np.flatnonzero(view.replicas[0, :, schema.AVAILABLE])
        return int(up[np.argmax(view.replicas[0, up, schema.EXPECTED_PREFIX_HIT_TOKENS])])

    plain = reference.simulate(made, requests, choose, record_views=True)
    fast = Clusters([made], [requests])
    seen = []
    while True:
        view = fast.observe()
        if fast.done:
            break
        seen.append((view.replicas[0].copy(), view.request[0].copy()))
        fast.route(np.array([choose(view)]))
    fast.drain()
    assert plain.view is not None
    np.testing.assert_allclose([each[0] for each in seen], plain.view.replicas, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose([each[1] for each in seen], plain.view.request, rtol=1e-9)
    done = fast.outcomes(0)
    np.testing.assert_allclose(done.finish_s, plain.finish_s, rtol=1e-9)
    np.testing.assert_array_equal(done.cached_tokens, plain.cached_tokens)
    np.testing.assert_array_equal(done.retries, plain.retries)
    assert plain.retries.sum() > 5


def beliefs(made: Fleet, requests: Requests, choose: Callable[[View], int]) -> tuple[IntArray, IntArray]:
    """(N,) tokens that the router expected to be cached where it sent each request, and those that were."""
    cluster, expected = Clusters([made], [requests]), []
    for _ in range(len(requests)):
        view = cluster.observe()
        choice = choose(view)
        expected.append(view.replicas[0, choice, schema.EXPECTED_PREFIX_HIT_TOKENS])
        cluster.route(np.array([choice]))
    cluster.drain()
    found = cluster.outcomes(0).cached_tokens
    assert found is not None
    return np.array(expected, np.int64), found


def test_one_request_at_a_time_finds_cached_what_its_router_expects() -> None:
    """Answers of conversations too, as long as nothing is evicted."""
    scenario = load_scenario("chat-sessions")
    drawn = generate(scenario, requests=300, rate=3.0, seed=1, split="train")
    made = build_fleet(scenario).one(0)
    apart = replace(drawn, arrival_s=np.arange(0.0, 30_000.0, 100.0))
    expected, found = beliefs(replace(made, kv_blocks=np.array([60_000])), apart, lambda _: 0)
    assert found.sum() > 100_000
    np.testing.assert_array_equal(expected, found)
    # The last block of a request is never full: it takes room, but is nobody's to find again.
    expected, found = beliefs(replace(made, kv_blocks=np.array([1500])), apart, lambda _: 0)
    assert 20_000 < found.sum() < 200_000
    assert abs(expected - found).mean() < 0.03 * found.mean()


@pytest.mark.parametrize(("load", "error"), [(0.5, 0.03), (0.7, 0.05), (0.9, 0.2)])
def test_a_busy_router_knows_what_is_cached(load: float, error: float) -> None:
    """Though not when a replica takes a request up, nor that answers under way take blocks."""
    scenario = load_scenario("chat-sessions")
    rate = load * capacity_rps(scenario)
    requests = generate(scenario, requests=1500, rate=rate, seed=3, split="train")

    def stay(view: View) -> int:
        row = view.replicas[0]
        at_home = np.flatnonzero(row[:, schema.SESSION_HOME])
        return int(at_home[0]) if len(at_home) else int(np.argmin(row[:, schema.IN_FLIGHT]))

    expected, found = (each[300:] for each in beliefs(build_fleet(scenario), requests, stay))
    assert abs(expected - found).mean() < error * found.mean()


@pytest.mark.parametrize("seed", range(4))
def test_in_a_forecast_that_knows_the_engine_every_block_is_free_in_the_end(seed: int) -> None:
    """Those too that a batch shares: else later requests find no room, and the forecast never ends."""
    requests = tree(seed, 60.0, 120, 120, 4, 3)
    clusters = Clusters([fleet(2, blocks=70, budget=96, seqs=12)], [requests])
    state = clusters.state
    scratch, costs = forecast.scratch_for(state), np.empty(2)
    shared = 0
    for i in range(len(requests)):
        clusters.observe()
        forecast.added_costs(state, 0, scratch, np.ones(3), EVERYTHING, costs)
        assert np.isfinite(costs).all()
        assert scratch.replicas[0].free_blocks == 70  # of the last one, replica 1
        batch = state.slots[1]["request"][: state.replicas[1].running]
        shared += int(state.requests[0]["hit"][batch].sum())
        clusters.route(np.array([1 - i % 3 // 2]))
    assert shared > 0 and state.replicas["preemptions"][1] > 0
