"""Laws that the twin's own log must obey on random workloads."""

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.simulator.reference import Iteration, ReplicaSpec, Result, simulate
from fairlead.simulator.timing import Coefficients
from fairlead.view import schema
from fairlead.workload.requests import Requests

TIMING = Coefficients(0.25, 0.5, 0.0625, 0.0, 0.03125, 0.001, 0.0005)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[ReplicaSpec], Requests, list[int]]:
    """A small cluster, requests that fit into it, and an assignment. Memory is short on purpose."""
    block_size = draw(st.integers(1, 5))
    specs = [
        ReplicaSpec(
            timing=TIMING,
            token_budget=draw(st.integers(8, 20)),
            max_seqs=draw(st.integers(1, 8)),
            block_size=block_size,
            kv_blocks=draw(st.integers(20 // block_size + 1, 60 // block_size)),
        )
        for _ in range(draw(st.integers(1, 2)))
    ]
    # Gaps of zero, and gaps that make arrivals coincide with boundaries, are as likely as any others.
    gaps = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.8125, 1.7, 9.0]), min_size=1, max_size=25))
    prompts = [draw(st.integers(1, 12)) for _ in gaps]
    outputs = [draw(st.integers(1, 9)) for _ in gaps]
    choices = [draw(st.integers(0, len(specs) - 1)) for _ in gaps]
    return specs, Requests(np.cumsum(gaps), np.array(prompts), np.array(outputs)), choices


def simulated(run: tuple[list[ReplicaSpec], Requests, list[int]]) -> Result:
    specs, requests, choices = run
    return simulate(specs, requests, choices, record_views=True, record_iterations=True)


def by_replica(result: Result) -> dict[int, list[Iteration]]:
    log: dict[int, list[Iteration]] = defaultdict(list)
    for iteration in result.iterations:
        log[iteration.replica].append(iteration)
    return log


def tokens_emitted(result: Result, requests: Requests, request: int, until_s: float) -> int:
    """Tokens of a request that iterations ending by `until_s` have emitted, from the log alone."""
    known = int(requests.prompt_tokens[request])
    for iteration in result.iterations:
        for slot in iteration.slots:
            if slot.request == request and iteration.end_s <= until_s:
                known += slot.computed + slot.chunk == known
    return known - int(requests.prompt_tokens[request])


@given(runs())
def test_kv_blocks_are_conserved(run):
    specs, _, _ = run
    for iteration in simulated(run).iterations:
        spec = specs[iteration.replica]
        for slot in iteration.slots:
            assert slot.blocks == math.ceil((slot.computed + slot.chunk) / spec.block_size)
        assert 0 <= iteration.free_blocks
        assert iteration.free_blocks + sum(slot.blocks for slot in iteration.slots) == spec.kv_blocks


@given(runs())
def test_limits_hold(run):
    specs, _, _ = run
    for iteration in simulated(run).iterations:
        spec = specs[iteration.replica]
        assert 0 < sum(slot.chunk for slot in iteration.slots) <= spec.token_budget
        assert len(iteration.slots) <= spec.max_seqs


@given(runs())
def test_only_the_last_running_request_can_have_a_half_done_prompt(run):
    _, requests, _ = run
    result = simulated(run)
    for iteration in result.iterations:
        for slot in iteration.slots[:-1]:
            emitted = tokens_emitted(result, requests, slot.request, iteration.start_s)
            assert slot.computed + slot.chunk == requests.prompt_tokens[slot.request] + emitted


@given(runs())
def test_causality(run):
    _, requests, _ = run
    result = simulated(run)
    for iteration in result.iterations:
        assert iteration.start_s < iteration.end_s
        for slot in iteration.slots:
            assert requests.arrival_s[slot.request] <= iteration.start_s
            assert result.finish_s[slot.request] >= iteration.end_s
    assert np.all(requests.arrival_s < result.first_token_s)
    assert np.all(result.first_token_s <= result.finish_s)
    np.testing.assert_array_equal(result.first_token_s == result.finish_s, requests.output_tokens == 1)
    for iterations in by_replica(result).values():
        assert all(a.end_s <= b.start_s for a, b in pairwise(iterations))


@given(runs())
def test_work_conservation(run):
    """A replica with a request in flight is never idle, so its busy time is the time it has any."""
    _, requests, _ = run
    result = simulated(run)
    for replica, iterations in by_replica(result).items():
        here = np.flatnonzero(result.replica == replica)
        for before, after in pairwise(iterations):
            if before.end_s < after.start_s:
                gap = (before.end_s + after.start_s) / 2
                in_flight = (requests.arrival_s[here] <= gap) & (gap < result.finish_s[here])
                assert not in_flight.any()
        assert iterations[0].start_s == requests.arrival_s[here].min()


@given(runs())
def test_nothing_waits_that_could_run(run):
    """Without a preemption, whoever heads the queue lacks budget, a slot or blocks, and nothing else."""
    specs, requests, _ = run
    result = simulated(run)
    for iteration in result.iterations:
        if not iteration.waiting or iteration.preempted:
            continue
        spec, head = specs[iteration.replica], iteration.waiting[0]
        budget = spec.token_budget - sum(slot.chunk for slot in iteration.slots)
        known = requests.prompt_tokens[head] + tokens_emitted(result, requests, head, iteration.start_s)
        no_slot = len(iteration.slots) == spec.max_seqs
        no_block = math.ceil(min(budget, known) / spec.block_size) > iteration.free_blocks
        assert budget == 0 or no_slot or no_block


@given(runs())
def test_every_request_computes_and_emits_exactly_its_tokens(run):
    _, requests, _ = run
    result = simulated(run)
    emitted = np.zeros(len(requests), int)
    computed: dict[int, int] = defaultdict(int)
    for iteration in result.iterations:
        for request in iteration.preempted:
            computed[request] = 0
        for slot in iteration.slots:
            request = slot.request
            assert slot.computed == computed[request]
            computed[request] += slot.chunk
            if computed[request] == requests.prompt_tokens[request] + emitted[request]:
                emitted[request] += 1
                if emitted[request] == 1:
                    assert result.first_token_s[request] == iteration.end_s
                if emitted[request] == requests.output_tokens[request]:
                    assert result.finish_s[request] == iteration.end_s
    np.testing.assert_array_equal(emitted, requests.output_tokens)


@given(runs())
def test_iterations_last_as_long_as_the_formula_says(run):
    for iteration in simulated(run).iterations:
        batch = [slot for slot in iteration.slots if slot.chunk]
        tokens = sum(slot.chunk for slot in batch)
        context = sum(slot.computed + 1 for slot in batch if slot.decoding)
        pairs = sum(
            sum(slot.computed + i + 1 for i in range(slot.chunk)) for slot in batch if not slot.decoding
        )
        expected = 0.25 + max(0.5, 0.0625 * tokens) + 0.03125 * len(batch) + 0.001 * context + 0.0005 * pairs
        assert iteration.end_s - iteration.start_s == pytest.approx(expected, rel=1e-9)


@given(runs())
def test_first_tokens_are_first_come_first_served(run):
    """Per replica, in order of arrival; a request overtaken by a preemption doesn't break the order."""
    result = simulated(run)
    for replica in set(result.replica.tolist()):
        here = result.replica == replica
        assert np.all(np.diff(result.first_token_s[here]) >= 0)


@given(runs())
def test_preemptions_are_counted(run):
    result = simulated(run)
    counted = np.zeros_like(result.preemptions)
    for iteration in result.iterations:
        for request in iteration.preempted:
            counted[request] += 1
    np.testing.assert_array_equal(result.preemptions, counted)


@given(runs())
def test_littles_law(run):
    """The time integral of the number in the system equals the sum of the times in the system."""
    _, requests, _ = run
    result = simulated(run)
    events = sorted([*((t, 1) for t in requests.arrival_s), *((t, -1) for t in result.finish_s)])
    number, integral, last = 0, 0.0, 0.0
    for time, step in events:
        integral += number * (time - last)
        number, last = number + step, time
    assert number == 0
    assert integral == pytest.approx(np.sum(result.finish_s - requests.arrival_s))


@given(runs())
def test_ledger_columns_follow_from_what_was_streamed(run):
    """Recomputes the ledger from the log alone: what had been committed by the time of each decision."""
    _, requests, choices = run
    result = simulated(run)
    assert result.view is not None
    emissions: list[list[float]] = [[] for _ in range(len(requests))]
    known = requests.prompt_tokens.copy()
    for iteration in result.iterations:
        for slot in iteration.slots:
            if slot.chunk and slot.computed + slot.chunk == known[slot.request]:
                known[slot.request] += 1
                emissions[slot.request].append(iteration.end_s)
    for decision, now in enumerate(requests.arrival_s):
        finished = [i for i in range(decision) if result.finish_s[i] <= now]
        expected = (256 * 8 + sum(requests.output_tokens[i] for i in finished)) / (8 + len(finished))
        assert result.view.request[decision, schema.EXPECTED_OUTPUT_TOKENS] == pytest.approx(expected)
        for replica in set(choices):
            row = result.view.replicas[decision, replica]
            here = [i for i in range(decision) if choices[i] == replica and result.finish_s[i] > now]
            silent = [i for i in here if result.first_token_s[i] > now]
            generated = {i: sum(time <= now for time in emissions[i]) for i in here}
            assert row[schema.IN_FLIGHT] == len(here)
            assert row[schema.AWAITING_FIRST_TOKEN] == len(silent)
            assert row[schema.PENDING_PREFILL_TOKENS] == sum(requests.prompt_tokens[i] for i in silent)
            assert row[schema.CONTEXT_TOKENS] == sum(
                requests.prompt_tokens[i] + generated[i] for i in here if i not in silent
            )
            assert row[schema.EXPECTED_REMAINING_TOKENS] == pytest.approx(
                sum(max(expected - generated[i], 0.3 * expected) for i in here)
            )
            assert row[schema.OLDEST_WAIT_S] == max((now - requests.arrival_s[i] for i in silent), default=0)


@settings(max_examples=30)
@given(runs())
def test_what_is_seen_does_not_depend_on_what_comes_later(run):
    """Cutting the run short, or changing later requests, changes no earlier view."""
    specs, requests, choices = run
    half = len(requests) // 2 + 1
    whole = simulated(run).view
    part = simulate(specs, requests[:half], choices[:half], record_views=True).view
    assert whole is not None and part is not None
    np.testing.assert_array_equal(whole.replicas[:half], part.replicas)


def test_same_input_same_output_and_a_router_that_repeats_an_assignment():
    rng = np.random.default_rng(1)
    requests = Requests(np.cumsum(rng.exponential(0.7, 60)), rng.integers(1, 12, 60), rng.integers(1, 9, 60))
    specs = [ReplicaSpec(TIMING, 16, 4, 4, 8), ReplicaSpec(TIMING, 16, 4, 4, 12)]
    choices = rng.integers(0, 2, 60)
    remaining = iter(choices)
    first = simulate(specs, requests, choices)
    second = simulate(specs, requests, lambda view: int(next(remaining)))
    np.testing.assert_array_equal(first.finish_s, second.finish_s)
    np.testing.assert_array_equal(first.replica, choices)
    assert first.preemptions.sum() > 0, "the case is meant to have some"
