"""What a router may know: the columns of the view, each with unit, source and freshness.

The simulator writes these columns, the gateway writes the same ones, and a policy reads nothing
else. The true output length of a request in flight is in none of them.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.view.preference import DIAL


class Column(NamedTuple):
    """One named quantity of the view."""

    name: str
    unit: str
    source: str
    """`ledger` (exact, now), `scraped` (as of the last scrape), `static` or `request`."""
    meaning: str


REPLICA_COLUMNS: tuple[Column, ...] = (
    Column("in_flight", "requests", "ledger", "forwarded and not finished"),
    Column("awaiting_first_token", "requests", "ledger", "in flight without a first token"),
    Column(
        "pending_prefill_tokens",
        "tokens",
        "ledger",
        "prompt tokens of those, less what was expected to be cached when they were sent",
    ),
    Column("context_tokens", "tokens", "ledger", "prompt + streamed, of those with a first token"),
    Column(
        "expected_remaining_tokens",
        "tokens",
        "ledger",
        "expected output still to come, over all in flight",
    ),
    Column("oldest_wait_s", "s", "ledger", "age of the oldest request without a first token"),
    Column("ttft_ewma_s", "s", "ledger", "moving average over first tokens (0 before the first)"),
    Column("itl_ewma_s", "s", "ledger", "moving average over iterations (0 before the first)"),
    Column("in_flight_ewma", "requests", "ledger", "time-decayed average of in_flight"),
    Column(
        "expected_prefix_hit_tokens",
        "tokens",
        "ledger",
        "prompt tokens believed to be cached there, from the prompts sent there",
    ),
    Column("session_home", "1 or 0", "ledger", "whether the conversation's request before was sent there"),
    Column("scraped_running", "requests", "scraped", "num_requests_running"),
    Column("scraped_waiting", "requests", "scraped", "num_requests_waiting"),
    Column("scraped_kv_usage", "fraction", "scraped", "kv_cache_usage_perc"),
    Column("scraped_preemptions", "requests", "scraped", "preemptions between the last two scrapes"),
    Column(
        "scraped_prefix_hit_rate",
        "fraction",
        "scraped",
        "prompt tokens found in the prefix cache between the last two scrapes",
    ),
    Column("scrape_age_s", "s", "scraped", "time since the last scrape"),
    Column(
        "speed",
        "ratio",
        "static",
        "declared speed relative to the reference replica, less where it is seen to be slower (`view.pace`)",
    ),
    Column("prefill_tokens_per_s", "tokens/s", "static", "declared prefill rate, likewise"),
    Column(
        "decode_iteration_s", "s", "static", "declared time of a decode iteration, batch of one, likewise"
    ),
    Column("kv_capacity_tokens", "tokens", "static", "size of the KV cache"),
    Column("max_num_seqs", "requests", "static", "largest running batch"),
    Column("available", "1 or 0", "ledger", "whether it takes requests: others must not be chosen"),
)

REQUEST_COLUMNS: tuple[Column, ...] = (
    Column("prompt_tokens", "tokens", "request", "length of the prompt"),
    Column("max_tokens", "tokens", "request", "the client's limit on the output (0: none given)"),
    Column("expected_output_tokens", "tokens", "request", "mean output of finished requests"),
    Column("session", "number", "request", "the same for all turns of a conversation (0: none)"),
    Column("ttft_tail_s", "s", "ledger", "where the worst 2 % of the router's recent TTFTs begin"),
)

NUM_REPLICA_COLUMNS = len(REPLICA_COLUMNS)
NUM_REQUEST_COLUMNS = len(REQUEST_COLUMNS)

# Column indices, for compiled code (module constants are frozen into the kernels).
(
    IN_FLIGHT,
    AWAITING_FIRST_TOKEN,
    PENDING_PREFILL_TOKENS,
    CONTEXT_TOKENS,
    EXPECTED_REMAINING_TOKENS,
    OLDEST_WAIT_S,
    TTFT_EWMA_S,
    ITL_EWMA_S,
    IN_FLIGHT_EWMA,
    EXPECTED_PREFIX_HIT_TOKENS,
    SESSION_HOME,
    SCRAPED_RUNNING,
    SCRAPED_WAITING,
    SCRAPED_KV_USAGE,
    SCRAPED_PREEMPTIONS,
    SCRAPED_PREFIX_HIT_RATE,
    SCRAPE_AGE_S,
    SPEED,
    PREFILL_TOKENS_PER_S,
    DECODE_ITERATION_S,
    KV_CAPACITY_TOKENS,
    MAX_NUM_SEQS,
    AVAILABLE,
) = range(NUM_REPLICA_COLUMNS)

PROMPT_TOKENS, MAX_TOKENS, EXPECTED_OUTPUT_TOKENS, SESSION, TTFT_TAIL_S = range(NUM_REQUEST_COLUMNS)


class View(NamedTuple):
    """What the routers of K clusters know when each has one request to place."""

    replicas: npt.NDArray[np.float64]
    """(K, R, NUM_REPLICA_COLUMNS), columns as in `REPLICA_COLUMNS`."""
    request: npt.NDArray[np.float64]
    """(K, NUM_REQUEST_COLUMNS), columns as in `REQUEST_COLUMNS`."""


def schema_hash(features: tuple[str, ...]) -> str:
    """A short hash of the view's columns, of the feature names built from them, and of what the dial weighs.

    An exported policy carries it; a policy with another hash is refused. The dial counts where it is a
    feature: a policy asks for the weights it was trained for by that number.
    """
    text = repr((REPLICA_COLUMNS, REQUEST_COLUMNS, features, *(DIAL if "favor" in features else ())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
