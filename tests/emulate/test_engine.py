"""The driven engine is the simulator: the same requests at the same times give tokens at the same times."""

import math

import numpy as np
import pytest

from fairlead.emulate.engine import Engine, Job
from fairlead.simulator.reference import ReplicaSpec, simulate
from fairlead.simulator.schedulers import SchedulerOptions
from fairlead.simulator.timing import Coefficients
from fairlead.workload.content import Content, full_blocks
from fairlead.workload.requests import Requests

TIMING = Coefficients(1e-3, 8e-3, 8e-5, 0.0, 1e-5, 8e-8, 4e-9)
ONE_SECOND = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Heard:
    """What a client hears: (time, tokens) pairs."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.events: list[tuple[float, int, bool]] = []

    def tokens(self, count: int, done: bool) -> None:
        self.events.append((self.clock.now(), count, done))

    @property
    def total(self) -> int:
        return sum(count for _, count, _ in self.events)


def random_requests(count: int, rate: float) -> Requests:
    random = np.random.default_rng(3)
    return Requests(
        np.cumsum(random.exponential(1 / rate, count)),
        random.integers(1, 900, count),
        random.integers(1, 60, count),
    )


@pytest.mark.parametrize("kv_blocks", [2000, 90], ids=["roomy", "preempting"])
def test_the_times_of_all_tokens_are_those_of_the_simulator(clock, kv_blocks):
    spec = ReplicaSpec(TIMING, token_budget=512, max_seqs=16, block_size=16, kv_blocks=kv_blocks)
    requests = random_requests(80, rate=20.0)
    expected = simulate([spec], requests, [0] * len(requests))
    assert (expected.preemptions.sum() > 0) == (kv_blocks == 90)
    engine = Engine(0, spec, clock)
    jobs: list[Job] = []
    heard = [Heard(clock) for _ in range(len(requests))]
    for i in range(len(requests)):
        clock.run_until(float(requests.arrival_s[i]))
        job = engine.submit(int(requests.prompt_tokens[i]), int(requests.output_tokens[i]), False, heard[i])
        jobs.append(job)
    clock.run_until(math.inf)
    assert [job.first_token_s for job in jobs] == expected.first_token_s.tolist()
    assert [job.finish_s for job in jobs] == expected.finish_s.tolist()
    assert [job.preemptions for job in jobs] == expected.preemptions.tolist()
    # What the clients heard, and when, is what the engine emitted.
    assert [each.events[0][0] for each in heard] == expected.first_token_s.tolist()
    assert [each.events[-1][0] for each in heard] == expected.finish_s.tolist()
    assert [each.total for each in heard] == requests.output_tokens.tolist()
    assert all([done for _, _, done in each.events].index(True) == len(each.events) - 1 for each in heard)
    assert engine.tally.e2e_s.total == pytest.approx((expected.finish_s - requests.arrival_s).sum())
    assert engine.tally.generated_tokens == requests.output_tokens.sum()


def one_second_engine(clock, kv_blocks: int = 100) -> Engine:
    return Engine(0, ReplicaSpec(ONE_SECOND, 100, 10, 4, kv_blocks), clock)


def test_a_clock_that_is_late_delivers_tokens_together_and_leaves_the_engines_times_alone(clock):
    engine = one_second_engine(clock)
    heard = Heard(clock)
    job = engine.submit(4, 5, False, heard)
    clock._now = 3.5  # nobody looked at the timers for a while
    engine.catch_up()
    assert heard.events == [(3.5, 3, False)]
    clock.run_until(math.inf)
    assert (job.first_token_s, job.finish_s) == (1.0, 5.0)


def test_a_timer_that_is_early_changes_nothing(clock):
    engine = one_second_engine(clock)
    heard = Heard(clock)
    engine.submit(4, 2, False, heard)
    clock.run_until(0.5)
    engine._tick()
    assert heard.events == []
    clock.run_until(math.inf)
    assert [when for when, _, _ in heard.events] == [1.0, 2.0]


def test_a_cancelled_request_frees_its_blocks_and_hears_nothing_more(clock):
    engine = one_second_engine(clock)
    gone, stays = Heard(clock), Heard(clock)
    job = engine.submit(8, 50, False, gone)
    engine.submit(4, 3, False, stays)
    clock.run_until(1.5)
    assert engine.kv_usage == pytest.approx((3 + 2) / 100)
    engine.cancel(job)
    engine.cancel(job)
    clock.run_until(2.0)
    assert engine.kv_usage == pytest.approx(2 / 100)
    clock.run_until(math.inf)
    assert (gone.total, stays.total) == (1, 3)
    assert (engine.kv_usage, engine.running, engine.waiting) == (0.0, 0, 0)
    assert engine.tally.finished == {"stop": 1, "length": 0, "abort": 1}


def test_a_finished_request_cannot_be_cancelled(clock):
    engine = one_second_engine(clock)
    job = engine.submit(8, 1, True, Heard(clock))
    clock.run_until(math.inf)
    engine.cancel(job)
    assert engine.tally.finished == {"stop": 0, "length": 1, "abort": 0}


def test_a_reset_engine_is_empty_and_works(clock):
    engine = one_second_engine(clock)
    lost, after = Heard(clock), Heard(clock)
    engine.submit(8, 5, False, lost)
    clock.run_until(1.5)
    engine.reset()
    assert (engine.kv_usage, engine.running, engine.tally.generated_tokens) == (0.0, 0, 0)
    engine.submit(8, 2, False, after)
    clock.run_until(math.inf)
    assert lost.total == 1
    assert [when for when, _, _ in after.events] == [2.5, 3.5]


def test_a_slower_pace_stretches_the_iterations_that_start_from_then_on(clock):
    engine = one_second_engine(clock)
    heard = Heard(clock)
    engine.submit(4, 3, False, heard)
    clock.run_until(0.5)
    engine.pace = 3.0
    clock.run_until(math.inf)
    assert [when for when, _, _ in heard.events] == [1.0, 4.0, 7.0]


def test_with_prefix_caching_too_the_times_are_those_of_the_simulator(clock):
    spec = ReplicaSpec(TIMING, 512, 16, block_size=16, kv_blocks=120, prefix_caching=True)
    random = np.random.default_rng(1)
    bare = random_requests(60, rate=20.0)
    blocks = full_blocks(bare.prompt_tokens, bare.output_tokens, 16)
    # Three conversations: a request has the first blocks of one of them.
    ids = [1000 * int(random.integers(3)) + np.arange(count) for count in blocks]
    content = Content(np.concatenate(ids), np.concatenate([[0], np.cumsum(blocks)]), block_size=16)
    requests = Requests(bare.arrival_s, bare.prompt_tokens, bare.output_tokens, content=content)
    expected = simulate([spec], requests, [0] * len(requests))
    engine = Engine(0, spec, clock)
    jobs = []
    for i in range(len(requests)):
        clock.run_until(float(requests.arrival_s[i]))
        lengths = int(requests.prompt_tokens[i]), int(requests.output_tokens[i])
        jobs.append(engine.submit(*lengths, False, Heard(clock), tuple(ids[i].tolist())))
    clock.run_until(math.inf)
    assert [job.first_token_s for job in jobs] == expected.first_token_s.tolist()
    assert [job.finish_s for job in jobs] == expected.finish_s.tolist()
    assert 0 < engine.hit_tokens < engine.queried_tokens
    assert engine.kv_usage == 0.0


@pytest.mark.parametrize("name", ["vllm", "sarathi", "vllm_v0"])
def test_every_scheduler_can_be_emulated(clock, name):
    scheduler = SchedulerOptions(name=name)
    spec = ReplicaSpec(TIMING, 1024, 16, block_size=16, kv_blocks=400, scheduler=scheduler)
    requests = random_requests(40, rate=20.0)
    expected = simulate([spec], requests, [0] * len(requests))
    engine = Engine(0, spec, clock)
    jobs = []
    for i in range(len(requests)):
        clock.run_until(float(requests.arrival_s[i]))
        lengths = int(requests.prompt_tokens[i]), int(requests.output_tokens[i])
        jobs.append(engine.submit(*lengths, False, Heard(clock)))
        if i == 20:  # one that is not in the simulation, and leaves before its first batch
            engine.cancel(engine.submit(*lengths, False, Heard(clock)))
    clock.run_until(math.inf)
    assert [job.finish_s for job in jobs] == expected.finish_s.tolist()
    assert engine.kv_usage == 0.0
