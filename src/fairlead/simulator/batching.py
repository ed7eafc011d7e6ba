"""The waiting queue and the running batch of a replica: what all schedulers share, compiled.

Slots stand in order of admission: first those that decode, then those whose prompt is being computed.
"""

import math
from typing import Any

from fairlead.compiled import njit
from fairlead.simulator.schedulers import VIDUR_V1, VLLM_V0
from fairlead.simulator.state import NEVER, NONE, State


@njit(inline=True)
def blocks_of(tokens: int, block_size: int) -> int:
    """KV blocks that hold `tokens` tokens."""
    return (tokens + block_size - 1) // block_size


@njit(inline=True)
def new_blocks(done: int, tokens: int, block_size: int) -> int:
    """KV blocks that a request takes for `tokens` tokens behind `done` ones."""
    return blocks_of(done + tokens, block_size) - blocks_of(done, block_size)


@njit(inline=True)
def longest_request(replica: Any) -> int:
    """Most tokens of prompt and output, without the last one, with which a request can finish."""
    tokens = (replica.kv_blocks - replica.watermark) * replica.block_size
    if replica.scheduler == VIDUR_V1:
        tokens -= 1  # The last token needs room, too.
    return int(min(tokens, replica.token_budget)) if replica.scheduler == VLLM_V0 else int(tokens)


@njit(inline=True)
def push_waiting(state: State, k: int, c: int, i: int) -> None:
    """Put request `i` at the end of replica `k`'s waiting queue."""
    replica = state.replicas[k]
    state.requests[c, i].next_waiting = NONE
    if replica.waiting == 0:
        replica.waiting_head = i
    else:
        state.requests[c, replica.waiting_tail].next_waiting = i
    replica.waiting_tail = i
    replica.waiting += 1


@njit(inline=True)
def join(state: State, k: int, c: int, chunk: int, blocks: int) -> None:
    """The head of the waiting queue joins the batch: its first `chunk` tokens, `blocks` taken for it."""
    replica = state.replicas[k]
    i = replica.waiting_head
    request = state.requests[c, i]
    replica.waiting_head = request.next_waiting
    replica.waiting -= 1
    if math.isnan(request.scheduled):
        request.scheduled = replica.clock
    slot = state.slots[k, replica.running]
    slot.request = i
    slot.left = request.prompt + request.generated - request.hit
    slot.chunk = chunk
    slot.router = request.router
    slot.blocks = blocks
    replica.running += 1
    replica.prefilling += 1
    replica.free_blocks -= blocks


@njit(allocates=False)
def leave(state: State, k: int, c: int, j: int) -> int:
    """Slot `j` is preempted: to be recomputed, first in the queue. Its tokens in the KV cache.

    The caller frees its blocks.
    """
    replica = state.replicas[k]
    slot = state.slots[k, j]
    i = slot.request
    request = state.requests[c, i]
    decoded = slot.left == 0
    was_next = decoded and slot.finish_tick == replica.next_finish
    if decoded:
        request.generated = replica.tick - slot.zero_tick
        in_kv = request.prompt + request.generated - 1
        replica.kv_tokens -= in_kv
        state.phases[k, (in_kv - replica.tick) % replica.block_size] -= 1
        state.ledgers[k, request.router].decoding -= 1
        replica.interrupted += 1
    else:
        in_kv = request.prompt + request.generated - slot.left
        replica.prefilling -= 1
    for other in range(j, replica.running - 1):
        state.slots[k, other] = state.slots[k, other + 1]
    replica.running -= 1
    if was_next:
        _find_next_finish(state, k)
    request.preemptions += 1
    replica.preemptions += 1
    request.next_waiting = replica.waiting_head if replica.waiting > 0 else NONE
    if replica.waiting == 0:
        replica.waiting_tail = i
    replica.waiting_head = i
    replica.waiting += 1
    return int(in_kv)


@njit(inline=True)
def _find_next_finish(state: State, k: int) -> None:
    replica = state.replicas[k]
    replica.next_finish = NEVER
    for j in range(replica.running - replica.prefilling):
        replica.next_finish = min(replica.next_finish, state.slots[k, j].finish_tick)
