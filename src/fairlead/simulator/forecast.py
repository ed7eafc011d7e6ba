"""Lookahead: what would each replica's requests cost if the new one joined them?

For each replica, its requests are simulated to completion with and without the new one, with expected
output lengths and no further arrivals; the difference in w_ttft * TTFT + w_e2e * E2E, summed over all
requests that it touches, is the added cost of that choice. Only what the ledger knows is used: which
requests are in flight, their prompts, what they streamed, and the declared iteration-time model; not
their true lengths, nor how far a prompt without a first token has come.
"""

import math

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit, prange, signed
from fairlead.simulator import engine, ledger
from fairlead.simulator.batch_time import Tables
from fairlead.simulator.batching import blocks_of, longest_request, push_waiting
from fairlead.simulator.state import NEVER, State, new_state

NO_SCRATCH = new_state(1, 1, 1, 1, 1)
"""For those who make no forecast."""


def scratch_for(state: State) -> State:
    """A scratch replica for each cluster of `state`, to simulate forecasts in."""
    clusters, requests = state.requests.shape
    sizes = state.slots.shape[1], state.phases.shape[1], requests + 1
    return new_state(clusters, 1, *sizes, tables=Tables(state.tables, state.table_values))


@njit()
def _add_request(scratch: State, c: int, i: int, prompt: int, streamed: int, remaining: float) -> None:
    """Put request `i` of the scratch replica: `streamed` tokens so far, `remaining` expected to come."""
    replica = scratch.replicas[c]
    request = scratch.requests[c, i]
    capacity = longest_request(replica)
    output = streamed + max(1, round(remaining))
    request.prompt = prompt
    request.output = max(streamed + 1, min(output, capacity - prompt + 1))
    request.generated = streamed
    request.first_token = math.nan
    request.finish = math.nan
    need = blocks_of(prompt + streamed - 1, replica.block_size)
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


@njit()
def _copy_replica(state: State, k: int, c: int, scratch: State) -> int:
    """The ledger's picture of replica `k` as the scratch replica of cluster `c`; its requests."""
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
    replica.table = source.table
    replica.scheduler = source.scheduler
    replica.watermark = source.watermark
    replica.padded = source.padded
    replica.restart_loses_prompt = False
    replica.stalled = False
    replica.partial_first = False
    replica.pace = 1.0
    for coefficient in range(scratch.timing.shape[1]):
        scratch.timing[c, coefficient] = state.timing[k, coefficient]
    waiting = state.requests[c, state.clusters[c].next_request]
    mean = ledger.expected_output(state.routers[c, waiting.router])
    count = 0
    for j in range(source.running):
        slot = state.slots[k, j]
        request = state.requests[c, slot.request]
        streamed = request.generated if slot.left > 0 else source.tick - slot.zero_tick
        remaining = ledger.expected_remaining(mean, streamed)
        _add_request(scratch, c, count, request.prompt, streamed, remaining)
        count += 1
    i = source.waiting_head
    for _ in range(source.waiting):
        request = state.requests[c, i]
        remaining = ledger.expected_remaining(mean, request.generated)
        _add_request(scratch, c, count, request.prompt, request.generated, remaining)
        count += 1
        i = request.next_waiting
    return count


@njit()
def _cost_of_draining(scratch: State, c: int, count: int, now: float, w_ttft: float, w_e2e: float) -> float:
    """Weighted waiting from now on, over all requests of the scratch replica."""
    engine.advance(scratch, c, c, np.inf)
    cost = 0.0
    for i in range(count):
        request = scratch.requests[c, i]
        cost += w_e2e * (request.finish - now)
        if not math.isnan(request.first_token):
            cost += w_ttft * (request.first_token - now)
    return cost


@njit()
def added_costs(
    state: State, c: int, scratch: State, w_ttft: float, w_e2e: float, out: npt.NDArray[np.float64]
) -> None:
    """Write to `out` (R,) the cost that cluster `c`'s waiting request would add on each replica."""
    count = out.shape[0]
    cluster = state.clusters[c]
    new = state.requests[c, cluster.next_request]
    mean = ledger.expected_output(state.routers[c, new.router])
    for r in range(count):
        k = c * count + r
        n = _copy_replica(state, k, c, scratch)
        without = _cost_of_draining(scratch, c, n, cluster.now, w_ttft, w_e2e)
        n = _copy_replica(state, k, c, scratch)
        _add_request(scratch, c, n, new.prompt, 0, mean)
        out[r] = _cost_of_draining(scratch, c, n + 1, cluster.now, w_ttft, w_e2e) - without


@njit(parallel=True)
def added_costs_all(
    state: State, scratch: State, weights: npt.NDArray[np.float64], out: npt.NDArray[np.float64]
) -> None:
    """`added_costs` for every cluster; `weights` is (K, 2), w_ttft and w_e2e, and `out` (K, R)."""
    for index in prange(out.shape[0]):
        c = signed(index)
        added_costs(state, c, scratch, weights[c, 0], weights[c, 1], out[c])
