"""What a backend is and offers, found by asking it: for the settings of a gateway, and to trust its view."""

import asyncio
import re
from collections.abc import Sequence
from time import monotonic
from typing import Any

import msgspec

from fairlead.serve.backend import Backend, pool_for
from fairlead.serve.fetch import Fetched, fetch
from fairlead.serve.ledger import Ledger
from fairlead.serve.messages import NOT_JSON
from fairlead.serve.scraping import orca_reading, read_metrics
from fairlead.serve.settings import DECLARED, BackendSettings, Timeouts
from fairlead.serve.speed import Speed, measure_speed

SCRAPED = {
    "scraped_running": "vllm:num_requests_running",
    "scraped_waiting": "vllm:num_requests_waiting",
    "scraped_kv_usage": "vllm:kv_cache_usage_perc",
    "scraped_preemptions": "vllm:num_preemptions_total",
    "scraped_prefix_hit_rate": "vllm:prefix_cache_queries_total",
}
"""Column of the view -> the metric that it needs."""

_OLD_USAGE = "vllm:gpu_cache_usage_perc"
_INFO = re.compile(r"^vllm:cache_config_info\{([^\n]*)\}", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_MAX_NUM_SEQS = re.compile(rb"max_num_seqs\D{1,6}(\d+)")


class Finding(msgspec.Struct):
    """What was found of one backend; None where it does not say."""

    url: str
    error: str = ""
    """Why nothing more is known; empty if it answered."""
    healthy: bool = False
    """`/health` was answered with 200."""
    version: str | None = None
    models: dict[str, int | None] = msgspec.field(default_factory=dict)
    """By id: the longest prompt and answer together, tokens."""
    block_size: int | None = None
    """Tokens in a KV block."""
    num_gpu_blocks: int | None = None
    """Over all of its engines."""
    kv_capacity_tokens: int | None = None
    prefix_caching: bool | None = None
    max_num_seqs: int | None = None
    """Told only by servers in vLLM's development mode (`/server_info`)."""
    metrics: list[str] = msgspec.field(default_factory=list)
    """Those that the view needs and that are there."""
    missing_metrics: list[str] = msgspec.field(default_factory=list)
    """Those that are not."""
    orca: list[str] | None = None
    """What its load reports on answers hold; None if it could not be tried."""
    load: int | None = None
    """Requests being answered, of `/load`; None if it does not offer that."""
    measured: Speed | None = None
    """How fast it is; None if that was not asked for, or could not be measured."""
    speed: float | None = None
    """That, relative to the fastest backend that was measured: of their times for the same prompt."""
    columns: dict[str, str] = msgspec.field(default_factory=dict)
    """Columns of the view that are missing or approximate, with the reason."""


async def probe(
    backends: Sequence[BackendSettings], timeout: float = 5.0, *, measure: bool = False
) -> list[Finding]:
    """Ask all backends at once.

    Each is sent one completion of one token, to see whether its answers carry load reports.

    Args:
        backends: whom to ask.
        timeout: of each question, s; a completion may take six times as long.
        measure: also measure how fast they are, one after the other: some of them may share a machine.
    """
    findings = list(await asyncio.gather(*(_probe(each, timeout) for each in backends)))
    if measure:
        for settings, found in zip(backends, findings, strict=True):
            if not found.error:
                await _measure(found, settings, 6 * timeout)
        fastest = max((f.measured.prefill_tokens_per_s for f in findings if f.measured), default=0.0)
        for found in findings:
            if found.measured is not None:
                found.speed = found.measured.prefill_tokens_per_s / fastest
    return findings


async def _measure(found: Finding, settings: BackendSettings, timeout: float) -> None:
    """Enter how fast a backend is, or why that is not known."""
    backend = Backend(settings, Ledger(monotonic()), pool_for(settings, Timeouts()))
    try:
        model, longest = next(iter(found.models.items()), ("", None))
        found.measured = await measure_speed(backend, model, longest, timeout)
    except ValueError as error:
        for name in DECLARED:
            if name in found.columns:
                found.columns[name] = f"cannot be measured: {error} ({getattr(settings, name):g} is assumed)"
        return
    finally:
        backend.pool.close()
    for name in DECLARED:
        found.columns.pop(name, None)
        if found.load:
            found.columns[name] = f"measured while it answered {found.load} other requests"


async def _probe(settings: BackendSettings, timeout: float) -> Finding:
    backend = Backend(settings, Ledger(monotonic()), pool_for(settings, Timeouts()))
    found = Finding(settings.url)

    async def ask(path: str) -> Fetched | None:
        try:
            answer = await fetch(backend, path, timeout)
        except OSError:
            return None
        return answer if answer.status == 200 else None

    try:
        health = await fetch(backend, "/health", timeout)
        models = await fetch(backend, "/v1/models", timeout)
    except OSError as error:
        found.error = str(error) or f"no answer within {timeout:g} s"
        backend.pool.close()
        return found
    try:
        found.healthy = health.status == 200
        if models.status != 200:
            hint = ": it wants an API key (api_key in the settings)" if models.status in (401, 403) else ""
            found.error = f"/v1/models answers with {models.status}{hint}"
            return found
        cards: Any = _decode(models.body, "data")
        if not isinstance(cards, list):
            found.error = "/v1/models is not an OpenAI-compatible server's"
            return found
        found.models = {
            c["id"]: _whole(c.get("max_model_len")) for c in cards if isinstance(c.get("id"), str)
        }
        if (version := await ask("/version")) is not None:
            told = _decode(version.body, "version")
            found.version = told if isinstance(told, str) else None
        if (load := await ask("/load")) is not None:
            found.load = _whole(_decode(load.body, "server_load"))
        if (info := await ask("/server_info")) is not None and (seqs := _MAX_NUM_SEQS.search(info.body)):
            found.max_num_seqs = int(seqs[1])
        page = await ask("/metrics")
        read_page(found, page.body if page is not None else b"")
        await _try_orca(found, backend, 6 * timeout)
    finally:
        backend.pool.close()
    _judge_columns(found, settings)
    return found


def read_page(found: Finding, page: bytes) -> None:
    """Enter what a `/metrics` page tells; an empty one is one that is not offered."""
    text = page.decode(errors="replace")
    there = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line[:5] == "vllm:"}
    if _OLD_USAGE in there:
        there.add(SCRAPED["scraped_kv_usage"])
    needed = [*SCRAPED.values(), "vllm:cache_config_info"]
    found.metrics = [name for name in needed if name in there]
    found.missing_metrics = [name for name in needed if name not in there]
    infos = [dict(_LABEL.findall(labels)) for labels in _INFO.findall(text)]
    if infos:
        found.block_size = _whole(infos[0].get("block_size"))
        blocks = [_whole(info.get("num_gpu_blocks")) for info in infos]
        found.num_gpu_blocks = sum(each for each in blocks if each is not None) or None
        caching = infos[0].get("enable_prefix_caching")
        found.prefix_caching = caching == "True" if caching in ("True", "False") else None
    reading = read_metrics(page)
    if reading is not None:
        found.kv_capacity_tokens = reading.kv_capacity_tokens or None
    elif page:
        found.columns["scraped_*"] = (
            "the values in /metrics cannot be used: the gateway's own counts stand in"
        )


async def _try_orca(found: Finding, backend: Backend, timeout: float) -> None:
    """Ask for one token and a load report."""
    model = next(iter(found.models), "")
    body = msgspec.json.encode({"model": model, "prompt": "hello", "max_tokens": 1})
    try:
        answer = await fetch(
            backend,
            "/v1/completions",
            timeout,
            json=body,
            headers=b"endpoint-load-metrics-format: TEXT\r\n",
        )
    except OSError:
        return
    if answer.status != 200:
        return
    report = next((value for name, _, value in answer.headers if name == b"endpoint-load-metrics"), b"")
    waiting, usage = orca_reading(report) or (None, None)
    told = {"num_requests_waiting": waiting, "kv_cache_usage_perc": usage}
    found.orca = [name for name, value in told.items() if value is not None]


def _judge_columns(found: Finding, settings: BackendSettings) -> None:
    """Which columns of the view are missing or approximate, and why."""
    columns = found.columns
    required = list(SCRAPED.values())[:3]
    lacking = [name for name in required if name in found.missing_metrics]
    if lacking:
        columns["scraped_*"] = f"no {', '.join(lacking)} in /metrics: the gateway's own counts stand in"
    elif "scraped_*" not in columns:
        for column, name in SCRAPED.items():
            if name in found.missing_metrics:
                columns[column] = f"0: no {name} in /metrics"
    if found.kv_capacity_tokens is None and settings.kv_capacity_tokens is None:
        columns["kv_capacity_tokens"] = "not told: declare kv_capacity_tokens (100,000 is assumed)"
    if found.max_num_seqs is None and "max_num_seqs" not in settings.model_fields_set:
        columns["max_num_seqs"] = f"not told: declare max_num_seqs ({settings.max_num_seqs} is assumed)"
    for name in settings.assumed:
        columns[name] = (
            f"cannot be asked: declare {name}, or measure it ({getattr(settings, name):g} is assumed)"
        )
    if found.prefix_caching is False:
        columns["expected_prefix_hit_tokens"] = "prefix caching is off: expectations would be wrong"


def suggest(findings: Sequence[Finding]) -> str:
    """Settings for `fairlead serve` with what was found, as YAML; without backends that do not answer."""
    lines = ["backends:"]
    usable = [each for each in findings if not each.error]
    for found in usable:
        lines.append(f'  - url: "{found.url}"')
        if found.kv_capacity_tokens is not None:
            lines.append(f"    kv_capacity_tokens: {found.kv_capacity_tokens}")
        if found.max_num_seqs is not None:
            lines.append(f"    max_num_seqs: {found.max_num_seqs}")
        if found.measured is not None:
            lines.append(f"    speed: {found.speed:.3g}")
            lines.append(f"    prefill_tokens_per_s: {found.measured.prefill_tokens_per_s:.0f}")
            lines.append(f"    decode_iteration_s: {found.measured.decode_iteration_s:.4g}")
        for name in found.columns:
            if name in BackendSettings.model_fields and not (found.measured and name in DECLARED):
                default = BackendSettings.model_fields[name].default
                lines.append(f"    # {name}: {default if default is not None else '...'}   # declare it")
    if usable and all(found.prefix_caching is False for found in usable):
        lines.append("prefixes: {chunks: 0}   # no backend caches prefixes")
    if usable and all(found.orca == [] for found in usable):
        lines.append("scrape: {orca: false}   # no backend sends load reports")
    if usable and all("scraped_*" in found.columns for found in usable):
        lines = [line for line in lines if not line.startswith("scrape:")]
        lines.append("scrape: {interval: null}   # no backend has metrics that can be used")
    return "\n".join(lines) + "\n" if usable else ""


def _decode(body: bytes, key: str) -> Any:
    try:
        content = msgspec.json.decode(body)
    except NOT_JSON:
        return None
    return content.get(key) if isinstance(content, dict) else None


def _whole(value: Any) -> int | None:
    """A positive or zero whole number, also from text."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    return number if number >= 0 else None
