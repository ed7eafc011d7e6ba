"""The scheduler of vLLM V1: who is in the next batch, with how many tokens; compiled.

Running requests first, then waiting ones, all within one token budget; blocks are taken as needed and
the most recently admitted request is preempted when they run out.
"""

from fairlead.compiled import njit
from fairlead.simulator import prefix_cache
from fairlead.simulator.batching import join, leave, new_blocks
from fairlead.simulator.state import State


@njit(inline=True)
def can_admit(state: State, k: int, c: int) -> bool:
    """Whether the head of the waiting queue would join a batch of all running (decoding) requests."""
    replica = state.replicas[k]
    budget = replica.token_budget - replica.running
    if replica.waiting == 0 or replica.running >= replica.max_seqs or budget <= 0:
        return False
    if replica.caching:
        return prefix_cache.may_admit(state, k, c, budget)
    head = state.requests[c, replica.waiting_head]
    first_chunk = min(head.prompt + head.generated - head.hit, budget)
    # The decoding requests take their blocks first.
    free = replica.free_blocks - state.phases[k, (-replica.tick) % replica.block_size]
    return new_blocks(head.hit, first_chunk, replica.block_size) <= free


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
    if replica.caching:
        prefix_cache.extend_running(state, k, c)
    if replica.prefilling > 0:
        budget -= state.slots[k, decoding].chunk
    return budget, False


@njit(inline=True)
def _prefill_blocks(state: State, k: int, c: int, j: int) -> int:
    """Blocks that the chunk of prefilling slot `j` takes."""
    slot = state.slots[k, j]
    request = state.requests[c, slot.request]
    size = state.replicas[k].block_size
    return new_blocks(request.prompt + request.generated - slot.left, slot.chunk, size)


@njit(allocates=False)
def _schedule_scarce(state: State, k: int, c: int) -> tuple[int, bool]:
    """As `_schedule_running` when blocks run out: the last running requests give theirs up."""
    replica = state.replicas[k]
    budget = replica.token_budget
    preempted = False
    j = 0
    while j < replica.running and budget > 0:
        slot = state.slots[k, j]
        request = state.requests[c, slot.request]
        if slot.left == 0:
            done = request.prompt + replica.tick - slot.zero_tick - 1
            want = 1
        else:
            done = request.prompt + request.generated - slot.left
            slot.chunk = min(slot.left, budget)
            want = int(slot.chunk)
        need = new_blocks(done, want, replica.block_size)
        while need > replica.free_blocks and replica.running > j:
            _preempt_last(state, k, c)
            preempted = True
        if replica.running == j:
            break
        replica.free_blocks -= need
        if replica.caching:
            prefix_cache.extend(state, k, slot, request, done, want)
        budget -= want
        j += 1
    return budget, preempted


@njit(allocates=False)
def _preempt_last(state: State, k: int, c: int) -> None:
    """Take the most recently admitted request off the batch."""
    replica = state.replicas[k]
    in_kv = leave(state, k, c, replica.running - 1)
    slot = state.slots[k, replica.running]
    prefix_cache.release(state, k, slot, state.requests[c, slot.request], in_kv)


@njit(inline=True)
def _admit(state: State, k: int, c: int, budget: int) -> None:
    """Waiting requests join, first come first served, while budget, slots and blocks allow."""
    replica = state.replicas[k]
    while replica.waiting > 0 and budget > 0 and replica.running < replica.max_seqs:
        request = state.requests[c, replica.waiting_head]
        idle = prefix_cache.look_up(state, k, c, replica.waiting_head) if replica.caching else 0
        chunk = min(request.prompt + request.generated - request.hit, budget)
        need = new_blocks(request.hit, chunk, replica.block_size)
        if need + idle > replica.free_blocks:
            return
        join(state, k, c, chunk, need)
        if replica.caching:
            prefix_cache.admit(state, k, state.slots[k, replica.running - 1], request, idle)
        budget -= chunk
