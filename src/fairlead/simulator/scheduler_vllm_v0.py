"""The scheduler of vLLM V0 as Vidur has it: prompts first, each in one piece; compiled.

If anything can be admitted, the batch is these prompts alone and the decoding requests stand still.
"""

from fairlead.compiled import njit
from fairlead.simulator.batching import blocks_of, join
from fairlead.simulator.reserved import decode_blocks, fits_reserved, give_up, make_room
from fairlead.simulator.state import State


@njit(inline=True)
def can_admit(state: State, k: int, c: int) -> bool:
    """Whether the head of the waiting queue would be computed next."""
    return fits_reserved(state, k, c, 0)


@njit(inline=True)
def form_batch(state: State, k: int, c: int) -> None:
    """Whole prompts from the queue, or else one token for every running request."""
    replica = state.replicas[k]
    count = 0
    longest = 0
    total = 0
    while fits_reserved(state, k, c, 0):
        request = state.requests[c, replica.waiting_head]
        known = request.prompt + request.generated
        longest = max(longest, known)
        total += known
        if ((count + 1) * longest if replica.padded else total) > replica.token_budget:
            break
        join(state, k, c, known, blocks_of(known, replica.block_size))
        count += 1
    replica.stalled = count > 0
    if count > 0:
        return
    need = decode_blocks(state, k)
    if need < replica.free_blocks:
        replica.free_blocks -= need
        return
    j = 0
    while j < replica.running:
        while replica.free_blocks < 1:
            last = replica.running - 1
            give_up(state, k, c, last)
            if last == j:
                return
        make_room(state, k, c, j)
        j += 1
