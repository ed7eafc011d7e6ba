"""The routers' ledgers inside the simulator: what each forwarded and what it saw streamed back.

Updated by the engine at the moment at which the router of the request would see the event. `write_view`
turns one router's ledger into the columns of its view.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.simulator.state import NONE, State
from fairlead.view import pace, prefixes, schema
from fairlead.view.tail import excess, forget_and_find, tail_bin, tail_cost

TTFT_WEIGHT = 0.2
"""Weight of a new sample in `ttft_ewma_s`."""
ITL_WEIGHT = 0.05
"""Weight of a new iteration in `itl_ewma_s`."""
LOAD_HORIZON_S = 5.0
"""Time constant of `in_flight_ewma`."""
PRIOR_OUTPUT_TOKENS = 256.0
"""Expected output before any request has finished."""
PRIOR_WEIGHT = 8.0
"""Number of finished requests that the prior counts as."""
LEAST_REMAINING = 0.3
"""A request that outlived its expected output is expected to go on for this fraction of it."""

_LOG_KEEP = math.log(1.0 - ITL_WEIGHT)
_LOG_KEPT = math.log(pace.KEPT)

# Columns of `State.static`.
PREFILL_RATE = schema.PREFILL_TOKENS_PER_S - schema.SPEED
DECODE_ITERATION = schema.DECODE_ITERATION_S - schema.SPEED


@njit(inline=True)
def saw_iterations(state: State, k: int, steps: int, duration: float, growth: float) -> None:
    """Every decoding request of replica `k` streamed a token in each of `steps` iterations."""
    for m in range(state.ledgers.shape[1]):
        own = state.ledgers[k, m]
        own.heard = own.decoding > 0
        if own.heard:
            _average_latency(own, steps, duration, growth)
            _reckon(own, steps, duration, growth, state.static[k, DECODE_ITERATION])
            own.context_tokens += steps * own.decoding


@njit(inline=True)
def saw_nothing(state: State, k: int) -> None:
    """An iteration of replica `k` only read prompts: nobody can tell how long it took."""
    for m in range(state.ledgers.shape[1]):
        state.ledgers[k, m].heard = False


@njit(inline=True)
def _average_latency(own: Any, steps: int, duration: float, growth: float) -> None:
    """Moving average of inter-token latency over iterations lasting duration + growth i, i < steps.

    The closed form of `steps` updates e += w (x_i - e): with q = 1 - w, the constant part gives
    duration (1 - q^steps), the growing part growth ((steps - 1) - q / w + q^steps / w).
    """
    if own.itl_ewma == 0.0:
        own.itl_ewma = duration
        duration += growth
        steps -= 1
        if steps == 0:
            return
    keep = math.exp(_LOG_KEEP * steps)
    ramp = (steps - 1.0) - (1.0 - ITL_WEIGHT) / ITL_WEIGHT + keep / ITL_WEIGHT
    own.itl_ewma = keep * own.itl_ewma + duration * (1.0 - keep) + growth * ramp


@njit(inline=True)
def _reckon(own: Any, steps: int, duration: float, growth: float, decode_iteration_s: float) -> None:
    """Iterations that last duration + growth i, i < steps, beside how long they should have lasted.

    The closed form of `steps` updates s = q s + x_i, for both sums of `view.pace`.
    """
    kept = math.exp(_LOG_KEPT * steps)
    ones = (1.0 - kept) / (1.0 - pace.KEPT)
    ramp = (steps - ones) / (1.0 - pace.KEPT)
    speaking = own.in_flight - own.awaiting  # with those that are preempted: a router cannot tell
    due = pace.due_of_iteration(decode_iteration_s, speaking, own.context_tokens)
    own.took = kept * own.took + duration * ones + growth * ramp
    own.due = kept * own.due + due * ones + pace.due_growth(decode_iteration_s, own.decoding) * ramp


@njit(inline=True)
def saw_first_token(state: State, k: int, c: int, request: Any) -> None:
    """A request's first token has been streamed (at `request.first_token`)."""
    own = state.ledgers[k, request.router]
    cluster = state.clusters[c]
    own.awaiting -= 1
    own.pending_tokens -= request.estimate - request.expected_hit
    if own.heard:  # its prompt was read in iterations that others showed
        own.due += (request.estimate - request.expected_hit) / state.static[k, PREFILL_RATE]
    own.context_tokens += request.estimate + 1
    ttft = request.first_token - request.sent
    if own.ttft_ewma == 0.0:
        own.ttft_ewma = ttft
    else:
        own.ttft_ewma += TTFT_WEIGHT * (ttft - own.ttft_ewma)
    router = state.routers[c, request.router]
    router.ttft_counts[tail_bin(ttft)] += 1.0
    cluster.first_tokens += 1
    cluster.first_token_times += request.first_token
    cluster.tail_cost += tail_cost(request.first_token - request.arrival, cluster.tail_begins)
    # What it waited too long up to the last decision has been charged.
    cluster.tail_cost -= excess(cluster.decided - request.arrival, cluster.tail_begins)


@njit(inline=True)
def saw_finish(state: State, k: int, c: int, request: Any) -> None:
    """A request's last token has been streamed (at `request.finish`)."""
    own = state.ledgers[k, request.router]
    router = state.routers[c, request.router]
    cluster = state.clusters[c]
    own.in_flight -= 1
    own.decoding -= 1
    own.context_tokens -= request.estimate + request.output
    router.finished += 1
    router.finished_tokens += request.output
    cluster.finishes += 1
    cluster.finish_times += request.finish
    if state.replicas[k].caching:
        row, size = k * state.ledgers.shape[1] + request.router, state.replicas[k].block_size
        blocks = request.prompt // size
        # The last token of an answer is never computed.
        answer = (request.prompt + request.output - 1) // size - blocks
        prefixes.answered(state, row, state.contents, request.content, blocks, request.session, answer)


@njit(inline=True)
def routed(state: State, k: int, c: int, i: int) -> None:
    """Request `i` has been forwarded to replica `k`."""
    request = state.requests[c, i]
    own = state.ledgers[k, request.router]
    request.expected_hit = expected_hit(state, k, request)
    if state.replicas[k].caching:
        memory_row = k * state.ledgers.shape[1] + request.router
        blocks = request.prompt // state.replicas[k].block_size
        prefixes.remember(state, memory_row, state.contents, request.content, blocks, request.session)
    own.in_flight += 1
    own.awaiting += 1
    own.pending_tokens += request.estimate - request.expected_hit
    request.next_routed = NONE
    if own.oldest == NONE:
        own.oldest = i
    else:
        state.requests[c, own.newest].next_routed = i
    own.newest = i


@njit(allocates=False)
def lost_all(state: State, k: int) -> None:
    """Replica `k` has died: nothing is in flight there any more. What was learnt about it stays."""
    for m in range(state.ledgers.shape[1]):
        own = state.ledgers[k, m]
        own.in_flight = 0
        own.awaiting = 0
        own.decoding = 0
        own.pending_tokens = 0
        own.context_tokens = 0
        own.took = 0.0  # of prompts that were half read nothing was due
        own.due = 0.0
        own.oldest = NONE
        own.newest = NONE
        prefixes.forget_row(state, k * state.ledgers.shape[1] + m)


@njit(allocates=False)
def expected_hit(state: State, k: int, request: Any) -> int:
    """Prompt tokens that the request's router believes replica `k` to have cached, in whole blocks.

    The last token never is, neither the true one nor that of the router's estimate of the prompt.
    """
    replica = state.replicas[k]
    if not replica.caching:
        return 0
    memory_row = k * state.ledgers.shape[1] + request.router
    most = (min(request.prompt, request.estimate) - 1) // replica.block_size
    found = prefixes.expected_hit(state, memory_row, state.contents, request.content, most, request.session)
    return int(found * replica.block_size)


@njit(inline=True)
def expected_output(router: Any) -> float:
    """Running mean of the outputs of the router's finished requests, with a prior."""
    return (PRIOR_OUTPUT_TOKENS * PRIOR_WEIGHT + router.finished_tokens) / (PRIOR_WEIGHT + router.finished)


@njit(inline=True)
def expected_remaining(mean: float, streamed: float) -> float:
    """Expected tokens still to come of a request that has streamed `streamed` tokens."""
    return max(mean - streamed, LEAST_REMAINING * mean)


@njit(allocates=False)
def scrape(state: State, k: int, now: float) -> None:
    """What the replica's metrics endpoint reports at `now`; that of a dead one does not answer."""
    replica = state.replicas[k]
    if not replica.available:
        return
    replica.scraped_at = now
    replica.scraped_running = replica.running
    replica.scraped_waiting = replica.waiting
    replica.scraped_kv_usage = 1.0 - replica.free_blocks / replica.kv_blocks
    replica.scraped_new_preemptions = replica.preemptions - replica.scraped_preemptions
    replica.scraped_preemptions = replica.preemptions
    queried = replica.queried_tokens - replica.scraped_queried_tokens
    if queried > 0:
        replica.scraped_hit_rate = (replica.hit_tokens - replica.scraped_hit_tokens) / queried
    replica.scraped_queried_tokens = replica.queried_tokens
    replica.scraped_hit_tokens = replica.hit_tokens


@njit(allocates=False)
def _oldest_wait(state: State, k: int, c: int, m: int, now: float) -> float:
    """Age, since it was sent, of router `m`'s oldest request without a first token there."""
    own = state.ledgers[k, m]
    i = own.oldest
    while i != NONE and not math.isnan(state.requests[c, i].first_token):
        i = state.requests[c, i].next_routed
    own.oldest = i
    if i == NONE:
        own.newest = NONE
        return 0.0
    return now - state.requests[c, i].sent


@njit(allocates=False)
def _expected_remaining_sum(state: State, k: int, c: int, m: int, mean: float) -> float:
    """Expected output still to come over all requests that router `m` has in flight on replica `k`."""
    replica = state.replicas[k]
    total = state.ledgers[k, m].awaiting * mean
    for j in range(replica.running - replica.prefilling):
        slot = state.slots[k, j]
        if slot.router == m:
            total += expected_remaining(mean, replica.tick - slot.zero_tick)
    if replica.interrupted > 0:
        # Preempted requests have streamed tokens too: they prefill again or lead the queue.
        for j in range(replica.running - replica.prefilling, replica.running):
            request = state.requests[c, state.slots[k, j].request]
            if request.router == m and request.generated > 0:
                total += expected_remaining(mean, request.generated)
        i = replica.waiting_head
        for _ in range(replica.waiting):
            request = state.requests[c, i]
            if request.router == m and request.generated > 0:
                total += expected_remaining(mean, request.generated)
            i = request.next_waiting
    return total


@njit(allocates=False)
def write_view(
    state: State, c: int, replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> None:
    """Write what the router at hand knows now into `replicas` (R, columns) and `request` (columns,)."""
    cluster = state.clusters[c]
    now = cluster.now
    waiting = state.requests[c, cluster.at_hand]
    m = waiting.router
    router = state.routers[c, m]
    mean = expected_output(router)
    blend = 1.0 - math.exp(-(now - router.decided) / LOAD_HORIZON_S)
    router.decided = now
    home = NONE if waiting.home == 0 else state.homes[c, waiting.home]
    count = replicas.shape[0]
    for r in range(count):
        k = c * count + r
        replica = state.replicas[k]
        own = state.ledgers[k, m]
        own.in_flight_ewma += blend * (own.in_flight - own.in_flight_ewma)
        row = replicas[r]
        row[schema.IN_FLIGHT] = own.in_flight
        row[schema.AWAITING_FIRST_TOKEN] = own.awaiting
        row[schema.PENDING_PREFILL_TOKENS] = own.pending_tokens
        row[schema.CONTEXT_TOKENS] = own.context_tokens
        row[schema.EXPECTED_REMAINING_TOKENS] = _expected_remaining_sum(state, k, c, m, mean)
        row[schema.OLDEST_WAIT_S] = _oldest_wait(state, k, c, m, now)
        row[schema.TTFT_EWMA_S] = own.ttft_ewma
        row[schema.ITL_EWMA_S] = own.itl_ewma
        row[schema.IN_FLIGHT_EWMA] = own.in_flight_ewma
        row[schema.EXPECTED_PREFIX_HIT_TOKENS] = expected_hit(state, k, waiting)
        row[schema.SESSION_HOME] = 1.0 if home == r else 0.0
        row[schema.SCRAPED_RUNNING] = replica.scraped_running
        row[schema.SCRAPED_WAITING] = replica.scraped_waiting
        row[schema.SCRAPED_KV_USAGE] = replica.scraped_kv_usage
        row[schema.SCRAPED_PREEMPTIONS] = replica.scraped_new_preemptions
        row[schema.SCRAPED_PREFIX_HIT_RATE] = replica.scraped_hit_rate
        row[schema.SCRAPE_AGE_S] = now - replica.scraped_at
        for column in range(state.static.shape[1]):
            row[schema.SPEED + column] = state.static[k, column]
        row[schema.AVAILABLE] = 1.0 if replica.available else 0.0
    _correct_speeds(state, c, m, replicas)
    request[schema.PROMPT_TOKENS] = waiting.estimate
    request[schema.MAX_TOKENS] = cluster.max_tokens
    request[schema.EXPECTED_OUTPUT_TOKENS] = mean
    request[schema.SESSION] = waiting.session
    router.ttft_tail = forget_and_find(router.ttft_counts)
    request[schema.TTFT_TAIL_S] = router.ttft_tail


@njit(allocates=False)
def _correct_speeds(state: State, c: int, m: int, replicas: npt.NDArray[np.float64]) -> None:
    """The columns that declare speeds, by the paces of the replicas that take requests."""
    count = replicas.shape[0]
    took, due = 0.0, 0.0
    for r in range(count):
        if state.replicas[c * count + r].available:
            took += state.ledgers[c * count + r, m].took
            due += state.ledgers[c * count + r, m].due
    common = pace.common_pace(took, due)
    fastest = np.inf
    for r in range(count):
        if state.replicas[c * count + r].available:
            fastest = min(fastest, _pace(state, c * count + r, m, common))
    for r in range(count):
        pace.slow_down(replicas[r], _pace(state, c * count + r, m, common) / fastest)


@njit(inline=True)
def _pace(state: State, k: int, m: int, common: float) -> float:
    own = state.ledgers[k, m]
    return float(pace.pace(own.took, own.due, state.static[k, DECODE_ITERATION], common))


@njit(inline=True)
def write_counts(
    state: State, c: int, replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> None:
    """The columns of `write_view` that change only with a first token or a finish.

    Where the tail of TTFTs begins is not found anew, since nobody who counts reads it: it is as of the last
    whole view, or the prior.
    """
    cluster = state.clusters[c]
    waiting = state.requests[c, cluster.at_hand]
    m = waiting.router
    home = NONE if waiting.home == 0 else state.homes[c, waiting.home]
    count = replicas.shape[0]
    for r in range(count):
        k = c * count + r
        own = state.ledgers[k, m]
        row = replicas[r]
        row[schema.IN_FLIGHT] = own.in_flight
        row[schema.AWAITING_FIRST_TOKEN] = own.awaiting
        row[schema.PENDING_PREFILL_TOKENS] = own.pending_tokens
        row[schema.SESSION_HOME] = 1.0 if home == r else 0.0
        row[schema.AVAILABLE] = 1.0 if state.replicas[k].available else 0.0
    request[schema.PROMPT_TOKENS] = waiting.estimate
    request[schema.MAX_TOKENS] = cluster.max_tokens
    request[schema.EXPECTED_OUTPUT_TOKENS] = expected_output(state.routers[c, m])
    request[schema.SESSION] = waiting.session
    request[schema.TTFT_TAIL_S] = state.routers[c, m].ttft_tail
