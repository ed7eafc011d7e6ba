"""What backends report of themselves: Prometheus text from `/metrics`, and ORCA headers on answers."""

import math
import re
from typing import NamedTuple

# One pass over the text (some 50 kB, 1 % of it wanted): the wanted names at line starts, with their labels.
# To begin with the end of the line before is nine times as fast as `^`: requests wait meanwhile.
_LINES = re.compile(
    rb"\nvllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    rb"|num_preemptions_total|prefix_cache_hits_total|prefix_cache_queries_total|cache_config_info)"
    rb"(\{[^\n]*\})? +(\S+)"
)
_BLOCK_SIZE = re.compile(rb'[{,]block_size="(\d+)"')
_NUM_BLOCKS = re.compile(rb'[{,]num_gpu_blocks="(\d+)"')
_NOT_CACHING = re.compile(rb'[{,]enable_prefix_caching="False"')
_ORCA = re.compile(rb"named_metrics\.(num_requests_waiting|kv_cache_usage_perc) *= *([0-9.eE+-]+)")


class Reading(NamedTuple):
    """One reading of a backend's metrics."""

    running: float
    """`vllm:num_requests_running`, summed over engines."""
    waiting: float
    """`vllm:num_requests_waiting`, likewise."""
    kv_usage: float
    """`vllm:kv_cache_usage_perc` in [0, 1], the largest over engines."""
    preemptions: float
    """`vllm:num_preemptions_total`, summed."""
    new_preemptions: float
    """Since the reading before."""
    prefix_hit_rate: float
    """`vllm:prefix_cache_hits_total` over `prefix_cache_queries_total`, since the last reading before which
    there were other queries."""
    kv_capacity_tokens: int
    """Blocks times block size, summed; 0 if it is not told."""
    prefix_hits: float = 0.0
    """Tokens found in the prefix cache, ever."""
    prefix_queries: float = 0.0
    """Tokens looked for there, ever."""
    caches_prefixes: bool = True
    """False if it says that it does not."""


def read_metrics(text: bytes, before: Reading | None = None) -> Reading | None:
    """The reading in a `/metrics` answer; None if a column is missing or its value is impossible.

    Args:
        text: Prometheus text exposition.
        before: the reading before, for what is counted since.
    """
    running = waiting = preemptions = hits = queries = 0.0
    kv_usage = -1.0
    capacity = 0
    caches = True
    seen = set()
    for name, labels, number in _LINES.findall(b"\n" + text):
        if name == b"cache_config_info":
            size, blocks = _BLOCK_SIZE.search(labels), _NUM_BLOCKS.search(labels)
            if size and blocks:
                capacity += int(size[1]) * int(blocks[1])
            caches = caches and _NOT_CACHING.search(labels) is None
            continue
        try:
            value = float(number)
        except ValueError:
            return None
        if not math.isfinite(value) or value < 0.0:
            return None
        seen.add(name)
        if name == b"num_requests_running":
            running += value
        elif name == b"num_requests_waiting":
            waiting += value
        elif name == b"num_preemptions_total":
            preemptions += value
        elif name == b"prefix_cache_hits_total":
            hits += value
        elif name == b"prefix_cache_queries_total":
            queries += value
        else:
            kv_usage = max(kv_usage, value)
    if b"num_requests_running" not in seen or b"num_requests_waiting" not in seen:
        return None
    if not 0.0 <= kv_usage <= 1.0:
        return None
    new = max(0.0, preemptions - before.preemptions) if before is not None else 0.0
    rate = 0.0
    if before is not None:
        restarted = queries < before.prefix_queries  # counters begin again at zero
        looked = queries if restarted else queries - before.prefix_queries
        found = hits if restarted else hits - before.prefix_hits
        # As in the simulator: where nothing was looked up, the last rate stands.
        rate = max(0.0, min(1.0, found / looked)) if looked > 0.0 else before.prefix_hit_rate
        if restarted and looked == 0.0:
            rate = 0.0
    return Reading(running, waiting, kv_usage, preemptions, new, rate, capacity, hits, queries, caches)


def orca_reading(value: bytes) -> tuple[float | None, float | None] | None:
    """(waiting requests, KV usage) in an `endpoint-load-metrics` header, each None if not told.

    None altogether if it is no text report or its values are impossible.
    """
    found: dict[bytes, float] = {}
    for name, number in _ORCA.findall(value):
        try:
            found[name] = float(number)
        except ValueError:
            return None
    waiting, usage = found.get(b"num_requests_waiting"), found.get(b"kv_cache_usage_perc")
    if waiting is not None and not 0.0 <= waiting < math.inf:
        return None
    if usage is not None and not 0.0 <= usage <= 1.0:
        return None
    return (waiting, usage) if found else None
