"""An iteration-time model written as Vidur's profiling data, where Vidur 0.0.26 looks for it.

The folder holds four CSVs, and a cache in which Vidur finds the same data under the names that it would
download: with `HF_HUB_OFFLINE=1` it trains its predictor on them, without a network and without changes.
Every row is a key that Vidur looks up (`operators`), so its forests have nothing to invent.
"""

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.calibrate.operators import CHUNK_STEP, VidurTables, shares
from fairlead.errors import FairleadError
from fairlead.simulator.hardware import Model
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS, TOKEN_STEP

VIDUR_MODELS: Mapping[str, str] = {
    "llama-3-8b": "meta-llama/Llama-3-8B",
    "llama-3-70b": "meta-llama/Llama-3-70B",
}
"""Our models that Vidur 0.0.26 knows too, under its names."""
VIDUR_DEVICES: Mapping[str, tuple[str, str]] = {
    "a100-80g": ("a100", "a100_dgx"),
    "h100": ("h100", "h100_dgx"),
}
"""Our devices that it knows: its device and its node."""

COMPUTE, NETWORK = "fairlead/compute", "fairlead/network"
"""The data sets' names, as if they had been downloaded."""
CACHE = "vidur_cache"


@dataclass(frozen=True)
class Exported:
    """What was written, and how Vidur is told to use it."""

    files: list[Path]
    options: dict[str, str]
    """Of `python -m vidur.main`."""


def check_known(model: str, device: str) -> tuple[str, str, str]:
    """Vidur's names of the model, the device and its node.

    Raises:
        FairleadError: it does not know one of them.
    """
    if model not in VIDUR_MODELS:
        raise FairleadError(f"Vidur does not know {model}: export one of {', '.join(VIDUR_MODELS)}")
    if device not in VIDUR_DEVICES:
        raise FairleadError(
            f"Vidur does not know the device {device}: export one of {', '.join(VIDUR_DEVICES)}"
        )
    return VIDUR_MODELS[model], *VIDUR_DEVICES[device]


def export_vidur(
    tables: VidurTables, facts: Model, device: str, tensor_parallel: int, block_size: int, out: Path
) -> Exported:
    """Write the tables as Vidur's profiling data.

    Args:
        tables: the model in Vidur's operators.
        facts: the model's sizes: Vidur only uses rows that state them.
        device: ours, one of `VIDUR_DEVICES`.
        tensor_parallel: devices per replica.
        block_size: tokens per KV block.
        out: a new or empty folder.

    Raises:
        FairleadError: Vidur does not know the model or the device, or the folder is not empty.
    """
    model, sku, node = check_known(facts.name, device)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FairleadError(f"{out} exists and is not an empty folder: give a new one")
    compute = _snapshot(out, "compute", COMPUTE)
    network = _snapshot(out, "network", NETWORK)
    written = {
        (compute, "mlp"): _mlp(tables, facts, tensor_parallel),
        (compute, "attention"): _attention(tables, facts, tensor_parallel, block_size),
        (network, "all_reduce"): _collective("all_reduce", tables, facts, tensor_parallel, tensor_parallel),
        (network, "send_recv"): _collective("send_recv", tables, facts, 2, 2),
    }
    files = []
    for (folder, name), columns in written.items():
        text = _csv(columns)
        files.append(out / f"{name}.csv")
        files[-1].write_text(text, encoding="utf-8")
        (folder / f"{name}.csv.xz").write_bytes(lzma.compress(text.encode(), preset=1))
    (compute / "config.json").write_text(json.dumps({"model": model, "device_sku": sku}))
    (network / "config.json").write_text(json.dumps({"sku": node}))
    predictor = "random_forrest_execution_time_predictor_config"
    return Exported(
        files,
        {
            "replica_config_model_name": model,
            "replica_config_device": sku,
            "replica_config_network_device": node,
            "replica_config_tensor_parallel_size": str(tensor_parallel),
            "replica_config_num_pipeline_stages": "1",
            "cache_config_block_size": str(block_size),
            f"{predictor}_cache_dir": str(out / CACHE),
            f"{predictor}_model_profiling_dataset": COMPUTE,
            f"{predictor}_network_profiling_dataset": NETWORK,
            f"{predictor}_kv_cache_prediction_granularity": str(tables.granularity),
            f"{predictor}_prediction_max_prefill_chunk_size": str(CHUNK_STEP * tables.prefill_s.shape[1]),
            f"{predictor}_prediction_max_batch_size": str(len(tables.decode_s)),
            f"{predictor}_prediction_max_tokens_per_request": str(max(tables.max_context, tables.max_tokens)),
            f"{predictor}_attention_decode_batching_overhead_fraction": "0",
            f"{predictor}_nccl_cpu_launch_overhead_ms": "0",
        },
    )


def _snapshot(out: Path, kind: str, name: str) -> Path:
    """A folder in Vidur's cache that the Hugging Face library takes for a finished download of `name`."""
    downloads = out / CACHE / "profiling_data" / kind / f"datasets--{name.replace('/', '--')}"
    folder = downloads / "snapshots" / "fairlead"
    folder.mkdir(parents=True)
    (downloads / "refs").mkdir()
    (downloads / "refs" / "main").write_text("fairlead")
    return folder


Table = dict[str, npt.NDArray[Any]]


def _mlp(tables: VidurTables, facts: Model, tensor_parallel: int) -> Table:
    """The operators that depend on the new tokens alone, ms per layer."""
    tokens = TOKEN_STEP * np.arange(1, len(tables.tokens_s) + 1)
    split = shares(facts)
    times = {
        f"time_stats.{name}.median": tables.tokens_s * (1e3 * split[name] / facts.layers)
        for name in TOKEN_OPERATORS
    }
    return (
        times
        | _constant(
            len(tokens),
            n_head=facts.heads,
            n_kv_head=facts.kv_heads,
            n_embd=facts.hidden,
            n_expanded_embd=facts.intermediate,
            vocab_size=facts.vocab,
            use_gated_mlp=True,
            num_tensor_parallel_workers=tensor_parallel,
        )
        | {"num_tokens": tokens}
    )


def _attention(tables: VidurTables, facts: Model, tensor_parallel: int, block_size: int) -> Table:
    """Decode attention, then prefill attention, ms per layer; Vidur does not count writes to the cache."""
    batch, contexts = tables.decode_s.shape
    chunks = tables.prefill_s.shape[1]
    keys = tables.granularity * np.arange(contexts)
    decodes, prefills = batch * contexts, contexts * chunks
    ms = 1e3 / facts.layers
    none, nothing = np.zeros(decodes), np.zeros(prefills)
    return {
        "time_stats.attn_kv_cache_save.median": np.zeros(decodes + prefills),
        "time_stats.attn_decode.median": np.concatenate([ms * tables.decode_s.ravel(), nothing]),
        "time_stats.attn_prefill.median": np.concatenate([none, ms * tables.prefill_s.ravel()]),
        "batch_size": np.concatenate([np.repeat(np.arange(1, batch + 1), contexts), np.ones(prefills, int)]),
        "prefill_chunk_size": np.concatenate(
            [np.zeros(decodes, int), np.tile(CHUNK_STEP * np.arange(1, chunks + 1), contexts)]
        ),
        "kv_cache_size": np.concatenate([np.tile(keys, batch), np.repeat(keys, chunks)]),
        "is_prefill": np.repeat([False, True], [decodes, prefills]),
    } | _constant(
        decodes + prefills,
        n_embd=facts.hidden,
        n_q_head=facts.heads,
        n_kv_head=facts.kv_heads,
        block_size=block_size,
        num_tensor_parallel_workers=tensor_parallel,
    )


def _collective(name: str, tables: VidurTables, facts: Model, workers: int, per_node: int) -> Table:
    """No time: the model's communication is part of its per-token times."""
    tokens = TOKEN_STEP * np.arange(1, len(tables.tokens_s) + 1)
    return {
        f"time_stats.{name}.median": np.zeros(len(tokens)),
        "size": tokens * 2 * facts.hidden,
        "collective": np.full(len(tokens), name),
    } | _constant(len(tokens), num_workers=workers, devices_per_node=per_node)


def _constant(rows: int, **values: int | bool) -> Table:
    return {name: np.full(rows, value) for name, value in values.items()}


def _csv(columns: Table) -> str:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(map(str, row)) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"
