"""The scheduler that Vidur 25e0082 calls vllm_v1, for comparisons: no leaps, one slot after the other.

It is vLLM V1 with four differences: room is taken for one token more than is computed, with prefix caching
that token counts as computed too, four blocks are taken ahead whenever one is needed, and a request preempted
in mid-prompt forgets the rest of the prompt.
"""

from typing import Any

from fairlead.compiled import njit
from fairlead.simulator import block_pool, prefix_cache
from fairlead.simulator.batching import blocks_of, join, leave
from fairlead.simulator.reserved import lose_prompt
from fairlead.simulator.state import State

AHEAD = 4
"""Blocks taken in advance."""


@njit(allocates=False)
def form_batch(state: State, k: int, c: int) -> None:
    """Running requests in order, then waiting ones, within the token budget."""
    replica = state.replicas[k]
    budget = replica.token_budget
    preempted = False
    j = 0
    while j < replica.running and budget > 0:
        slot = state.slots[k, j]
        request = state.requests[c, slot.request]
        if slot.left == 0:
            want = 1
            # Vidur counts the token just emitted as computed.
            end = request.prompt + replica.tick - slot.zero_tick + 1
        else:
            want = min(slot.left, budget)
            slot.chunk = want
            end = request.prompt + request.generated - slot.left + want
        need = blocks_of(end, replica.block_size) - slot.blocks
        while need > replica.free_blocks and replica.running > j:
            _preempt_last(state, k, c)
            preempted = True
        if replica.running == j:
            break
        _extend(state, k, slot, request, need, end)
        budget -= want
        j += 1
    while not preempted and replica.waiting > 0 and budget > 0 and replica.running < replica.max_seqs:
        request = state.requests[c, replica.waiting_head]
        idle = prefix_cache.look_up(state, k, c, replica.waiting_head) if replica.caching else 0
        chunk = min(request.prompt + request.generated - request.hit, budget)
        held = request.hit // replica.block_size
        need = blocks_of(request.hit + chunk, replica.block_size) - held
        if need + idle > replica.free_blocks:
            return
        join(state, k, c, chunk, 0)
        slot = state.slots[k, replica.running - 1]
        if replica.caching:
            prefix_cache.hold_hit(state, k, slot, request, idle)
            slot.blocks = held
        _extend(state, k, slot, request, need, request.hit + chunk)
        budget -= chunk


@njit(allocates=False)
def release(state: State, k: int, slot: Any) -> None:
    """A request leaves the batch and lets go of its blocks, those taken ahead included."""
    replica = state.replicas[k]
    if replica.caching:
        replica.free_blocks += block_pool.release(state, k, slot.row, slot.blocks)
    else:
        replica.free_blocks += slot.blocks


@njit(allocates=False)
def _extend(state: State, k: int, slot: Any, request: Any, need: int, end: int) -> None:
    """`need` more blocks, and some ahead, give a request room for `end` tokens; what is full is cached."""
    replica = state.replicas[k]
    if need > 0:
        taken = min(need + AHEAD, replica.free_blocks)
        if replica.caching:
            for position in range(slot.blocks, slot.blocks + taken):
                state.block_tables[k, slot.row, position] = block_pool.take(state, k)
        slot.blocks += taken
        replica.free_blocks -= taken
    if not replica.caching:
        return
    for position in range(end // replica.block_size - 1, -1, -1):
        block = state.block_tables[k, slot.row, position]
        if state.blocks[k, block].content != block_pool.NO_BLOCK:
            return
        block_pool.cache(state, k, block, state.contents[request.content + position])


@njit(allocates=False)
def _preempt_last(state: State, k: int, c: int) -> None:
    replica = state.replicas[k]
    slot = state.slots[k, replica.running - 1]
    i = slot.request
    partial = slot.left > 0
    in_kv = leave(state, k, c, replica.running - 1)
    release(state, k, slot)
    if partial and replica.restart_loses_prompt:
        lose_prompt(state, k, c, i, in_kv)
