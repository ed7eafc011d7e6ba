"""Replicas that slow down, die and return, and what becomes of their requests; compiled.

`docs/simulator.md`, section 5, states the rules.
"""

import math

from fairlead.compiled import njit
from fairlead.simulator import block_pool, ledger
from fairlead.simulator.state import NEVER, NONE, State
from fairlead.view.tail import excess, tail_cost


@njit(allocates=False)
def change(state: State, c: int, count: int) -> None:
    """Apply the next event of cluster `c`, whose `count` replicas have been brought to its time."""
    cluster = state.clusters[c]
    event = state.events[c, cluster.next_event]
    cluster.next_event += 1
    cluster.now = event.time
    k = c * count + event.replica
    replica = state.replicas[k]
    replica.pace = event.pace
    if replica.available and not event.up:
        replica.available = False
        cluster.available -= 1
        _lose_all(state, k, c)
    elif event.up and not replica.available:
        replica.available = True
        cluster.available += 1


@njit(allocates=False)
def _lose_all(state: State, k: int, c: int) -> None:
    """All requests of replica `k` go back to their routers; it holds nothing any more."""
    replica = state.replicas[k]
    for j in range(replica.running):
        _lose(state, c, state.slots[k, j].request)
    i = replica.waiting_head
    for _ in range(replica.waiting):
        following = state.requests[c, i].next_waiting
        _lose(state, c, i)
        i = following
    replica.busy = False
    replica.running = 0
    replica.prefilling = 0
    replica.next_finish = NEVER
    replica.kv_tokens = 0
    replica.free_blocks = replica.kv_blocks
    replica.waiting = 0
    replica.waiting_head = NONE
    replica.waiting_tail = NONE
    replica.interrupted = 0
    replica.stalled = False
    replica.partial_first = False
    for phase in range(state.phases.shape[1]):
        state.phases[k, phase] = 0
    if replica.caching:
        block_pool.clear_pool(state, k, replica.kv_blocks)
    ledger.lost_all(state, k)


@njit(allocates=False)
def _lose(state: State, c: int, i: int) -> None:
    """Request `i` is to be decided anew and served from the start; such wait in order of arrival."""
    cluster = state.clusters[c]
    request = state.requests[c, i]
    if not math.isnan(request.first_token):
        # The time since its first token counts as waiting for it after all: its event is taken back.
        cluster.first_tokens -= 1
        cluster.first_token_times -= request.first_token
        cluster.tail_cost += excess(cluster.decided - request.arrival, cluster.tail_begins)
        cluster.tail_cost -= tail_cost(request.first_token - request.arrival, cluster.tail_begins)
        cluster.oldest_awaiting = min(cluster.oldest_awaiting, i)
        request.first_token = math.nan
    request.scheduled = math.nan
    request.generated = 0
    request.replica = NONE
    request.retries += 1
    if cluster.retry_head == NONE or i < cluster.retry_head:
        request.next_waiting = cluster.retry_head
        cluster.retry_head = i
        return
    before = cluster.retry_head
    while True:
        following = state.requests[c, before].next_waiting
        if following == NONE or following > i:
            break
        before = following
    state.requests[c, before].next_waiting = i
    request.next_waiting = following
