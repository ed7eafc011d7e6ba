"""One replica, iteration by iteration: the scheduler of vLLM V1 with decode leaps, compiled.

`docs/simulator.md` states the semantics; `reference.py` is the plain twin. Every function takes the
state, the replica `k` and its cluster `c`.

A *boundary* is the instant between two iterations. `advance` commits everything that ends at or
before a given time and forms the batches of all boundaries before it, so that a request arriving
exactly at a boundary joins it and a router never sees an iteration that is still running.
"""

import math

from fairlead.compiled import njit
from fairlead.simulator import ledger
from fairlead.simulator.batch_time import Batch, batch_time, decode_times
from fairlead.simulator.state import NEVER, NONE, State
from fairlead.simulator.tables import KV_BUCKET


@njit()
def blocks_of(tokens: int, block_size: int) -> int:
    """KV blocks that hold `tokens` tokens."""
    return (tokens + block_size - 1) // block_size


@njit()
def advance(state: State, k: int, c: int, until: float) -> None:
    """Bring replica `k` to time `until` (s; may be infinite)."""
    replica = state.replicas[k]
    while True:
        if replica.busy:
            if replica.clock > until:
                return
            commit(state, k, c)
        if replica.clock >= until or replica.running + replica.waiting == 0:
            return
        if replica.prefilling == 0 and replica.running > 0 and not can_admit(state, k, c):
            decode_leap(state, k, c, until)
            if replica.clock >= until or replica.running + replica.waiting == 0:
                return
        schedule(state, k, c)


@njit()
def enqueue(state: State, k: int, c: int, i: int) -> None:
    """Hand request `i` to replica `k` at the cluster's present time."""
    replica = state.replicas[k]
    request = state.requests[c, i]
    if not replica.busy and replica.running + replica.waiting == 0:
        replica.clock = request.arrival
    push_waiting(state, k, c, i)


@njit()
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


@njit()
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


@njit()
def decode_leap(state: State, k: int, c: int, until: float) -> None:
    """Do at once all decode iterations that end by `until` and before anything else can happen.

    The batch stays as it is, so the i-th iteration lasts a + g i (`decode_times`; where that holds for
    some iterations only, the leap ends with them) and m of them last m a + g m (m - 1) / 2. Nothing else
    happens before the first request finishes or the KV cache is full; a head of the queue that is blocked
    stays blocked, because free blocks only become fewer.
    """
    replica = state.replicas[k]
    n = replica.running
    a, g, limit = decode_times(state, k, n, replica.kv_tokens + n, replica.next_finish - replica.tick)
    span = until - replica.clock
    if a > span:
        return
    steps = _steps_until_blocks_run_out(state, k, limit)
    if span < 1e300:
        if g > 0.0:
            b = a - 0.5 * g
            fitting = int((math.sqrt(b * b + 2.0 * g * span) - b) / g)
        else:
            fitting = int(span / a)
        # The root is only as good as its rounding: settle the last step by the sum itself.
        while fitting > 0 and fitting * a + 0.5 * g * fitting * (fitting - 1.0) > span:
            fitting -= 1
        while (fitting + 1) * a + 0.5 * g * (fitting + 1.0) * fitting <= span:
            fitting += 1
        steps = min(steps, fitting)
    if steps <= 0:
        return
    replica.free_blocks -= _blocks_for_steps(state, k, steps)
    replica.clock += steps * a + 0.5 * g * steps * (steps - 1.0)
    _decode_tokens(state, k, steps, a, g)
    if replica.tick == replica.next_finish:
        finish(state, k, c)


@njit()
def _decode_tokens(state: State, k: int, steps: int, duration: float, growth: float) -> None:
    """Every decoding request gains `steps` tokens; the i-th iteration lasted duration + growth i."""
    replica = state.replicas[k]
    tokens = steps * (replica.running - replica.prefilling)
    replica.tick += steps
    replica.kv_tokens += tokens
    ledger.saw_iterations(state, k, steps, duration, growth)


@njit()
def _blocks_for_steps(state: State, k: int, steps: int) -> int:
    """Blocks that the decoding slots take in the next `steps` iterations."""
    replica = state.replicas[k]
    size = replica.block_size
    blocks = (steps // size) * (replica.running - replica.prefilling)
    for i in range(steps % size):
        blocks += state.phases[k, (-(replica.tick + i)) % size]
    return blocks


@njit()
def _steps_until_blocks_run_out(state: State, k: int, limit: int) -> int:
    """The most decode iterations, up to `limit`, that the free blocks allow."""
    replica = state.replicas[k]
    size = replica.block_size
    decoding = replica.running - replica.prefilling
    free = replica.free_blocks
    if decoding * (limit // size + 1) <= free:
        return limit
    cycles = min(limit // size, free // max(decoding, 1))
    steps = cycles * size
    free -= cycles * decoding
    while steps < limit:
        free -= state.phases[k, (-(replica.tick + steps)) % size]
        if free < 0:
            break
        steps += 1
    return steps


@njit()
def schedule(state: State, k: int, c: int) -> None:
    """Form the batch of one iteration at the boundary and start it."""
    replica = state.replicas[k]
    budget, preempted = _schedule_running(state, k, c)
    if not preempted:
        _admit(state, k, c, budget)
    decoding = replica.running - replica.prefilling
    tokens = decoding
    sequences = decoding
    pairs = 0.0
    squares = 0
    behind = 0
    behind_rounded = 0
    for j in range(decoding, replica.running):
        slot = state.slots[k, j]
        if slot.chunk > 0:
            request = state.requests[c, slot.request]
            chunk = int(slot.chunk)
            done = request.prompt + request.generated - slot.left
            tokens += chunk
            sequences += 1
            pairs += chunk * (done + 0.5 * (chunk + 1.0))
            squares += chunk * chunk
            behind += done
            behind_rounded += blocks_of(done, KV_BUCKET) * KV_BUCKET
    batch = Batch(
        tokens,
        sequences,
        decoding,
        replica.kv_tokens + decoding,
        pairs,
        sequences - decoding,
        squares,
        behind,
        behind_rounded,
    )
    replica.duration = batch_time(state, k, batch)
    replica.clock += replica.duration
    replica.busy = True


@njit()
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


@njit()
def _prefill_blocks(state: State, k: int, c: int, j: int) -> int:
    """Blocks that the chunk of prefilling slot `j` takes."""
    slot = state.slots[k, j]
    request = state.requests[c, slot.request]
    size = state.replicas[k].block_size
    done = request.prompt + request.generated - slot.left
    return blocks_of(done + slot.chunk, size) - blocks_of(done, size)


@njit()
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
            preempt_last(state, k, c)
            preempted = True
        if replica.running == j:
            break
        replica.free_blocks -= need
        budget -= want
        j += 1
    return budget, preempted


@njit()
def preempt_last(state: State, k: int, c: int) -> None:
    """Take the most recently admitted request off the batch: to be recomputed, first in the queue."""
    replica = state.replicas[k]
    size = replica.block_size
    slot = state.slots[k, replica.running - 1]
    request = state.requests[c, slot.request]
    if slot.left > 0:
        in_kv = request.prompt + request.generated - slot.left
        replica.prefilling -= 1
    else:
        request.generated = replica.tick - slot.zero_tick
        in_kv = request.prompt + request.generated - 1
        replica.kv_tokens -= in_kv
        state.phases[k, (in_kv - replica.tick) % size] -= 1
        state.ledgers[k, request.router].decoding -= 1
        replica.interrupted += 1
    replica.free_blocks += blocks_of(in_kv, size)
    replica.running -= 1
    if slot.left == 0 and slot.finish_tick == replica.next_finish:
        _find_next_finish(state, k)
    request.preemptions += 1
    replica.preemptions += 1
    request.next_waiting = replica.waiting_head if replica.waiting > 0 else NONE
    if replica.waiting == 0:
        replica.waiting_tail = slot.request
    replica.waiting_head = slot.request
    replica.waiting += 1


@njit()
def _find_next_finish(state: State, k: int) -> None:
    replica = state.replicas[k]
    replica.next_finish = NEVER
    for j in range(replica.running - replica.prefilling):
        replica.next_finish = min(replica.next_finish, state.slots[k, j].finish_tick)


@njit()
def _admit(state: State, k: int, c: int, budget: int) -> None:
    """Waiting requests join, first come first served, while budget, slots and blocks allow."""
    replica = state.replicas[k]
    while replica.waiting > 0 and budget > 0 and replica.running < replica.max_seqs:
        i = replica.waiting_head
        request = state.requests[c, i]
        known = request.prompt + request.generated
        chunk = min(known, budget)
        need = blocks_of(chunk, replica.block_size)
        if need > replica.free_blocks:
            return
        replica.waiting_head = request.next_waiting
        replica.waiting -= 1
        if math.isnan(request.scheduled):
            request.scheduled = replica.clock
        slot = state.slots[k, replica.running]
        slot.request = i
        slot.left = known
        slot.chunk = chunk
        slot.router = request.router
        replica.running += 1
        replica.prefilling += 1
        replica.free_blocks -= need
        budget -= chunk


@njit()
def commit(state: State, k: int, c: int) -> None:
    """The iteration under way has ended: tokens appear, requests finish."""
    replica = state.replicas[k]
    replica.busy = False
    first_prefill = replica.running - replica.prefilling
    if first_prefill > 0:
        _decode_tokens(state, k, 1, replica.duration, 0.0)
    for j in range(first_prefill, replica.running):
        slot = state.slots[k, j]
        slot.left -= slot.chunk
        slot.chunk = 0
        if slot.left == 0:
            _start_decoding(state, k, c, j)
    if replica.tick == replica.next_finish:
        finish(state, k, c)


@njit()
def _start_decoding(state: State, k: int, c: int, j: int) -> None:
    """Slot `j` has processed its last prompt token and emits a token."""
    replica = state.replicas[k]
    slot = state.slots[k, j]
    request = state.requests[c, slot.request]
    in_kv = request.prompt + request.generated
    if request.generated == 0:
        request.first_token = replica.clock
        ledger.saw_first_token(state, k, c, request)
    else:
        replica.interrupted -= 1
        state.ledgers[k, request.router].context_tokens += 1
    state.ledgers[k, request.router].decoding += 1
    request.generated += 1
    slot.zero_tick = replica.tick - request.generated
    slot.finish_tick = slot.zero_tick + request.output
    replica.next_finish = min(replica.next_finish, slot.finish_tick)
    replica.kv_tokens += in_kv
    state.phases[k, (in_kv - replica.tick) % replica.block_size] += 1
    replica.prefilling -= 1


@njit()
def finish(state: State, k: int, c: int) -> None:
    """Requests whose last token has appeared leave; the others keep their order."""
    replica = state.replicas[k]
    size = replica.block_size
    decoding = replica.running - replica.prefilling
    kept = 0
    replica.next_finish = NEVER
    for j in range(replica.running):
        slot = state.slots[k, j]
        if j < decoding and slot.finish_tick == replica.tick:
            request = state.requests[c, slot.request]
            in_kv = request.prompt + request.output - 1
            request.finish = replica.clock
            request.generated = request.output
            replica.free_blocks += blocks_of(in_kv, size)
            replica.kv_tokens -= in_kv
            state.phases[k, (in_kv - replica.tick) % size] -= 1
            ledger.saw_finish(state, k, c, request)
        else:
            if j < decoding:
                replica.next_finish = min(replica.next_finish, slot.finish_tick)
            if kept != j:
                state.slots[k, kept] = slot
            kept += 1
    replica.running = kept
