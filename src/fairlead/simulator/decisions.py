"""One cluster, compiled: from each decision to the next, and its end; and the same for all at once."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit, prange, signed
from fairlead.simulator import engine, ledger, outage
from fairlead.simulator.state import NONE, State
from fairlead.view.tail import excess


@njit(allocates=False)
def observe(
    state: State,
    c: int,
    counting: bool,
    replicas: npt.NDArray[np.float64],
    request: npt.NDArray[np.float64],
) -> bool:
    """Bring cluster `c` to its next decision and write its view; False if there is none any more.

    If the router is `counting`, it reads only the columns of `ledger.write_counts`; the others are stale.
    """
    if not next_decision(state, c, replicas.shape[0], counting):
        return False
    if counting:
        ledger.write_counts(state, c, replicas, request)
    else:
        ledger.write_view(state, c, replicas, request)
    return True


@njit(allocates=False)
def observe_one(
    state: State, c: int, replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> bool:
    """As `observe`, with the whole view."""
    return observe(state, c, False, replicas, request)


@njit(allocates=False)
def next_decision(state: State, c: int, count: int, counting: bool) -> bool:
    """Let everything happen up to the next moment at which a request can be sent to a replica.

    Requests that were lost come first, then arrivals, both in order of arrival. Events at the same time
    come before decisions, so that no request is sent to a replica that dies at that very moment.

    For a `counting` router, replicas that merely decode are left behind until something that counts happens
    there, so that an arrival costs no more than the replica that it goes to; and nothing is scraped.
    """
    cluster = state.clusters[c]
    total = state.requests.shape[1]
    while True:
        i = cluster.retry_head
        if i == NONE and cluster.next_request < total:
            i = cluster.next_request
        due = np.inf
        if i != NONE and cluster.available > 0:
            due = max(cluster.now, state.requests[c, i].arrival)
        event = state.events[c, cluster.next_event].time
        if event < np.inf and event <= due:
            advance_cluster(state, c, count, event)
            outage.change(state, c, count)
            continue
        if due == np.inf:
            cluster.at_hand = NONE
            return False
        if counting:
            for k in range(c * count, (c + 1) * count):
                engine.advance_counts(state, k, c, due)
        else:
            advance_cluster(state, c, count, due)
        cluster.now = due
        cluster.at_hand = i
        while cluster.arrived < total and state.requests[c, cluster.arrived].arrival < due:
            # It came while no replica was there: it has been waiting, here, since then.
            cluster.entered += 1
            cluster.entered_times += state.requests[c, cluster.arrived].arrival
            cluster.arrived += 1
        return True


@njit(allocates=False)
def last_multiple(interval: float, now: float) -> float:
    """The last whole multiple of `interval` that is not after `now`."""
    j = math.floor(now / interval)
    # The quotient may have been rounded to either side of a whole number.
    if j * interval > now:
        j -= 1
    elif (j + 1) * interval <= now:
        j += 1
    return j * interval


@njit(allocates=False)
def advance_cluster(state: State, c: int, count: int, now: float) -> None:
    """Bring all `count` replicas of cluster `c` to `now`, with the scrapes that fall before it.

    Only the last scrape before `now` is materialised: nobody sees the others.
    """
    cluster = state.clusters[c]
    interval = cluster.scrape_interval
    at = last_multiple(interval, now)
    if at > cluster.scraped_at:
        for k in range(c * count, (c + 1) * count):
            engine.advance(state, k, c, at)
            ledger.scrape(state, k, at)
        cluster.scraped_at = at
    for k in range(c * count, (c + 1) * count):
        engine.advance(state, k, c, now)


@njit(allocates=False)
def route_one(state: State, c: int, count: int, action: int) -> bool:
    """Send cluster `c`'s request at hand, if any, to its replica `action`; False if that is not available."""
    cluster = state.clusters[c]
    k = c * count + action
    i = cluster.at_hand
    if i == NONE:
        return True
    if not state.replicas[k].available:
        return False
    request = state.requests[c, i]
    if i == cluster.retry_head:
        cluster.retry_head = request.next_waiting
    else:
        cluster.next_request += 1
    cluster.at_hand = NONE
    request.replica = action
    request.sent = cluster.now
    if request.home != 0:
        state.homes[c, request.home] = action
    state.routers[c, request.router].decisions += 1
    engine.enqueue(state, k, c, i)
    ledger.routed(state, k, c, i)
    if i == cluster.arrived:
        cluster.arrived += 1
        cluster.awaiting += 1
        cluster.in_system += 1
    cluster.decided = cluster.now
    while cluster.oldest_awaiting < cluster.arrived:
        if math.isnan(state.requests[c, cluster.oldest_awaiting].first_token):
            break
        cluster.oldest_awaiting += 1
    cluster.awaiting += cluster.entered - cluster.first_tokens
    cluster.in_system += cluster.entered - cluster.finishes
    cluster.entered = 0
    cluster.entered_times = 0.0
    cluster.first_tokens = 0
    cluster.first_token_times = 0.0
    cluster.tail_cost = 0.0
    cluster.finishes = 0
    cluster.finish_times = 0.0
    return True


@njit(parallel=True)
def observe_all(state: State, replicas: npt.NDArray[Any], request: npt.NDArray[Any]) -> None:
    """`observe_one` for every cluster."""
    for index in prange(state.clusters.shape[0]):
        c = signed(index)
        observe_one(state, c, replicas[c], request[c])


@njit()
def observe_few(state: State, replicas: npt.NDArray[Any], request: npt.NDArray[Any]) -> None:
    """`observe_one` for every cluster, on one thread."""
    for c in range(state.clusters.shape[0]):
        observe_one(state, c, replicas[c], request[c])


@njit()
def route_all(state: State, count: int, actions: npt.NDArray[np.int64]) -> int:
    """`route_one` for every cluster, up to the first one whose action is refused: that one, or NONE."""
    for c in range(state.clusters.shape[0]):
        if not route_one(state, c, count, actions[c]):
            return c
    return NONE


@njit(allocates=False)
def drain_one(state: State, c: int, count: int) -> None:
    """Let every replica of cluster `c` finish what it has."""
    for k in range(c * count, (c + 1) * count):
        engine.advance(state, k, c, np.inf)


@njit(parallel=True)
def drain_all(state: State, count: int) -> None:
    """`drain_one` for every cluster."""
    for index in prange(state.clusters.shape[0]):
        c = signed(index)
        drain_one(state, c, count)


@njit()
def waiting_areas(state: State, now: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> None:
    """Integrals since the last decision of (requests awaiting their first token, requests in system).

    `now` (K,) is the time up to which the clusters were advanced; `out` is (K, 3), in request-seconds. Third
    comes what they cost by the tail (`view.tail.tail_cost`), which begins at `tail_begins`: each second that
    a request waits beyond that, and a little for each first token.
    Exact: a count that falls by one at time x contributes (now - x) less than had it not fallen, and one that
    rises contributes (now - x) more. A request that is lost after its first token takes that event back, with
    what it cost by the tail: it has been waiting for its first token all along.
    """
    for c in range(state.clusters.shape[0]):
        cluster = state.clusters[c]
        span = now[c] - cluster.decided
        entered = cluster.entered * now[c] - cluster.entered_times
        out[c, 0] = cluster.awaiting * span - cluster.first_tokens * now[c] + cluster.first_token_times
        out[c, 1] = cluster.in_system * span - cluster.finishes * now[c] + cluster.finish_times
        out[c, 0] += entered
        out[c, 1] += entered
        out[c, 2] = cluster.tail_cost + _late(state, c, now[c])


@njit(allocates=False)
def _late(state: State, c: int, now: float) -> float:
    """Request-seconds since the last decision beyond where the tail begins, of those that still wait."""
    cluster = state.clusters[c]
    total = 0.0
    for i in range(cluster.oldest_awaiting, cluster.arrived):
        request = state.requests[c, i]
        if math.isnan(request.first_token):
            total += excess(now - request.arrival, cluster.tail_begins)
            total -= excess(cluster.decided - request.arrival, cluster.tail_begins)
    return total
