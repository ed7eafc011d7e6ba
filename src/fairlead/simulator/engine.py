"""One replica, iteration by iteration, with decode leaps; compiled.

Who is in a batch is up to the schedulers (`scheduler_*`), how long it lasts to `batch_time`.
`docs/simulator.md` states the semantics; `reference.py` is the plain twin. Every function takes the
state, the replica `k` and its cluster `c`.

A *boundary* is the instant between two iterations. `advance` commits everything that ends at or
before a given time and forms the batches of all boundaries before it, so that a request arriving
exactly at a boundary joins it and a router never sees an iteration that is still running.
"""

import math

import numpy as np

from fairlead.compiled import njit
from fairlead.simulator import (
    ledger,
    prefix_cache,
    scheduler_sarathi,
    scheduler_vidur_v1,
    scheduler_vllm,
    scheduler_vllm_v0,
)
from fairlead.simulator.batch_time import Batch, batch_time, decode_times
from fairlead.simulator.batching import blocks_of, push_waiting
from fairlead.simulator.schedulers import SARATHI, VIDUR_V1, VLLM, VLLM_V0
from fairlead.simulator.state import NEVER, State
from fairlead.simulator.tables import KV_BUCKET

ONE_SPARE = 1
"""Vidur's schedulers let a request decode only while a block is free, even if it takes none."""


@njit(allocates=False)
def advance(state: State, k: int, c: int, until: float) -> None:
    """Bring replica `k` to time `until` (s; may be infinite)."""
    replica = state.replicas[k]
    replica.quiet_until = 0.0
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


@njit(allocates=False)
def advance_counts(state: State, k: int, c: int, until: float) -> None:
    """As `advance`, as far as counts of requests go: every first token and finish up to `until` is seen.

    A leap is made only when it ends by `until`; before that, the replica lags behind (`quiet_until`), with
    fewer tokens and at an earlier time than it should have. `advance` and `enqueue` make up for it.
    """
    replica = state.replicas[k]
    if until < replica.quiet_until:
        return
    while True:
        if replica.busy:
            if replica.clock > until:
                replica.quiet_until = replica.clock
                return
            commit(state, k, c)
        if replica.clock >= until:
            replica.quiet_until = 0.0
            return
        if replica.running + replica.waiting == 0:
            replica.quiet_until = np.inf
            return
        if replica.prefilling == 0 and replica.running > 0 and not can_admit(state, k, c):
            if decode_leap_to_event(state, k, c, until) > until:
                return
            if replica.clock >= until or replica.running + replica.waiting == 0:
                continue
        schedule(state, k, c)


@njit(inline=True)
def enqueue(state: State, k: int, c: int, i: int) -> None:
    """Hand request `i` to replica `k` at the cluster's present time."""
    replica = state.replicas[k]
    if replica.quiet_until > 0.0:
        advance(state, k, c, state.clusters[c].now)
    if not replica.busy and replica.running + replica.waiting == 0:
        replica.clock = state.clusters[c].now
    push_waiting(state, k, c, i)


@njit(inline=True)
def can_admit(state: State, k: int, c: int) -> bool:
    """Whether the head of the waiting queue would join a batch of all running (decoding) requests."""
    scheduler = state.replicas[k].scheduler
    if scheduler == VLLM:
        return scheduler_vllm.can_admit(state, k, c)
    if scheduler == SARATHI:
        return scheduler_sarathi.can_admit(state, k, c)
    if scheduler == VLLM_V0:
        return scheduler_vllm_v0.can_admit(state, k, c)
    # Blocks are taken ahead of time there, which no leap foresees.
    return True


@njit(inline=True)
def decode_leap(state: State, k: int, c: int, until: float) -> None:
    """Do at once all decode iterations that end by `until` and before anything else can happen.

    The batch stays as it is, so the i-th iteration lasts a + g i (`decode_times`; where that holds for
    some iterations only, the leap ends with them) and m of them last m a + g m (m - 1) / 2. Nothing else
    happens before the first request finishes or the KV cache is full; a head of the queue that is blocked
    stays blocked, because free blocks only become fewer (with prefix caching: until what it would hit has
    been computed).
    """
    replica = state.replicas[k]
    n = replica.running
    a, g, limit = decode_times(state, k, n, replica.kv_tokens + n, replica.next_finish - replica.tick)
    span = until - replica.clock
    if a > span:
        return
    steps = _steps_alike(state, k, c, limit)
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
    if steps > 0:
        _leap(state, k, c, steps, a, g)


@njit(inline=True)
def decode_leap_to_event(state: State, k: int, c: int, until: float) -> float:
    """The leap up to what ends it (a finish, the blocks or the formula), if that comes by `until`.

    Returns the time at which it ends, which `quiet_until` then holds if it was not made.
    """
    replica = state.replicas[k]
    n = replica.running
    a, g, limit = decode_times(state, k, n, replica.kv_tokens + n, replica.next_finish - replica.tick)
    steps = _steps_alike(state, k, c, limit)
    end = replica.clock + steps * a + 0.5 * g * steps * (steps - 1.0)
    if end > until:
        replica.quiet_until = end
    elif steps > 0:
        _leap(state, k, c, steps, a, g)
    return float(end)


@njit(inline=True)
def _steps_alike(state: State, k: int, c: int, limit: int) -> int:
    """The most decode iterations, up to `limit`, in which nothing but decoding can happen."""
    replica = state.replicas[k]
    n = replica.running
    steps = _steps_until_blocks_run_out(state, k, limit)
    if replica.caching and replica.waiting > 0 and n < replica.max_seqs and n < replica.token_budget:
        steps = prefix_cache.steps_before_hit(state, k, c, steps)
    return steps


@njit(inline=True)
def _leap(state: State, k: int, c: int, steps: int, a: float, g: float) -> None:
    """`steps` decode iterations at once, the i-th lasting a + g i."""
    replica = state.replicas[k]
    replica.free_blocks -= _blocks_for_steps(state, k, steps)
    if replica.caching:
        prefix_cache.extend_decodes(state, k, c, steps)
    replica.clock += steps * a + 0.5 * g * steps * (steps - 1.0)
    _decode_tokens(state, k, steps, a, g)
    if replica.tick == replica.next_finish:
        finish(state, k, c)


@njit(inline=True)
def _decode_tokens(state: State, k: int, steps: int, duration: float, growth: float) -> None:
    """Every decoding request gains `steps` tokens; the i-th iteration lasted duration + growth i."""
    replica = state.replicas[k]
    tokens = steps * (replica.running - replica.prefilling)
    replica.tick += steps
    replica.kv_tokens += tokens
    ledger.saw_iterations(state, k, steps, duration, growth)


@njit(inline=True)
def _blocks_for_steps(state: State, k: int, steps: int) -> int:
    """Blocks that the decoding slots take in the next `steps` iterations."""
    replica = state.replicas[k]
    size = replica.block_size
    blocks = (steps // size) * (replica.running - replica.prefilling)
    for i in range(steps % size):
        blocks += state.phases[k, (-(replica.tick + i)) % size]
    return blocks


@njit(inline=True)
def _steps_until_blocks_run_out(state: State, k: int, limit: int) -> int:
    """The most decode iterations, up to `limit`, that the free blocks allow."""
    replica = state.replicas[k]
    size = replica.block_size
    decoding = replica.running - replica.prefilling
    free = replica.free_blocks - (0 if replica.scheduler == VLLM else ONE_SPARE)
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


@njit(inline=True)
def schedule(state: State, k: int, c: int) -> None:
    """Form the batch of one iteration at the boundary and start it."""
    replica = state.replicas[k]
    if replica.scheduler == VLLM:
        scheduler_vllm.form_batch(state, k, c)
    elif replica.scheduler == SARATHI:
        scheduler_sarathi.form_batch(state, k, c)
    elif replica.scheduler == VLLM_V0:
        scheduler_vllm_v0.form_batch(state, k, c)
    else:
        scheduler_vidur_v1.form_batch(state, k, c)
    first_prefill = replica.running - replica.prefilling
    decoding = 0 if replica.stalled else first_prefill
    tokens = decoding
    sequences = decoding
    pairs = 0.0
    squares = 0
    behind = 0
    behind_rounded = 0
    for j in range(first_prefill, replica.running):
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
        replica.kv_tokens + decoding if decoding > 0 else 0,
        pairs,
        sequences - decoding,
        squares,
        behind,
        behind_rounded,
    )
    replica.duration = batch_time(state, k, batch)
    replica.clock += replica.duration
    replica.busy = True


@njit(inline=True)
def commit(state: State, k: int, c: int) -> None:
    """The iteration under way has ended: tokens appear, requests finish."""
    replica = state.replicas[k]
    replica.busy = False
    first_prefill = replica.running - replica.prefilling
    if first_prefill > 0 and not replica.stalled:
        _decode_tokens(state, k, 1, replica.duration, 0.0)
    else:
        ledger.saw_nothing(state, k)
    for j in range(first_prefill, replica.running):
        slot = state.slots[k, j]
        slot.left -= slot.chunk
        slot.chunk = 0
        if slot.left == 0:
            _start_decoding(state, k, c, j)
    if replica.tick == replica.next_finish:
        finish(state, k, c)


@njit(inline=True)
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


@njit(allocates=False)
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
            if replica.scheduler == VIDUR_V1:
                scheduler_vidur_v1.release(state, k, slot)
            else:
                prefix_cache.release(state, k, slot, request, in_kv)
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
