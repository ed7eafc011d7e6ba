"""Prefix caching in the engine: which blocks of the pool the requests of a replica hold, compiled.

The engine counts blocks; where caching is on, these functions say which ones. Every function takes the
state, the replica `k` and its cluster `c`.
"""

from typing import Any

from fairlead.compiled import njit
from fairlead.simulator import block_pool
from fairlead.simulator.batching import blocks_of, new_blocks
from fairlead.simulator.state import State


@njit(allocates=False)
def look_up(state: State, k: int, c: int, i: int) -> int:
    """Set waiting request `i`'s hit; how many of the blocks that it hit are free, so that it would take them.

    Its last known token has to be computed, so at most the blocks before that one count.
    """
    request = state.requests[c, i]
    size = state.replicas[k].block_size
    most = (request.prompt + request.generated - 1) // size
    row = block_pool.next_row(state, k)
    hit, idle = block_pool.longest_hit(state, k, row, state.contents, request.content, most)
    request.hit = hit * size
    return int(idle)


@njit(allocates=False)
def admit(state: State, k: int, slot: Any, request: Any, idle: int) -> None:
    """A request joins as `slot`, just looked up: it holds what it hit, and blocks for its first chunk."""
    hold_hit(state, k, slot, request, idle)
    extend(state, k, slot, request, request.hit, slot.chunk)


@njit(allocates=False)
def hold_hit(state: State, k: int, slot: Any, request: Any, idle: int) -> None:
    """A request joins as `slot`, just looked up: it holds what it hit, of which `idle` blocks were free."""
    replica = state.replicas[k]
    slot.row = block_pool.take_row(state, k)
    block_pool.hold_hit(state, k, slot.row, request.hit // replica.block_size)
    replica.free_blocks -= idle
    if request.preemptions == 0:
        request.cached = request.hit
        replica.queried_tokens += request.prompt
        replica.hit_tokens += request.hit


@njit(allocates=False)
def release(state: State, k: int, slot: Any, request: Any, in_kv: int) -> None:
    """A request with `in_kv` tokens in the cache leaves the batch and lets go of its blocks."""
    replica = state.replicas[k]
    held = blocks_of(in_kv, replica.block_size)
    if replica.caching:
        replica.free_blocks += block_pool.release(state, k, slot.row, held)
    else:
        # In a forecast, what it was expected to hit is held by others.
        replica.free_blocks += held - request.hit // replica.block_size


@njit(allocates=False)
def extend(state: State, k: int, slot: Any, request: Any, done: int, tokens: int) -> None:
    """A running request computes `tokens` tokens behind `done` ones."""
    size = state.replicas[k].block_size
    block_pool.extend(state, k, slot.row, state.contents, request.content, done, tokens, size)


@njit(allocates=False)
def extend_running(state: State, k: int, c: int) -> None:
    """All running requests get the blocks of one iteration, in order."""
    replica = state.replicas[k]
    extend_decodes(state, k, c, 1)
    for j in range(replica.running - replica.prefilling, replica.running):
        slot = state.slots[k, j]
        request = state.requests[c, slot.request]
        extend(state, k, slot, request, request.prompt + request.generated - slot.left, slot.chunk)


@njit(allocates=False)
def extend_decodes(state: State, k: int, c: int, steps: int) -> None:
    """The decoding requests get the blocks of the next `steps` iterations, iteration by iteration.

    A request takes a block when its tokens in the cache are a multiple of the block size, and has filled it
    one iteration before the next time. So only those of one phase (see `State.phases`) need looking at.
    """
    replica = state.replicas[k]
    size = replica.block_size
    end = 0
    for phase in range(size):
        state.phase_ends[k, phase] = end
        end += state.phases[k, phase]
    for j in range(replica.running - replica.prefilling):
        slot = state.slots[k, j]
        # (tokens in KV - tick) mod size; the first are prompt + tick - zero_tick - 1.
        phase = (state.requests[c, slot.request].prompt - slot.zero_tick - 1) % size
        state.slot_order[k, state.phase_ends[k, phase]] = j
        state.phase_ends[k, phase] += 1
    for step in range(steps):
        tick = replica.tick + step
        phase = (-tick) % size
        for place in range(state.phase_ends[k, phase] - state.phases[k, phase], state.phase_ends[k, phase]):
            slot = state.slots[k, state.slot_order[k, place]]
            position = (state.requests[c, slot.request].prompt + tick - slot.zero_tick - 1) // size
            state.block_tables[k, slot.row, position] = block_pool.take(state, k)
        phase = (-tick - 1) % size
        for place in range(state.phase_ends[k, phase] - state.phases[k, phase], state.phase_ends[k, phase]):
            slot = state.slots[k, state.slot_order[k, place]]
            request = state.requests[c, slot.request]
            position = (request.prompt + tick - slot.zero_tick) // size - 1
            block = state.block_tables[k, slot.row, position]
            block_pool.cache(state, k, block, state.contents[request.content + position])


@njit(allocates=False)
def may_admit(state: State, k: int, c: int, budget: int) -> bool:
    """Whether the head of the queue might join the next batch; if not, only `steps_before_hit` can change it.

    While requests only decode, blocks are taken. That leaves the head less room, unless free blocks that it
    hit are among them, so in that case nothing is ruled out.
    """
    replica = state.replicas[k]
    size = replica.block_size
    idle = look_up(state, k, c, replica.waiting_head)
    if idle > 0:
        return True
    head = state.requests[c, replica.waiting_head]
    chunk = min(head.prompt + head.generated - head.hit, budget)
    # The decoding requests take their blocks first.
    return bool(
        new_blocks(head.hit, chunk, size) <= replica.free_blocks - state.phases[k, (-replica.tick) % size]
    )


@njit(allocates=False)
def steps_before_hit(state: State, k: int, c: int, limit: int) -> int:
    """Decode iterations, up to `limit`, before one fills the block that the blocked head would hit next."""
    replica = state.replicas[k]
    size = replica.block_size
    head = state.requests[c, replica.waiting_head]
    position = head.hit // size
    if position >= (head.prompt + head.generated - 1) // size:
        return limit
    wanted = state.contents[head.content + position]
    for j in range(replica.running - replica.prefilling):
        slot = state.slots[k, j]
        request = state.requests[c, slot.request]
        in_kv = request.prompt + replica.tick - slot.zero_tick - 1
        missing = (position + 1) * size - in_kv
        blocks = (request.prompt + request.output - 1) // size
        if (
            0 < missing <= limit
            and position < blocks
            and state.contents[request.content + position] == wanted
        ):
            limit = missing - 1
    return limit
