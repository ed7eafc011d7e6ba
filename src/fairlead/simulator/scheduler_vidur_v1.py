"""The scheduler that Vidur 25e0082 calls vllm_v1, for comparisons: no leaps, one slot after the other.

It is vLLM V1 with three differences: room is taken for one token more than is computed, four blocks are
taken ahead whenever one is needed, and a request preempted in mid-prompt forgets the rest of the prompt.
"""

from fairlead.compiled import njit
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
        if need > 0:
            taken = min(need + AHEAD, replica.free_blocks)
            slot.blocks += taken
            replica.free_blocks -= taken
        budget -= want
        j += 1
    while not preempted and replica.waiting > 0 and budget > 0 and replica.running < replica.max_seqs:
        request = state.requests[c, replica.waiting_head]
        chunk = min(request.prompt + request.generated, budget)
        need = blocks_of(chunk, replica.block_size)
        if need > replica.free_blocks:
            return
        join(state, k, c, chunk, min(need + AHEAD, replica.free_blocks))
        budget -= chunk


@njit(allocates=False)
def _preempt_last(state: State, k: int, c: int) -> None:
    replica = state.replicas[k]
    slot = state.slots[k, replica.running - 1]
    i = slot.request
    partial = slot.left > 0
    blocks = slot.blocks
    in_kv = leave(state, k, c, replica.running - 1)
    replica.free_blocks += blocks
    if partial and replica.restart_loses_prompt:
        lose_prompt(state, k, c, i, in_kv)
