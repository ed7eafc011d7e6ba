"""The router's ledger inside the simulator: what it forwarded and what it saw streamed back.

Updated by the engine at the moment at which the router would see the event. `write_view` turns it
into the columns of the view.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.simulator.state import NONE, State
from fairlead.view import schema

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


@njit()
def saw_iterations(replica: Any, steps: int, duration: float, growth: float) -> None:
    """Moving average of inter-token latency over iterations lasting duration + growth i, i < steps.

    The closed form of `steps` updates e += w (x_i - e): with q = 1 - w, the constant part gives
    duration (1 - q^steps), the growing part growth ((steps - 1) - q / w + q^steps / w).
    """
    if replica.itl_ewma == 0.0:
        replica.itl_ewma = duration
        duration += growth
        steps -= 1
        if steps == 0:
            return
    keep = math.exp(_LOG_KEEP * steps)
    ramp = (steps - 1.0) - (1.0 - ITL_WEIGHT) / ITL_WEIGHT + keep / ITL_WEIGHT
    replica.itl_ewma = keep * replica.itl_ewma + duration * (1.0 - keep) + growth * ramp


@njit()
def saw_first_token(replica: Any, cluster: Any, request: Any) -> None:
    """A request's first token has been streamed (at `request.first_token`)."""
    replica.awaiting -= 1
    replica.pending_tokens -= request.prompt
    replica.context_tokens += request.prompt + 1
    ttft = request.first_token - request.arrival
    if replica.ttft_ewma == 0.0:
        replica.ttft_ewma = ttft
    else:
        replica.ttft_ewma += TTFT_WEIGHT * (ttft - replica.ttft_ewma)
    cluster.first_tokens += 1
    cluster.first_token_times += request.first_token


@njit()
def saw_finish(replica: Any, cluster: Any, request: Any) -> None:
    """A request's last token has been streamed (at `request.finish`)."""
    replica.in_flight -= 1
    replica.context_tokens -= request.prompt + request.output
    cluster.finished += 1
    cluster.finished_tokens += request.output
    cluster.finishes += 1
    cluster.finish_times += request.finish


@njit()
def routed(state: State, k: int, c: int, i: int) -> None:
    """Request `i` has been forwarded to replica `k`."""
    replica = state.replicas[k]
    request = state.requests[c, i]
    replica.in_flight += 1
    replica.awaiting += 1
    replica.pending_tokens += request.prompt
    request.next_routed = NONE
    if replica.oldest == NONE:
        replica.oldest = i
    else:
        state.requests[c, replica.newest].next_routed = i
    replica.newest = i


@njit()
def expected_output(cluster: Any) -> float:
    """Running mean of the outputs of finished requests, with a prior."""
    return (PRIOR_OUTPUT_TOKENS * PRIOR_WEIGHT + cluster.finished_tokens) / (PRIOR_WEIGHT + cluster.finished)


@njit()
def expected_remaining(mean: float, streamed: float) -> float:
    """Expected tokens still to come of a request that has streamed `streamed` tokens."""
    return max(mean - streamed, LEAST_REMAINING * mean)


@njit()
def scrape(state: State, k: int) -> None:
    """What the replica's metrics endpoint reports at this moment."""
    replica = state.replicas[k]
    replica.scraped_running = replica.running
    replica.scraped_waiting = replica.waiting
    replica.scraped_kv_usage = 1.0 - replica.free_blocks / replica.kv_blocks
    replica.scraped_new_preemptions = replica.preemptions - replica.scraped_preemptions
    replica.scraped_preemptions = replica.preemptions


@njit()
def _oldest_wait(state: State, k: int, c: int, now: float) -> float:
    """Age of the oldest request without a first token (FCFS: it is the first routed without one)."""
    replica = state.replicas[k]
    i = replica.oldest
    while i != NONE and not math.isnan(state.requests[c, i].first_token):
        i = state.requests[c, i].next_routed
    replica.oldest = i
    if i == NONE:
        replica.newest = NONE
        return 0.0
    return now - state.requests[c, i].arrival


@njit()
def _expected_remaining_sum(state: State, k: int, c: int, mean: float) -> float:
    """Expected output still to come over all requests in flight on replica `k`."""
    replica = state.replicas[k]
    total = replica.awaiting * mean
    for j in range(replica.running - replica.prefilling):
        total += expected_remaining(mean, replica.tick - state.slots[k, j].zero_tick)
    if replica.interrupted > 0:
        # Preempted requests have streamed tokens too: they prefill again or lead the queue.
        for j in range(replica.running - replica.prefilling, replica.running):
            generated = state.requests[c, state.slots[k, j].request].generated
            if generated > 0:
                total += expected_remaining(mean, generated)
        i = replica.waiting_head
        for _ in range(replica.waiting):
            generated = state.requests[c, i].generated
            if generated > 0:
                total += expected_remaining(mean, generated)
            i = state.requests[c, i].next_waiting
    return total


@njit()
def write_view(
    state: State, c: int, replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> None:
    """Write cluster `c`'s view of now into `replicas` (R, columns) and `request` (columns,)."""
    cluster = state.clusters[c]
    now = cluster.now
    mean = expected_output(cluster)
    blend = 1.0 - math.exp(-(now - cluster.decided) / LOAD_HORIZON_S)
    count = replicas.shape[0]
    for r in range(count):
        k = c * count + r
        replica = state.replicas[k]
        replica.in_flight_ewma += blend * (replica.in_flight - replica.in_flight_ewma)
        row = replicas[r]
        row[schema.IN_FLIGHT] = replica.in_flight
        row[schema.AWAITING_FIRST_TOKEN] = replica.awaiting
        row[schema.PENDING_PREFILL_TOKENS] = replica.pending_tokens
        row[schema.CONTEXT_TOKENS] = replica.context_tokens
        row[schema.EXPECTED_REMAINING_TOKENS] = _expected_remaining_sum(state, k, c, mean)
        row[schema.OLDEST_WAIT_S] = _oldest_wait(state, k, c, now)
        row[schema.TTFT_EWMA_S] = replica.ttft_ewma
        row[schema.ITL_EWMA_S] = replica.itl_ewma
        row[schema.IN_FLIGHT_EWMA] = replica.in_flight_ewma
        row[schema.SCRAPED_RUNNING] = replica.scraped_running
        row[schema.SCRAPED_WAITING] = replica.scraped_waiting
        row[schema.SCRAPED_KV_USAGE] = replica.scraped_kv_usage
        row[schema.SCRAPED_PREEMPTIONS] = replica.scraped_new_preemptions
        row[schema.SCRAPE_AGE_S] = now - cluster.scraped_at
        for column in range(state.static.shape[1]):
            row[schema.SPEED + column] = state.static[k, column]
    request[schema.PROMPT_TOKENS] = state.requests[c, cluster.next_request].prompt
    request[schema.MAX_TOKENS] = cluster.max_tokens
    request[schema.EXPECTED_OUTPUT_TOKENS] = mean
