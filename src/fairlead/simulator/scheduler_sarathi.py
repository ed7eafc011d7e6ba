"""The scheduler that Vidur calls sarathi: chunked prompts beside decodes; compiled.

Blocks for the whole prompt are reserved at admission, so that a chunk never waits for one; a decoding
request needs a free block even when it takes none. At most one prompt is half done, that of the request
admitted last.
"""

from fairlead.compiled import njit
from fairlead.simulator.batching import blocks_of, join
from fairlead.simulator.reserved import decode_blocks, fits_reserved, give_up, make_room
from fairlead.simulator.state import State


@njit(inline=True)
def can_admit(state: State, k: int, c: int) -> bool:
    """Whether the head of the waiting queue would join a batch of all running (decoding) requests."""
    replica = state.replicas[k]
    if replica.token_budget <= replica.running:
        return False
    return fits_reserved(state, k, c, decode_blocks(state, k))


@njit(inline=True)
def form_batch(state: State, k: int, c: int) -> None:
    """Decodes get a token each, whatever the budget; then the half-done prompt, then waiting requests."""
    replica = state.replicas[k]
    need = decode_blocks(state, k)
    if need < replica.free_blocks:
        replica.free_blocks -= need
    else:
        _decode_scarce(state, k, c)
    first_prefill = replica.running - replica.prefilling
    budget = max(replica.token_budget - first_prefill, 0)
    replica.partial_first = False
    if replica.prefilling > 0:
        slot = state.slots[k, first_prefill]
        slot.chunk = min(slot.left, budget)
        budget -= slot.chunk
        # A prompt that gets nothing goes ahead of the decodes, where nobody preempts it.
        replica.partial_first = slot.chunk == 0
    while budget > 0 and fits_reserved(state, k, c, 0):
        request = state.requests[c, replica.waiting_head]
        known = request.prompt + request.generated
        chunk = min(known, budget)
        join(state, k, c, chunk, blocks_of(known, replica.block_size))
        budget -= chunk


@njit(allocates=False)
def _decode_scarce(state: State, k: int, c: int) -> None:
    """The decodes take their blocks one by one; the last requests in the list are preempted for them."""
    replica = state.replicas[k]
    j = 0
    while j < replica.running - replica.prefilling:
        while replica.free_blocks < 1:
            # A half-done prompt at the front of the list was set aside already.
            end = replica.running - (replica.prefilling if replica.partial_first else 0)
            give_up(state, k, c, end - 1)
            if end - 1 == j:
                return
        make_room(state, k, c, j)
        j += 1
