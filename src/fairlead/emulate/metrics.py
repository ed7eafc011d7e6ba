"""The page at `/metrics`, and the ORCA header: under vLLM's names, of the engine's own numbers."""

from collections.abc import Iterator

import msgspec

from fairlead.emulate.engine import Engine
from fairlead.serve.backend import Histogram

_HISTOGRAMS = {
    "time_to_first_token_seconds": ("ttft_s", "time to first token in seconds"),
    "inter_token_latency_seconds": ("itl_s", "inter-token latency in seconds"),
    "request_time_per_output_token_seconds": ("tpot_s", "time_per_output_token_seconds per request"),
    "e2e_request_latency_seconds": ("e2e_s", "e2e request latency in seconds"),
    "request_queue_time_seconds": ("queue_s", "time spent in WAITING phase for request"),
    "request_prefill_time_seconds": ("prefill_s", "time spent in PREFILL phase for request"),
    "request_decode_time_seconds": ("decode_s", "time spent in DECODE phase for request"),
    "request_prompt_tokens": ("request_prompt_tokens", "number of prefill tokens processed"),
    "request_generation_tokens": ("request_generated_tokens", "number of generation tokens processed"),
}


def page(engine: Engine, model: str) -> bytes:
    """All metrics in Prometheus' text format."""
    return "".join(f"{line}\n" for line in _lines(engine, f'engine="0",model_name="{model}"')).encode()


def _lines(engine: Engine, labels: str) -> Iterator[str]:
    tally, spec = engine.tally, engine.spec
    gauges = {
        "num_requests_running": (engine.running, "Number of requests in model execution batches."),
        "num_requests_waiting": (engine.waiting, "Number of requests waiting to be processed."),
        "kv_cache_usage_perc": (engine.kv_usage, "KV-cache usage. 1 means 100 percent usage."),
    }
    counters = {
        "prefix_cache_queries": (
            engine.queried_tokens,
            "Prefix cache queries, in terms of tokens.",
        ),
        "prefix_cache_hits": (engine.hit_tokens, "Prefix cache hits, in terms of tokens."),
        "num_preemptions": (engine.preemptions, "Cumulative number of preemption from the engine."),
        "prompt_tokens": (tally.prompt_tokens, "Number of prefill tokens processed."),
        "generation_tokens": (tally.generated_tokens, "Number of generation tokens processed."),
    }
    for name, (value, text) in gauges.items():
        yield from (_help(name, text, "gauge"), f"vllm:{name}{{{labels}}} {float(value)}")
    for name, (value, text) in counters.items():
        yield from (_help(f"{name}_total", text, "counter"), f"vllm:{name}_total{{{labels}}} {float(value)}")
    yield _help("request_success_total", "Count of successfully processed requests.", "counter")
    for reason, count in tally.finished.items():
        yield f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(count)}'
    for name, (attribute, text) in _HISTOGRAMS.items():
        yield _help(name, f"Histogram of {text}.", "histogram")
        yield from _histogram(name, getattr(tally, attribute), labels)
    yield _help("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
    cache = {
        "block_size": spec.block_size,
        "enable_prefix_caching": spec.prefix_caching,
        "kv_cache_size_tokens": spec.block_size * spec.kv_blocks,
        "num_gpu_blocks": spec.kv_blocks,
    }
    facts = ",".join(f'{key}="{value}"' for key, value in cache.items())
    yield f'vllm:cache_config_info{{{facts},engine="0"}} 1.0'


def _help(name: str, text: str, kind: str) -> str:
    return f"# HELP vllm:{name} {text}\n# TYPE vllm:{name} {kind}"


def _histogram(name: str, histogram: Histogram, labels: str) -> Iterator[str]:
    total = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        total += count
        le = "+Inf" if bound is None else str(float(bound))
        yield f'vllm:{name}_bucket{{{labels},le="{le}"}} {float(total)}'
    yield f"vllm:{name}_count{{{labels}}} {float(total)}"
    yield f"vllm:{name}_sum{{{labels}}} {histogram.total}"


def orca(engine: Engine, form: bytes) -> bytes | None:
    """The value of the header `endpoint-load-metrics` in the form asked for; None for a form vLLM lacks."""
    report = {
        "num_requests_waiting": float(engine.waiting),
        "kv_cache_usage_perc": float(engine.kv_usage),
    }
    match form.strip().upper():
        case b"TEXT":
            return b"TEXT " + ", ".join(f"named_metrics.{k}={v}" for k, v in report.items()).encode()
        case b"JSON":
            return b"JSON " + msgspec.json.encode({"named_metrics": report})
        case _:
            return None
