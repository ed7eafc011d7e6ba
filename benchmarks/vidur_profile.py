"""How closely `vidur_profile` reproduces Vidur's predictor: operator by operator, and on recorded batches.

    python benchmarks/vidur_profile.py --reference DIR

DIR holds `profiles/` (Vidur's mlp.csv and attention*.csv), `exec_model_7d47513/exec_model.npz` (the tables
that Vidur's forests predicted from them) and `vidur_7d47513/*.batches.csv` (batches that Vidur logged, with
their times).
"""

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator.forest import expected_forest
from fairlead.simulator.hardware import model
from fairlead.simulator.reference_timing import Scheduled, batch_seconds
from fairlead.simulator.tables import OperatorTables
from fairlead.simulator.vidur_profile import CHUNK_STEP, TOKEN_OPERATORS, read_columns, read_vidur_profile

FACTS = model("llama-3-8b")
TOKENS = 4096
BATCHES = 3000
"""Of each file; the rest is more of the same."""


def errors(predicted: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> dict[str, float]:
    """Relative errors."""
    relative = np.abs(predicted / wanted - 1).ravel()
    return {
        "mean": float(relative.mean()),
        "p99": float(np.percentile(relative, 99)),
        "max": float(relative.max()),
    }


def by_operator(
    mlp: Path, attention: Path, made: OperatorTables, recorded: dict[str, npt.NDArray[np.float64]]
) -> dict[str, dict[str, float]]:
    """Each operator against Vidur's predictions, over the keys that Vidur predicted."""
    found = {}
    keys = np.arange(8.0, TOKENS + 1, 8)
    names = [f"time_stats.{name}.median" for name in TOKEN_OPERATORS]
    rows = read_columns(mlp, ["num_tokens", "num_tensor_parallel_workers", *names])
    one = rows["num_tensor_parallel_workers"] == 1
    for operator, name in zip(TOKEN_OPERATORS, names, strict=True):
        predicted = expected_forest(rows["num_tokens"][one], np.nan_to_num(rows[name][one]), keys)
        found[operator] = errors(predicted, recorded[operator][keys.astype(int)])
    name = "time_stats.attn_kv_cache_save.median"
    rows = read_columns(attention, ["prefill_chunk_size", "batch_size", name])
    tokens = np.maximum(rows["prefill_chunk_size"], rows["batch_size"])
    exact = np.arange(1.0, TOKENS + 1)
    predicted = expected_forest(tokens, np.nan_to_num(rows[name]), exact)
    found["attn_kv_cache_save"] = errors(predicted, recorded["attn_kv_cache_save"][1:])
    scale = 1e3 / FACTS.layers
    batch, contexts = recorded["attn_decode"].shape
    found["attn_decode"] = errors(scale * made.decode_s[:batch, :contexts], recorded["attn_decode"])
    columns = -(-np.arange(1, TOKENS + 1) // CHUNK_STEP) - 1
    rows_ = recorded["attn_prefill"].shape[0]
    found["attn_prefill"] = errors(scale * made.prefill_s[:rows_, columns], recorded["attn_prefill"])
    return found


def logged(path: Path) -> Iterator[tuple[list[Scheduled], float]]:
    """The batches in a log of Vidur's, with their times in s."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            batch = []
            for text in row["requests(id:tokens:processed_before:is_prefill)"].split(";"):
                _, tokens, processed, prefill = (int(part) for part in text.split(":"))
                # Vidur counts the token that is being decoded as processed before.
                batch.append(Scheduled(tokens, processed - (not prefill), decoding=not prefill))
            yield batch, float(row["execution_time_s"])


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    folder = options.reference
    try:
        (attention,) = (folder / "profiles").glob("attention*.csv")
        logs = sorted((folder / "vidur_7d47513").glob("*.batches.csv"))
        npz = np.load(folder / "exec_model_7d47513" / "exec_model.npz")
    except (OSError, ValueError):
        sys.exit(f"error: {folder} does not hold the files that --help lists")
    recorded = {name: np.asarray(npz[name], np.float64) for name in npz.files}
    mlp = folder / "profiles" / "mlp.csv"
    try:
        made = read_vidur_profile(
            mlp, attention, None, FACTS, tensor_parallel=1, block_size=16, max_tokens=TOKENS
        )
    except FairleadError as error:
        sys.exit(f"error: {error}")
    found = {"operators": by_operator(mlp, attention, made, recorded), "iterations": {}}
    for log in logs:
        pairs = [
            (batch_seconds(made, batch), seconds) for batch, seconds in itertools.islice(logged(log), BATCHES)
        ]
        ours, theirs = np.array(pairs).T
        found["iterations"][log.name.removesuffix(".batches.csv")] = errors(ours, theirs)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for kind, rows in found.items():
        print(f"\n| {kind} | mean error | p99 | largest |\n|---|---|---|---|")
        for name, each in rows.items():
            print(f"| {name} | {each['mean']:.2%} | {each['p99']:.2%} | {each['max']:.2%} |")


if __name__ == "__main__":
    main()
