"""Features: a view as a (replicas, F) float32 array, normalised and free of any replica index.

One compiled function serves simulator and gateway. Constants are fixed, not learned: what acts, what
is trained and what is exported see the same numbers. Times are in the cluster's own unit, the decode
iteration of its fastest replica: where everything takes half as long, every feature is as before, and so
is the best decision. They stay linear or logarithmic, so that nothing saturates in the operating range.
Where answers are long, the expected ones become many times what most clusters show: those are `bounded`.
"""

import math

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view import work
from fairlead.view.preference import dial
from fairlead.view.schema import (
    AVAILABLE,
    AWAITING_FIRST_TOKEN,
    CONTEXT_TOKENS,
    DECODE_ITERATION_S,
    EXPECTED_OUTPUT_TOKENS,
    EXPECTED_PREFIX_HIT_TOKENS,
    EXPECTED_REMAINING_TOKENS,
    IN_FLIGHT,
    IN_FLIGHT_EWMA,
    ITL_EWMA_S,
    KV_CAPACITY_TOKENS,
    MAX_NUM_SEQS,
    OLDEST_WAIT_S,
    PENDING_PREFILL_TOKENS,
    PREFILL_TOKENS_PER_S,
    PROMPT_TOKENS,
    SCRAPE_AGE_S,
    SCRAPED_KV_USAGE,
    SCRAPED_PREFIX_HIT_RATE,
    SCRAPED_RUNNING,
    SCRAPED_WAITING,
    SESSION_HOME,
    SPEED,
    TTFT_EWMA_S,
    TTFT_TAIL_S,
    View,
    schema_hash,
)

NOMINAL_ITERATION_S = 0.01
"""Times are scaled as if this was what the fastest replica declares for a decode iteration."""

FEATURES: tuple[str, ...] = (
    "in_flight",
    "awaiting_first_token",
    "pending_prefill_time",
    "pending_prefill_above_least",
    "request_prefill_time",
    "decoding_requests",
    "decodes_delayed_time",
    "expected_remaining_bounded",
    "expected_decode_bounded",
    "expected_decode_above_least",
    "context_tokens",
    "kv_fraction",
    "oldest_wait",
    "ttft_ewma",
    "itl_ewma",
    "in_flight_trend",
    "decode_iteration",
    "speed",
    "batch_fraction",
    "scraped_running",
    "scraped_waiting",
    "scraped_kv_usage",
    "scrape_age",
    "prompt_tokens",
    "prompt_log",
    "expected_output_bounded",
    "available",
    "expected_hit",
    "hit_below_most",
    "prefill_with_own_above_least",
    "prefill_with_own_over_tail",
    "oldest_wait_over_tail",
    "ttft_tail",
    "tail_cost",
    "cost_above_least",
    "favor",
    "in_flight_above_holders",
    "kv_demand",
    "kv_demand_above_least",
    "uncached_by_batch_above_least",
    "decodes_delayed_above_least",
    "expected_remaining_above_least",
    "session_home",
    "prefix_hit_rate",
    "prompts_that_fit",
    "replicas",
    "moving_time",
    "sticky_work_above_least",
)
"""Names, in the order of the last axis."""

NUM_FEATURES = len(FEATURES)
SCHEMA_HASH = schema_hash(FEATURES)
"""Carried by every exported policy; another hash is refused."""


@njit(inline=True)
def bounded(value: float, most: float) -> float:
    """`value` up to `most`, from there on its logarithm, with the same slope at `most`.

    A network that learnt from values up to `most` makes anything of those far beyond (docs/experiments.md).
    """
    return value if value <= most else most * (1.0 + math.log(value / most))


@njit()
def in_own_time(
    replicas: npt.NDArray[np.float64], request: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """The replicas of a view (R, columns), and where its tail begins, in the cluster's own unit of time.

    All that is measured in seconds is multiplied by the same factor, rates are divided by it.
    """
    fastest = np.inf
    for r in range(replicas.shape[0]):
        fastest = min(fastest, replicas[r, DECODE_ITERATION_S])
    factor = NOMINAL_ITERATION_S / fastest
    scaled = replicas.copy()
    for r in range(replicas.shape[0]):
        row = scaled[r]
        row[OLDEST_WAIT_S] *= factor
        row[TTFT_EWMA_S] *= factor
        row[ITL_EWMA_S] *= factor
        row[SCRAPE_AGE_S] *= factor
        row[DECODE_ITERATION_S] *= factor
        row[PREFILL_TOKENS_PER_S] /= factor
    return scaled, factor * request[TTFT_TAIL_S]


@njit(inline=True)
def _cost(
    row: npt.NDArray[np.float64],
    request: npt.NDArray[np.float64],
    prefill: float,
    own: float,
    tail: float,
    weights: tuple[float, float, float],
) -> float:
    """What the request would add to the objective on this replica, on the back of an envelope.

    Prompts are taken to be prefilled one after the other, and requests that decode to stand still while the
    new one is prefilled; its tokens come at the pace of late, and what a fuller batch adds to that is paid
    for once more by the others.
    """
    first = prefill + own
    pace = max(row[ITL_EWMA_S], row[DECODE_ITERATION_S])
    decode = request[EXPECTED_OUTPUT_TOKENS] * (2.0 * pace - row[DECODE_ITERATION_S])
    delayed = (row[IN_FLIGHT] - row[AWAITING_FIRST_TOKEN]) * own
    late = max(0.0, first - tail)
    return float(weights[0] * first + weights[1] * (first + decode + delayed) + weights[2] * late)


@njit(inline=True)
def _kv_demand(row: npt.NDArray[np.float64], request: npt.NDArray[np.float64]) -> float:
    """Tokens that would be in the KV cache if all that is expected came at once, as a share of its size."""
    here = row[CONTEXT_TOKENS] + row[PENDING_PREFILL_TOKENS] + row[EXPECTED_REMAINING_TOKENS]
    own = max(request[PROMPT_TOKENS] - row[EXPECTED_PREFIX_HIT_TOKENS], 1.0) + request[EXPECTED_OUTPUT_TOKENS]
    return float((here + own) / row[KV_CAPACITY_TOKENS])


@njit(inline=True)
def _uncached_by_batch(row: npt.NDArray[np.float64], request: npt.NDArray[np.float64]) -> float:
    """Logarithm of what `lmetric` goes by: tokens to prefill, the request's own too, times the batch."""
    own = max(request[PROMPT_TOKENS] - row[EXPECTED_PREFIX_HIT_TOKENS], 1.0)
    return float(math.log((row[PENDING_PREFILL_TOKENS] + own) * (row[IN_FLIGHT] + 1.0)))


@njit(inline=True)
def _remaining(row: npt.NDArray[np.float64]) -> float:
    return float(math.log1p(row[EXPECTED_REMAINING_TOKENS] / 64.0))


@njit()
def features(
    replicas: npt.NDArray[np.float64],
    request: npt.NDArray[np.float64],
    favor: float,
    out: npt.NDArray[np.float32],
) -> None:
    """Write the features of one view: `replicas` (R, columns), `request` (columns,), `out` (R, F).

    `favor` is the operator's preference between end-to-end latency (0) and TTFT (1).
    """
    weights = dial(favor)
    prompt = request[PROMPT_TOKENS]
    rows, tail = in_own_time(replicas, request)
    tail = max(tail, 1e-3)
    least_prefill = np.inf
    least_cost = np.inf
    most_hit = 0.0
    least_decode = np.inf
    least_with_own = np.inf
    least_in_flight = np.inf
    least_demand = np.inf
    least_uncached = np.inf
    least_delayed = np.inf
    least_remaining = np.inf
    least_work = np.inf
    available = 0
    home = work.has_home(rows)
    for r in range(rows.shape[0]):
        row = rows[r]
        if row[AVAILABLE] == 0.0:
            continue
        available += 1
        prefill = row[PENDING_PREFILL_TOKENS] / row[PREFILL_TOKENS_PER_S]
        own = max(prompt - row[EXPECTED_PREFIX_HIT_TOKENS], 1.0) / row[PREFILL_TOKENS_PER_S]
        least_prefill = min(least_prefill, prefill)
        # Among those that hold most of the prompt: all of them, where nothing is cached.
        if row[EXPECTED_PREFIX_HIT_TOKENS] > most_hit:
            most_hit = row[EXPECTED_PREFIX_HIT_TOKENS]
            least_in_flight = row[IN_FLIGHT]
        elif row[EXPECTED_PREFIX_HIT_TOKENS] == most_hit:
            least_in_flight = min(least_in_flight, row[IN_FLIGHT])
        least_demand = min(least_demand, _kv_demand(row, request))
        least_uncached = min(least_uncached, _uncached_by_batch(row, request))
        least_delayed = min(least_delayed, (row[IN_FLIGHT] - row[AWAITING_FIRST_TOKEN]) * own)
        least_remaining = min(least_remaining, _remaining(row))
        least_with_own = min(least_with_own, prefill + own)
        least_decode = min(least_decode, row[EXPECTED_REMAINING_TOKENS] * row[DECODE_ITERATION_S])
        least_cost = min(least_cost, _cost(row, request, prefill, own, tail, weights))
        least_work = min(least_work, work.ahead_s(row, request) + work.moving_s(row, request, home))
    for r in range(rows.shape[0]):
        row = rows[r]
        prefill = row[PENDING_PREFILL_TOKENS] / row[PREFILL_TOKENS_PER_S]
        # Only what is not cached has to be computed, the last token always.
        own = max(prompt - row[EXPECTED_PREFIX_HIT_TOKENS], 1.0) / row[PREFILL_TOKENS_PER_S]
        decode = row[EXPECTED_REMAINING_TOKENS] * row[DECODE_ITERATION_S]
        decoding = row[IN_FLIGHT] - row[AWAITING_FIRST_TOKEN]
        to = out[r]
        to[0] = row[IN_FLIGHT] / 32.0
        to[1] = row[AWAITING_FIRST_TOKEN] / 4.0
        to[2] = 2.0 * prefill
        to[3] = 2.0 * (prefill - least_prefill)
        to[4] = 4.0 * own
        to[5] = decoding / 32.0
        to[6] = math.log1p(decoding * own)
        to[7] = bounded(row[EXPECTED_REMAINING_TOKENS] / 8192.0, 1.0)
        to[8] = bounded(decode / 64.0, 1.5)
        to[9] = (decode - least_decode) / 64.0
        to[10] = row[CONTEXT_TOKENS] / 65536.0
        to[11] = (row[CONTEXT_TOKENS] + row[PENDING_PREFILL_TOKENS]) / row[KV_CAPACITY_TOKENS]
        to[12] = math.log1p(row[OLDEST_WAIT_S])
        to[13] = math.log1p(row[TTFT_EWMA_S])
        to[14] = 16.0 * row[ITL_EWMA_S]
        to[15] = (row[IN_FLIGHT] - row[IN_FLIGHT_EWMA]) / 8.0
        to[16] = 32.0 * row[DECODE_ITERATION_S]
        to[17] = row[SPEED]
        to[18] = row[IN_FLIGHT] / row[MAX_NUM_SEQS]
        to[19] = row[SCRAPED_RUNNING] / 32.0
        to[20] = row[SCRAPED_WAITING] / 8.0
        to[21] = row[SCRAPED_KV_USAGE]
        to[22] = row[SCRAPE_AGE_S]
        to[23] = prompt / 2048.0
        to[24] = math.log1p(prompt) / 8.0
        to[25] = bounded(request[EXPECTED_OUTPUT_TOKENS] / 256.0, 1.5)
        to[26] = 1.0 if row[AVAILABLE] != 0.0 else 0.0
        to[27] = row[EXPECTED_PREFIX_HIT_TOKENS] / max(prompt, 1.0)
        # The logarithm tells a block less from none less, however long the prompt.
        to[28] = math.log1p(max(0.0, most_hit - row[EXPECTED_PREFIX_HIT_TOKENS])) / 8.0
        to[29] = 2.0 * (prefill + own - least_with_own)
        # What lengthens the tail is to wait longer than where it begins.
        to[30] = math.log1p((prefill + own) / tail)
        to[31] = math.log1p(row[OLDEST_WAIT_S] / tail)
        to[32] = math.log(tail)
        to[33] = math.log1p(weights[2] * max(0.0, prefill + own - tail))
        to[34] = math.log1p(max(0.0, _cost(row, request, prefill, own, tail, weights) - least_cost))
        # The weights grow with its fourth power; 1 is where the tail weighs 720.
        to[35] = 1.68 * favor
        to[36] = (row[IN_FLIGHT] - least_in_flight) / 8.0
        demand = _kv_demand(row, request)
        to[37] = demand
        to[38] = 4.0 * (demand - least_demand)
        to[39] = _uncached_by_batch(row, request) - least_uncached
        to[40] = decoding * own - least_delayed
        to[41] = _remaining(row) - least_remaining
        # Whether the conversation's request before went there, whatever is cached by now.
        to[42] = row[SESSION_HOME]
        to[43] = row[SCRAPED_PREFIX_HIT_RATE]
        # How soon a cache is full of prompts like this one.
        to[44] = math.log(row[KV_CAPACITY_TOKENS] / max(prompt, 1.0)) / 4.0
        to[45] = math.log(max(available, 1)) / 2.0
        moving = work.moving_s(row, request, home)
        to[46] = math.log1p(4.0 * max(moving, 0.0))
        to[47] = math.log1p(max(0.0, 4.0 * (work.ahead_s(row, request) + moving - least_work)))


@njit()
def _features_all(
    replicas: npt.NDArray[np.float64],
    request: npt.NDArray[np.float64],
    favor: npt.NDArray[np.float64],
    out: npt.NDArray[np.float32],
) -> None:
    # On one thread: even hundreds of views take less time than waking another one.
    for c in range(replicas.shape[0]):
        features(replicas[c], request[c], favor[c], out[c])


def features_batch(
    view: View, favor: npt.NDArray[np.float64] | float, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Features (K, R, F) of K views, written into `out` where given; `favor` is one number or (K,)."""
    if out is None:
        out = np.empty((*view.replicas.shape[:2], NUM_FEATURES), np.float32)
    dials = np.empty(len(view.request))
    dials[:] = favor
    _features_all(view.replicas, view.request, dials, out)
    return out
