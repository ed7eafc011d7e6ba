"""What Vidur's two schedulers share: blocks reserved for whole prompts, a watermark, preemption; compiled."""

from fairlead.compiled import njit
from fairlead.simulator.batching import blocks_of, leave
from fairlead.simulator.state import State


@njit(inline=True)
def fits_reserved(state: State, k: int, c: int, spoken_for: int) -> bool:
    """Whether the head of the queue finds a slot, and blocks for all its tokens beyond the watermark."""
    replica = state.replicas[k]
    if replica.waiting == 0 or replica.running >= replica.max_seqs:
        return False
    head = state.requests[c, replica.waiting_head]
    need = blocks_of(head.prompt + head.generated, replica.block_size)
    return replica.free_blocks - spoken_for - need >= replica.watermark


@njit(inline=True)
def decode_blocks(state: State, k: int) -> int:
    """Blocks that the decoding requests take in the next iteration."""
    replica = state.replicas[k]
    return state.phases[k, (-replica.tick) % replica.block_size]


@njit(inline=True)
def make_room(state: State, k: int, c: int, j: int) -> None:
    """Decoding slot `j` takes a block if its last one is full."""
    replica = state.replicas[k]
    slot = state.slots[k, j]
    in_kv = state.requests[c, slot.request].prompt + replica.tick - slot.zero_tick - 1
    if in_kv % replica.block_size == 0:
        replica.free_blocks -= 1


@njit(allocates=False)
def give_up(state: State, k: int, c: int, j: int) -> None:
    """Slot `j` is preempted; the blocks reserved for its whole prompt are freed."""
    replica = state.replicas[k]
    slot = state.slots[k, j]
    i = slot.request
    partial = slot.left > 0
    in_kv = leave(state, k, c, j)
    request = state.requests[c, i]
    held = request.prompt + request.generated if partial else in_kv
    replica.free_blocks += blocks_of(held, replica.block_size)
    if partial and replica.restart_loses_prompt:
        lose_prompt(state, k, c, i, in_kv)


@njit(allocates=False)
def lose_prompt(state: State, k: int, c: int, i: int, computed: int) -> None:
    """Vidur's bug: what is not computed yet of request `i`'s prompt counts as output from now on."""
    request = state.requests[c, i]
    own = state.ledgers[k, request.router]
    lost = request.prompt + request.generated - computed
    request.prompt -= lost
    request.estimate -= lost
    request.output += lost
    if request.generated == 0:
        own.pending_tokens -= lost
    else:
        own.context_tokens -= lost
