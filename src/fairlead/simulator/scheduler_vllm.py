"""The scheduler of vLLM V1: who is in the next batch, with how many tokens; compiled.

Running requests first, then waiting ones, all within one token budget; blocks are taken as needed and
the most recently admitted request is preempted when they run out.
"""

from fairlead.compiled import njit
from fairlead.simulator.batching import blocks_of, join, leave
from fairlead.simulator.state import State


@njit(inline=True)
def can_admit(state: State, k: int, c: int) -> bool:
    """Whether the head of the waiting queue would join a batch of all running (decoding) requests."""
    replica = state.replicas[k]
    budget = replica.token_budget - replica.running
    if replica.waiting == 0 or replica.running >= replica.max_seqs or budget <= 0:
        return False
    head = state.requests[c, replica.waiting_head]
    first_chunk = min(head.prompt + head.generated, budget)
    # The decoding requests take their blocks first.
    free = replica.free_blocks - state.phases[k, (-replica.tick) % replica.block_size]
    return blocks_of(first_chunk, replica.block_size) <= free


@njit(inline=True)
def form_batch(state: State, k: int, c: int) -> None:
    """Give every request of the next iteration its tokens and blocks."""
    budget, preempted = _schedule_running(state, k, c)
    if not preempted:
        _admit(state, k, c, budget)


@njit(inline=True)
def _schedule_running(state: State, k: int, c: int) -> tuple[int, bool]:
    """Blocks and budget for the running requests, in order; (budget left, whether any was preempted).

    Only the last running request can be in the middle of its prompt: a prompt is left unfinished
    only when it used up the budget, and then nothing was admitted after it.
    """
    replica = state.replicas[k]
    decoding = replica.running - replica.prefilling
    budget = replica.token_budget - decoding
    need = state.phases[k, (-replica.tick) % replica.block_size]
    if replica.prefilling > 0:
        slot = state.slots[k, decoding]
        slot.chunk = min(slot.left, budget)
        need += _prefill_blocks(state, k, c, decoding)
    if need > replica.free_blocks:
        return _schedule_scarce(state, k, c)
    replica.free_blocks -= need
    if replica.prefilling > 0:
        budget -= state.slots[k, decoding].chunk
    return budget, False


@njit(inline=True)
def _prefill_blocks(state: State, k: int, c: int, j: int) -> int:
    """Blocks that the chunk of prefilling slot `j` takes."""
    slot = state.slots[k, j]
    request = state.requests[c, slot.request]
    size = state.replicas[k].block_size
    done = request.prompt + request.generated - slot.left
    return blocks_of(done + slot.chunk, size) - blocks_of(done, size)


@njit(allocates=False)
def _schedule_scarce(state: State, k: int, c: int) -> tuple[int, bool]:
    """As `_schedule_running` when blocks run out: the last running requests give theirs up."""
    replica = state.replicas[k]
    budget = replica.token_budget
    preempted = False
    j = 0
    while j < replica.running and budget > 0:
        slot = state.slots[k, j]
        if slot.left == 0:
            request = state.requests[c, slot.request]
            in_kv = request.prompt + replica.tick - slot.zero_tick - 1
            want = 1
            need = 1 if in_kv % replica.block_size == 0 else 0
        else:
            slot.chunk = min(slot.left, budget)
            want = slot.chunk
            need = _prefill_blocks(state, k, c, j)
        while need > replica.free_blocks and replica.running > j:
            _preempt_last(state, k, c)
            preempted = True
        if replica.running == j:
            break
        replica.free_blocks -= need
        budget -= want
        j += 1
    return budget, preempted


@njit(allocates=False)
def _preempt_last(state: State, k: int, c: int) -> None:
    """Take the most recently admitted request off the batch."""
    replica = state.replicas[k]
    in_kv = leave(state, k, c, replica.running - 1)
    replica.free_blocks += blocks_of(in_kv, replica.block_size)


@njit(inline=True)
def _admit(state: State, k: int, c: int, budget: int) -> None:
    """Waiting requests join, first come first served, while budget, slots and blocks allow."""
    replica = state.replicas[k]
    while replica.waiting > 0 and budget > 0 and replica.running < replica.max_seqs:
        request = state.requests[c, replica.waiting_head]
        chunk = min(request.prompt + request.generated, budget)
        need = blocks_of(chunk, replica.block_size)
        if need > replica.free_blocks:
            return
        join(state, k, c, chunk, need)
        budget -= chunk
