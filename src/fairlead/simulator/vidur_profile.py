"""Vidur's profiling CSVs as operator tables: what its predictor would make of them.

Vidur trains a random forest per operator on the medians of its profiling runs and adds the predictions up.
So does this reader: operators with one feature by the formula of `forest.expected_forest`, prefill attention
by a grown forest. Decode attention is profiled on a grid and is interpolated linearly there.
"""

import lzma
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import ArrowInvalid, csv

from fairlead.errors import FairleadError
from fairlead.simulator.forest import expected_forest, grown_forest
from fairlead.simulator.hardware import Model
from fairlead.simulator.tables import KV_BUCKET, OperatorTables

TOKEN_OPERATORS = (
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)
"""Operators in mlp.csv that depend on the number of new tokens alone."""
TOKEN_STEP = 8
"""New tokens are rounded up to a multiple of this, except for writing to the KV cache."""
CHUNK_STEP = 8
"""Columns of the prefill table; each holds the prediction for the middle of its chunks."""
GQA_OVERHEAD = 1.1
"""Factor on attention of several requests, where heads share keys and values."""
ALL_REDUCE_LAUNCH_MS = 0.02
"""What Vidur adds to each all-reduce for its launch."""
LEAST_POINTS = 8
"""Distinct points of an operator; fewer describe no curve."""

Columns = dict[str, npt.NDArray[np.float64]]


def read_vidur_profile(
    mlp: Path,
    attention: Path,
    all_reduce: Path | None,
    facts: Model,
    *,
    tensor_parallel: int,
    block_size: int,
    max_tokens: int,
) -> OperatorTables:
    """The sum of operators of one replica.

    Args:
        mlp: Vidur's mlp.csv.
        attention: Vidur's attention.csv.
        all_reduce: Vidur's all_reduce.csv, needed with tensor parallelism.
        facts: the model; only rows that were profiled with it are used.
        tensor_parallel: devices per replica.
        block_size: tokens per KV block.
        max_tokens: new tokens in the largest batch: how far the table of prompt chunks must reach.

    Raises:
        FairleadError: naming the file, what is wrong with it and what to do.
    """
    if (all_reduce is None) != (tensor_parallel == 1):
        raise FairleadError(
            f"tensor_parallel is {tensor_parallel}, so a vidur_profile "
            + ("needs" if all_reduce is None else "has no use for")
            + " all_reduce (Vidur's all_reduce.csv)"
        )
    stamps = tuple(_stamp(path) for path in (mlp, attention, all_reduce) if path is not None)
    return _read(stamps, mlp, attention, all_reduce, facts, tensor_parallel, block_size, max_tokens)


def _stamp(path: Path) -> tuple[float, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise FairleadError(f"cannot read {path}: {error.strerror}") from None
    return found.st_mtime, found.st_size


@lru_cache(maxsize=16)
def _read(
    stamps: tuple[tuple[float, int], ...],
    mlp: Path,
    attention: Path,
    all_reduce: Path | None,
    facts: Model,
    tensor_parallel: int,
    block_size: int,
    max_tokens: int,
) -> OperatorTables:
    """Forests take a second: files that have not changed are not read twice."""
    del stamps
    shape = {"n_embd": facts.hidden, "num_tensor_parallel_workers": tensor_parallel}
    layers = {
        "n_head": facts.heads,
        "n_kv_head": facts.kv_heads,
        "n_expanded_embd": facts.intermediate,
        "vocab_size": facts.vocab,
    }
    heads = {"n_q_head": facts.heads, "n_kv_head": facts.kv_heads, "block_size": block_size}
    times = [f"time_stats.{name}.median" for name in TOKEN_OPERATORS]
    products = _rows(mlp, facts, {**layers, **shape}, ["num_tokens"], times)
    kernels = _rows(
        attention,
        facts,
        {**heads, **shape},
        ["batch_size", "prefill_chunk_size", "kv_cache_size"],
        [f"time_stats.{name}.median" for name in ("attn_kv_cache_save", "attn_prefill", "attn_decode")],
    )
    per_token = sum(_operator(mlp, products["num_tokens"], products[name], name) for name in times)
    tokens_ms = np.asarray(per_token)[_rounded(len(np.asarray(per_token)) - 1)]
    if all_reduce is not None:
        tokens_ms = _plus(tokens_ms, 2 * _all_reduce(all_reduce, facts, tensor_parallel))
    writes = np.maximum(kernels["prefill_chunk_size"], kernels["batch_size"])
    name = "time_stats.attn_kv_cache_save.median"
    tokens_ms = _plus(tokens_ms, _operator(attention, writes, kernels[name], name))
    overhead = GQA_OVERHEAD if facts.heads > facts.kv_heads else 1.0
    scale = 1e-3 * facts.layers
    return OperatorTables(
        tokens_s=scale * tokens_ms,
        decode_s=scale * _decode(attention, kernels),
        prefill_s=scale * _prefill(attention, kernels, max_tokens),
        decode_overhead=overhead,
        prefill_overhead=overhead,
        chunk_step=CHUNK_STEP,
    )


def _rows(
    path: Path, facts: Model, wanted: dict[str, int], keys: Sequence[str], times: Sequence[str]
) -> Columns:
    """The columns of the rows that were profiled with this model, checked."""
    table = read_columns(path, [*wanted, *keys, *times])
    match = np.ones(len(table[keys[0]]), np.bool_)
    for name, value in wanted.items():
        match &= table[name] == value
        if not match.any():
            there = ", ".join(f"{v:g}" for v in np.unique(table[name])[:8])
            raise FairleadError(
                f"{path} has no rows for {facts.name} with {name} {value} (that column holds {there}): "
                "profile that with Vidur, or change model or tensor_parallel of the scenario to what it holds"
            )
    found = {name: table[name][match] for name in (*keys, *times)}
    for name in keys:
        if not (np.isfinite(found[name]) & (found[name] >= 0)).all():
            raise FairleadError(f"{path}: {name} must hold whole numbers that are not negative")
    for name in times:
        # An operator that a model does not have is left blank by Vidur, and counts as nothing.
        found[name] = np.where(np.isnan(found[name]), 0.0, found[name])
        bad = ~(np.isfinite(found[name]) & (found[name] >= 0))
        if bad.any():
            value = found[name][int(np.argmax(bad))]
            raise FairleadError(f"{path}: {name} has the value {value:g}: times are finite and not negative")
    return found


def read_columns(path: Path, names: Sequence[str]) -> Columns:
    """Some columns of one of Vidur's CSVs, as numbers; rows that are there twice count once.

    Raises:
        FairleadError: naming the file and what is wrong with it.
    """
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            table = csv.read_csv(file)
        # As Vidur does; a row counts by all its columns.
        table = table.group_by(table.column_names, use_threads=False).aggregate([])
    except OSError as error:
        raise FairleadError(f"cannot read {path}: {error.strerror or error}") from None
    except (ArrowInvalid, lzma.LZMAError, EOFError) as error:
        raise FairleadError(f"{path} is not a CSV file: {' '.join(str(error).split())[:100]}") from None
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise FairleadError(
            f"{path} lacks the column {absent[0]}"
            + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
            + ": give a file that Vidur's profiler wrote, all operators included"
        )
    return {name: _numbers(path, name, table[name]) for name in names}


def _numbers(path: Path, name: str, column: Any) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(column.cast("float64").to_numpy(zero_copy_only=False), np.float64)
    except (ArrowInvalid, ValueError, NotImplementedError):
        raise FairleadError(f"{path}: column {name} does not hold numbers") from None


def _operator(
    path: Path, tokens: npt.NDArray[np.float64], ms: npt.NDArray[np.float64], name: str
) -> npt.NDArray[np.float64]:
    """Predictions for 0, 1, ... tokens, to the largest number profiled, ms per layer."""
    points = len(np.unique(tokens))
    if points < LEAST_POINTS:
        raise FairleadError(
            f"{path}: {name} was profiled for {points} numbers of tokens; at least {LEAST_POINTS} are "
            "needed: run Vidur's profiler over its whole grid"
        )
    return expected_forest(tokens, ms, np.arange(tokens.max() + 1))


def _rounded(end: int) -> npt.NDArray[np.int64]:
    """0, 1, ..., end, each rounded up to a multiple of 8 where that is still profiled."""
    return np.minimum(-(-np.arange(end + 1) // TOKEN_STEP) * TOKEN_STEP, end)


def _plus(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum as far as both reach."""
    end = min(len(one), len(other))
    return one[:end] + other[:end]


def _all_reduce(path: Path, facts: Model, tensor_parallel: int) -> npt.NDArray[np.float64]:
    """Time of one all-reduce by number of tokens, ms."""
    name = "time_stats.all_reduce.median"
    wanted = {"num_workers": tensor_parallel, "devices_per_node": tensor_parallel}
    found = _rows(path, facts, wanted, ["size"], [name])
    tokens = found["size"] / (2 * facts.hidden)
    points = len(np.unique(tokens))
    if points < LEAST_POINTS:
        raise FairleadError(f"{path}: {name} was profiled for {points} sizes; {LEAST_POINTS} are needed")
    predicted = expected_forest(tokens, found[name], np.arange(np.floor(tokens.max()) + 1))
    return predicted[_rounded(len(predicted) - 1)] + ALL_REDUCE_LAUNCH_MS


def _decode(path: Path, kernels: Columns) -> npt.NDArray[np.float64]:
    """(B, KV + 1) by decodes from 1 and mean context in units of 64, to the largest ones profiled."""
    name = "time_stats.attn_decode.median"
    decodes = kernels["prefill_chunk_size"] == 0
    batch, context, ms = (kernels[key][decodes] for key in ("batch_size", "kv_cache_size", name))
    batches = np.unique(batch)
    if len(batches) < LEAST_POINTS or len(np.unique(context)) < LEAST_POINTS:
        raise FairleadError(
            f"{path}: {name} was profiled for {len(batches)} batch sizes and {len(np.unique(context))} "
            f"contexts (rows with prefill_chunk_size 0); at least {LEAST_POINTS} of each are needed: run "
            "Vidur's profiler over its whole grid"
        )
    keys = KV_BUCKET * np.arange(-(-context.max() // KV_BUCKET) + 1)
    rows = np.array([_curve(context[batch == size], ms[batch == size], keys) for size in batches])
    every = np.arange(1, batches[-1] + 1)
    return np.array([np.interp(every, batches, column) for column in rows.T]).T


def _curve(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], at: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    values, inverse = np.unique(x, return_inverse=True)
    return np.interp(at, values, np.bincount(inverse, y) / np.bincount(inverse))


def _prefill(path: Path, kernels: Columns, max_tokens: int) -> npt.NDArray[np.float64]:
    """(KV' + 1, C) by computed tokens in units of 64 and chunk, to the largest ones profiled."""
    name = "time_stats.attn_prefill.median"
    prompts = kernels["prefill_chunk_size"] > 0
    chunk, behind, ms = (kernels[key][prompts] for key in ("prefill_chunk_size", "kv_cache_size", name))
    points = len(np.unique(np.stack([chunk, behind]), axis=1).T)
    if points < 4 * LEAST_POINTS:
        raise FairleadError(
            f"{path}: {name} was profiled for {points} pairs of chunk and context; at least "
            f"{4 * LEAST_POINTS} are needed: run Vidur's profiler over its whole grid"
        )
    rows = KV_BUCKET * np.arange(-(-behind.max() // KV_BUCKET) + 1)
    last = min(-(-max_tokens // CHUNK_STEP), int(-(-chunk.max() // CHUNK_STEP)))
    columns = CHUNK_STEP * np.arange(1, last + 1) - (CHUNK_STEP - 1) / 2
    keys = np.stack([np.repeat(rows, last), np.tile(columns, len(rows))], 1)
    predicted = grown_forest(np.stack([behind, chunk], 1), ms, keys)
    return predicted.reshape(len(rows), last)
