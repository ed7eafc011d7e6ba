"""Lookahead: what would each replica's requests cost if the new one joined them?

For each replica, its requests are simulated to completion with and without the new one, with expected
output lengths and no further arrivals; the difference in the objective of `view.preference`, summed
over all requests that it touches, is the added cost of that choice.

By default only what the router at hand knows is used: its own requests in flight, in the order in which they
arrived, what it takes their prompts for, what they streamed, and the iteration-time model that is declared
to it. Not: other routers' requests, true lengths, true speeds, or how far a prompt without a first token
has come. `view.privilege` lists what a forecast may be told beyond that, as a bound or as a teacher.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit, prange, signed
from fairlead.simulator import engine, ledger
from fairlead.simulator.batch_time import Tables
from fairlead.simulator.batching import blocks_of, longest_request, push_waiting
from fairlead.simulator.state import NEVER, State, new_state
from fairlead.view.privilege import ALL_REQUESTS, ENGINE_STATE, TRUE_LENGTHS, TRUE_SPEEDS

ANY_ROUTER = -1

NO_SCRATCH = new_state(1, 1, 1, 1, 1)
"""For those who make no forecast."""


def scratch_for(state: State) -> State:
    """A scratch replica for each cluster of `state`, to simulate forecasts in."""
    clusters, requests = state.requests.shape
    sizes = state.slots.shape[1], state.phases.shape[1], requests + 1
    scratch = new_state(clusters, 1, *sizes, tables=Tables(state.tables, state.table_values))
    scratch.static[:] = 1.0  # its ledger finds out about speeds, too, and nobody asks
    return scratch


@njit(allocates=False)
def _set_request(
    scratch: State, c: int, i: int, prompt: int, hit: int, streamed: int, remaining: float
) -> None:
    """Request `i` of the scratch replica: `streamed` tokens so far, `remaining` expected to come.

    A prompt or an output that could never fit is taken for the longest one that does. Of the prompt, `hit`
    tokens are expected to be cached, in blocks that others hold too.
    """
    replica = scratch.replicas[c]
    request = scratch.requests[c, i]
    capacity = longest_request(replica)
    output = streamed + max(1, round(remaining))
    request.prompt = max(1, min(prompt, capacity - streamed))
    request.output = max(streamed + 1, min(output, capacity - request.prompt + 1))
    request.generated = streamed
    request.first_token = math.nan
    request.finish = math.nan
    request.hit = min(hit, (request.prompt - 1) // replica.block_size * replica.block_size)


@njit(allocates=False)
def _add_request(
    scratch: State, c: int, i: int, prompt: int, hit: int, streamed: int, remaining: float
) -> None:
    """Put request `i` on the scratch replica: in its batch if it has streamed tokens, else in its queue."""
    replica = scratch.replicas[c]
    request = scratch.requests[c, i]
    _set_request(scratch, c, i, prompt, hit, streamed, remaining)
    prompt = request.prompt
    size = replica.block_size
    need = blocks_of(prompt + streamed - 1, size) - request.hit // size
    if streamed > 0 and replica.running < replica.max_seqs and need <= replica.free_blocks:
        in_kv = prompt + streamed - 1
        slot = scratch.slots[c, replica.running]
        slot.request = i
        slot.left = 0
        slot.chunk = 0
        slot.blocks = need
        slot.zero_tick = -streamed
        slot.finish_tick = request.output - streamed
        replica.next_finish = min(replica.next_finish, slot.finish_tick)
        replica.kv_tokens += in_kv
        replica.free_blocks -= need
        replica.running += 1
        scratch.phases[c, in_kv % replica.block_size] += 1
        return
    if streamed > 0:
        replica.interrupted += 1
    push_waiting(scratch, c, c, i)


@njit(allocates=False)
def _clear(state: State, k: int, c: int, scratch: State, knows: int) -> None:
    """Make the scratch replica of cluster `c` an empty replica `k`, as fast as that is said to be."""
    source = state.replicas[k]
    replica = scratch.replicas[c]
    replica.token_budget = source.token_budget
    replica.max_seqs = source.max_seqs
    replica.block_size = source.block_size
    replica.kv_blocks = source.kv_blocks
    replica.clock = state.clusters[c].now
    replica.busy = False
    replica.running = 0
    replica.prefilling = 0
    replica.tick = 0
    replica.next_finish = NEVER
    replica.kv_tokens = 0
    replica.free_blocks = source.kv_blocks
    replica.waiting = 0
    replica.interrupted = 0
    # Loops, because array assignments would compile their error messages too.
    for phase in range(scratch.phases.shape[1]):
        scratch.phases[c, phase] = 0
    replica.scheduler = source.scheduler
    replica.watermark = source.watermark
    replica.padded = source.padded
    replica.restart_loses_prompt = False
    replica.stalled = False
    replica.partial_first = False
    alike = k if knows & TRUE_SPEEDS else source.declared
    replica.table = state.replicas[alike].table
    replica.pace = source.pace if knows & TRUE_SPEEDS else 1.0
    for coefficient in range(scratch.timing.shape[1]):
        scratch.timing[c, coefficient] = state.timing[alike, coefficient]


@njit(allocates=False)
def _remaining(request: Any, streamed: int, mean: float, knows: int) -> float:
    """Output tokens of a request that are still to come, as far as is known."""
    if knows & TRUE_LENGTHS:
        return float(request.output - streamed)
    return ledger.expected_remaining(mean, streamed)


@njit(allocates=False)
def _prompt(request: Any, knows: int) -> int:
    return int(request.prompt if knows & TRUE_LENGTHS else request.estimate)


@njit(allocates=False)
def _note(state: State, c: int, scratch: State, count: int, i: int, streamed: int, router: int) -> int:
    """Remember request `i` for the picture, among `count` others in order of arrival, if it is `router`'s."""
    if router != ANY_ROUTER and state.requests[c, i].router != router:
        return count
    notes = scratch.requests
    n = count
    while n > 0 and notes[c, n - 1].source > i:
        notes[c, n].source = notes[c, n - 1].source
        notes[c, n].generated = notes[c, n - 1].generated
        n -= 1
    notes[c, n].source = i
    notes[c, n].generated = streamed
    return count + 1


@njit(allocates=False)
def _copy_ledger(state: State, k: int, c: int, scratch: State, mean: float, knows: int) -> int:
    """The picture of replica `k` that its router has, in the scratch replica of cluster `c`; its requests."""
    source = state.replicas[k]
    router = state.requests[c, state.clusters[c].at_hand].router
    if knows & ALL_REQUESTS:
        router = ANY_ROUTER
    count = 0
    for j in range(source.running):
        slot = state.slots[k, j]
        streamed = source.tick - slot.zero_tick
        if slot.left > 0:
            streamed = state.requests[c, slot.request].generated
        count = _note(state, c, scratch, count, slot.request, streamed, router)
    i = source.waiting_head
    for _ in range(source.waiting):
        request = state.requests[c, i]
        count = _note(state, c, scratch, count, i, request.generated, router)
        i = request.next_waiting
    for n in range(count):
        request = state.requests[c, scratch.requests[c, n].source]
        streamed = scratch.requests[c, n].generated
        remaining = _remaining(request, streamed, mean, knows)
        _add_request(scratch, c, n, _prompt(request, knows), request.expected_hit, streamed, remaining)
        scratch.requests[c, n].arrival = request.arrival
    return count


@njit(allocates=False)
def _copy_engine(state: State, k: int, c: int, scratch: State, mean: float, knows: int) -> int:
    """Replica `k` as it really is, in the scratch replica of cluster `c`; its requests.

    Prompts are as they are; outputs are expected, unless they are known.
    """
    source = state.replicas[k]
    replica = scratch.replicas[c]
    replica.clock = max(source.clock, state.clusters[c].now)
    replica.busy = source.busy
    replica.duration = source.duration
    replica.running = source.running
    replica.prefilling = source.prefilling
    replica.tick = source.tick
    replica.kv_tokens = source.kv_tokens
    replica.free_blocks = source.free_blocks
    replica.interrupted = source.interrupted
    replica.stalled = source.stalled
    replica.partial_first = source.partial_first
    for phase in range(scratch.phases.shape[1]):
        scratch.phases[c, phase] = state.phases[k, phase]
    decoding = source.running - source.prefilling
    for j in range(source.running):
        slot = scratch.slots[c, j]
        was = state.slots[k, j]
        request = state.requests[c, was.request]
        streamed = source.tick - was.zero_tick if j < decoding else request.generated
        slot.zero_tick = was.zero_tick
        slot.left = was.left
        slot.chunk = was.chunk
        slot.blocks = was.blocks
        slot.router = 0
        slot.request = j
        remaining = _remaining(request, streamed, mean, knows)
        _set_request(scratch, c, j, request.prompt, request.hit, streamed, remaining)
        scratch.requests[c, j].hit = request.hit  # of one that was preempted also among its answer
        scratch.requests[c, j].arrival = request.arrival
        scratch.requests[c, j].generated = request.generated
        slot.finish_tick = was.zero_tick + scratch.requests[c, j].output
        if j < decoding:
            replica.next_finish = min(replica.next_finish, slot.finish_tick)
    if source.caching:
        _hold_shared_blocks(scratch, c)
    i = source.waiting_head
    for n in range(source.running, source.running + source.waiting):
        request = state.requests[c, i]
        streamed = request.generated
        remaining = _remaining(request, streamed, mean, knows)
        _set_request(scratch, c, n, request.prompt, request.expected_hit, streamed, remaining)
        scratch.requests[c, n].arrival = request.arrival
        push_waiting(scratch, c, c, n)
        i = request.next_waiting
    return int(source.running + source.waiting)


@njit(allocates=False)
def _hold_shared_blocks(scratch: State, c: int) -> None:
    """Let somebody hold what the batch hit in the prefix cache, so that every block becomes free some day.

    In a forecast a request returns what it took beyond its hit, because others hold that. In a real batch
    all of them go in the end: blocks that would be nobody's are given to the first that share them.
    """
    replica = scratch.replicas[c]
    size = replica.block_size
    shared = replica.kv_blocks - replica.free_blocks
    decoding = replica.running - replica.prefilling
    for j in range(replica.running):
        slot, request = scratch.slots[c, j], scratch.requests[c, j]
        if j < decoding:
            tokens = request.prompt + replica.tick - slot.zero_tick - 1
            under_way = 1
        else:
            tokens = request.prompt + request.generated - slot.left
            under_way = slot.chunk
        shared -= blocks_of(tokens + (under_way if replica.busy else 0), size) - request.hit // size
    for j in range(replica.running):
        request = scratch.requests[c, j]
        held = max(0, min(shared, request.hit // size))
        request.hit -= held * size
        shared -= held


@njit(allocates=False)
def _copy_replica(state: State, k: int, c: int, scratch: State, mean: float, knows: int) -> int:
    """Replica `k`, as far as it is known, as the scratch replica of cluster `c`; its requests."""
    _clear(state, k, c, scratch, knows)
    if knows & ENGINE_STATE:
        return _copy_engine(state, k, c, scratch, mean, knows)
    return _copy_ledger(state, k, c, scratch, mean, knows)


@njit(allocates=False)
def _cost_of_draining(
    scratch: State, c: int, count: int, now: float, tail: float, weights: npt.NDArray[np.float64]
) -> float:
    """Weighted waiting from now on, over all requests of the scratch replica, whose tail begins at `tail`."""
    engine.advance(scratch, c, c, np.inf)
    cost = 0.0
    for i in range(count):
        request = scratch.requests[c, i]
        cost += weights[1] * (request.finish - now)
        if not math.isnan(request.first_token):
            cost += weights[0] * (request.first_token - now)
            cost += weights[2] * max(0.0, request.first_token - request.arrival - tail)
    return cost


@njit(allocates=False)
def added_costs(
    state: State,
    c: int,
    scratch: State,
    weights: npt.NDArray[np.float64],
    knows: int,
    out: npt.NDArray[np.float64],
) -> None:
    """Write to `out` (R,) the cost that cluster `c`'s waiting request would add on each replica.

    That of a dead one is infinite. `weights` are (3,), in the order of `view.preference.Weights`. `knows` is
    what the forecast may use: numbers of `view.privilege`.
    """
    count = out.shape[0]
    cluster = state.clusters[c]
    new = state.requests[c, cluster.at_hand]
    mean = ledger.expected_output(state.routers[c, new.router])
    tail = state.routers[c, new.router].ttft_tail
    for r in range(count):
        k = c * count + r
        if not state.replicas[k].available:
            out[r] = np.inf
            continue
        n = _copy_replica(state, k, c, scratch, mean, knows)
        without = _cost_of_draining(scratch, c, n, cluster.now, tail, weights)
        n = _copy_replica(state, k, c, scratch, mean, knows)
        hit = ledger.expected_hit(state, k, new)
        scratch.requests[c, n].arrival = new.arrival
        _set_request(scratch, c, n, _prompt(new, knows), hit, 0, _remaining(new, 0, mean, knows))
        push_waiting(scratch, c, c, n)
        out[r] = _cost_of_draining(scratch, c, n + 1, cluster.now, tail, weights) - without


@njit(parallel=True)
def added_costs_all(
    state: State,
    scratch: State,
    weights: npt.NDArray[np.float64],
    knows: int,
    out: npt.NDArray[np.float64],
) -> None:
    """`added_costs` for every cluster; `weights` is (K, 3) and `out` (K, R)."""
    for index in prange(out.shape[0]):
        c = signed(index)
        added_costs(state, c, scratch, weights[c], knows, out[c])
