"""Does the engine agree with Vidur, request by request?

    python benchmarks/fidelity.py --reference DIR [--cells NAME,NAME] [--json]

DIR holds recorded runs of Vidur: for each commit a folder `vidur_COMMIT` with, per cell, `NAME.requests.csv`
(arrival, lengths and replica of each request, and what happened to it), `NAME.json` (`args`: Vidur's command
line; `num_blocks`) and perhaps `NAME.batches.csv` (a log of its batches). `exec_model_COMMIT/exec_model.npz`
has the iteration times that Vidur used. A cell with prefix caching names the trace, below DIR, that says
what the blocks of its requests contain. The engine gets the same requests, sends each to the same replica
and takes the same times; scheduling delay, TTFT and E2E of every request are compared. Where there is a log
of batches, those of the plain twin are compared with it one by one.

A cell that cannot be run is reported with an `error` that says what is missing.
"""

import argparse
import csv
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator import reference
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.scheduler_vidur_v1 import AHEAD
from fairlead.simulator.schedulers import SchedulerOptions
from fairlead.simulator.tables import OperatorTables
from fairlead.workload.content import Content, dense
from fairlead.workload.requests import Requests

LINEAR = (
    "attn_pre_proj",
    "attn_post_proj",
    "attn_rope",
    "input_layernorm",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)
"""Operators whose number of tokens Vidur rounds up to 8."""

FIRST_COMMIT = "7d47513"
SCHEDULERS = {
    FIRST_COMMIT: {"sarathi": "sarathi", "vllm": "vllm_v0"},
    "25e0082": {"sarathi": "sarathi", "vllm": "vllm_v0", "vllm_v1": "vidur_v1"},
}
"""Vidur's names of its schedulers -> ours, by commit."""

CHUNK, CAP, BLOCK, WATERMARK, BATCH_TOKENS, AHEAD_TOKENS = 512, 128, 16, 0.01, 4096, 64
"""Vidur's defaults."""


class Cell(NamedTuple):
    """One recorded run."""

    name: str
    commit: str
    directory: Path
    args: Mapping[str, str]
    """Vidur's options, without dashes; flags have the value "true"."""
    num_blocks: int

    def option(self, *names: str, default: float) -> float:
        """The first of these options that was given."""
        given = [float(self.args[name]) for name in names if name in self.args]
        return given[0] if given else default

    @property
    def scheduler(self) -> str:
        """Vidur's name of it."""
        return self.args.get("replica_scheduler_config_type", "sarathi")

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""
        own = f"{self.scheduler}_scheduler_config_block_size"
        return int(self.option(own, "cache_config_block_size", default=BLOCK))

    @property
    def caches(self) -> bool:
        """Whether replicas cache prefixes."""
        return "cache_config_enable_prefix_caching" in self.args


class Recorded(NamedTuple):
    """What happened to the N requests of a cell."""

    requests: Requests
    replica: npt.NDArray[np.int64]
    delay_s: npt.NDArray[np.float64]
    ttft_s: npt.NDArray[np.float64]
    e2e_s: npt.NDArray[np.float64]
    restarts: npt.NDArray[np.int64]


def find_cells(directory: Path) -> Iterator[Cell]:
    """Every cell below a directory of recorded runs."""
    if not directory.is_dir():
        raise FairleadError(f"there is no directory {directory}")
    for path in sorted(directory.glob("vidur_*/*.requests.csv")):
        name = path.name.removesuffix(".requests.csv")
        about = json.loads(path.with_name(f"{name}.json").read_text())
        yield Cell(
            name,
            path.parent.name.removeprefix("vidur_"),
            directory,
            parse_args(about["args"]),
            int(about["num_blocks"]),
        )


def parse_args(text: str) -> dict[str, str]:
    """`--name value` and `--flag` as a mapping."""
    found: dict[str, str] = {}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = "true"
        else:
            found[name] = word
    return found


def read_requests(cell: Cell) -> Recorded:
    """The rows of a cell, in order of arrival."""
    path = cell.directory / f"vidur_{cell.commit}" / f"{cell.name}.requests.csv"
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["request_id"]))

    def column(name: str) -> npt.NDArray[np.float64]:
        return np.array([float(row[name]) for row in rows])

    arrival = column("arrived_at")
    return Recorded(
        Requests(
            arrival,
            column("num_prefill_tokens").astype(np.int64),
            column("num_decode_tokens").astype(np.int64),
            content=read_content(cell, len(rows)) if cell.caches else None,
        ),
        column("replica_id").astype(np.int64),
        column("scheduled_at") - arrival,
        column("ttft"),
        column("completed_at") - arrival,
        column("num_restarts").astype(np.int64),
    )


def read_content(cell: Cell, count: int) -> Content:
    """What the blocks of the first `count` requests contain, from the trace that Vidur was given."""
    name = cell.args.get("trace_request_generator_config_trace_file")
    if name is None:
        raise FairleadError("prefix caching without a trace that says what blocks contain")
    with (cell.directory / name).open(newline="") as file:
        blocks = [json.loads(row["block_hash_ids"]) for row in islice(csv.DictReader(file), count)]
    keys = np.array([key for ids in blocks for key in ids], np.int64)
    offsets = np.cumsum([0, *(len(ids) for ids in blocks)])
    return Content(dense(keys), offsets, cell.block_size)


def read_tables(cell: Cell) -> OperatorTables:
    """The iteration times of a cell's commit, in the dialect of that commit."""
    path = cell.directory / f"exec_model_{cell.commit}" / "exec_model.npz"
    if not path.is_file():
        raise FairleadError(f"the iteration times are missing: {path}")
    with np.load(path) as arrays:
        times = {name: arrays[name] for name in arrays.files}
    seconds = float(times["num_layers"]) * 1e-3
    linear = sum(times[name] for name in LINEAR)
    tokens = len(linear) - 1
    rounded = np.minimum((np.arange(tokens + 1) + 7) // 8 * 8, tokens)
    first = cell.commit == FIRST_COMMIT
    return OperatorTables(
        seconds * (linear[rounded] + times["attn_kv_cache_save"]),
        seconds * times["attn_decode"],
        seconds * times["attn_prefill"],
        decode_overhead=1.0 + float(times["attn_decode_overhead"]),
        prefill_overhead=1.0 + float(times["attn_prefill_overhead"]),
        chunk_step=1 if first else 32,
        round_each=first,
    )


def build_fleet(cell: Cell, replicas: int) -> Fleet:
    """The cluster of a cell.

    Raises:
        FairleadError: if the cell needs something that the engine or the recorded times do not have.
    """
    if cell.commit not in SCHEDULERS:
        raise FairleadError(
            f"the semantics of Vidur {cell.commit} are not known: {', '.join(SCHEDULERS)} are"
        )
    kind = cell.scheduler
    if kind not in SCHEDULERS[cell.commit]:
        raise FairleadError(f"there is no counterpart of Vidur's scheduler {kind!r}")
    if cell.option("replica_config_num_pipeline_stages", default=1) > 1:
        raise FairleadError("there is no pipeline parallelism here")
    own = f"{kind}_scheduler_config_"
    ours = SCHEDULERS[cell.commit][kind]
    ahead = cell.option("cache_config_num_preallocate_tokens", default=AHEAD_TOKENS)
    if ours == "vidur_v1" and -(-ahead // cell.block_size) != AHEAD:
        raise FairleadError(
            f"{ahead:g} tokens are taken ahead, but vidur_v1 takes {AHEAD} blocks of {cell.block_size} tokens"
        )
    watermark = cell.option(own + "watermark_blocks_fraction", default=WATERMARK)
    if ours == "vllm_v0":
        budget = cell.option(own + "max_tokens_in_batch", default=BATCH_TOKENS)
    else:
        budget = cell.option(own + "chunk_size", default=CHUNK)
    return custom_fleet(
        [read_tables(cell)] * replicas,
        np.full(replicas, cell.num_blocks),
        token_budget=int(budget),
        max_num_seqs=int(cell.option(own + "batch_size_cap", default=CAP)),
        block_size=cell.block_size,
        prefix_caching=cell.caches,
        scheduler=SchedulerOptions(
            ours,
            watermark=None if ours == "vidur_v1" else watermark,
            padded=cell.commit == FIRST_COMMIT,
            restart_loses_prompt=True,
        ),
    )


def run_engine(fleet: Fleet, recorded: Recorded) -> Clusters:
    """The same requests on the same replicas, to the last token."""
    clusters = Clusters([fleet], [recorded.requests])
    for i in range(clusters.N):
        clusters.observe()
        clusters.route(recorded.replica[i : i + 1])
    clusters.drain()
    return clusters


def compare(cell: Cell) -> dict[str, Any]:
    """Run one cell; the differences over its requests.

    Raises:
        FairleadError: if it cannot be run.
    """
    recorded = read_requests(cell)
    fleet = build_fleet(cell, int(recorded.replica.max()) + 1)
    made = run_engine(fleet, recorded).outcomes(0)
    pairs = {
        "scheduling_delay": (made.scheduling_delay_s, recorded.delay_s),
        "ttft": (made.ttft_s, recorded.ttft_s),
        "e2e": (made.e2e_s, recorded.e2e_s),
    }
    errors = {name: np.abs(ours - theirs) for name, (ours, theirs) in pairs.items()}
    # Delays are often zero: only the latencies have a relative error.
    relative = np.maximum(errors["ttft"] / recorded.ttft_s, errors["e2e"] / recorded.e2e_s)
    return {
        "cell": cell.name,
        "commit": cell.commit,
        "requests": len(recorded.requests),
        "max_abs_error_s": float(max(error.max() for error in errors.values())),
        "p99_relative_error": float(np.percentile(relative, 99)),
        **{f"max_abs_error_{name}_s": float(error.max()) for name, error in errors.items()},
        "restarts": int(recorded.restarts.sum()),
        "restarts_that_differ": int((made.preemptions != recorded.restarts).sum()),
        **compare_batches(cell, fleet, recorded),
        "options": {
            "scheduler": fleet.scheduler.name,
            "token_budget": fleet.token_budget,
            "max_num_seqs": fleet.max_num_seqs,
            "kv_blocks": int(fleet.kv_blocks[0]),
            "watermark_blocks": fleet.scheduler.watermark_blocks(int(fleet.kv_blocks[0])),
            "padded": fleet.scheduler.padded,
            "restart_loses_prompt": fleet.scheduler.restart_loses_prompt,
            "prefix_caching": fleet.prefix_caching,
        },
    }


def compare_batches(cell: Cell, fleet: Fleet, recorded: Recorded) -> dict[str, int]:
    """How many of the logged batches the twin forms too: same requests, same tokens, same start."""
    path = cell.directory / f"vidur_{cell.commit}" / f"{cell.name}.batches.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        logged = list(csv.reader(file))[1:]
    # What arrives after the last of these batches was formed is in none of them.
    last = max(float(row[0]) for row in logged)
    requests = recorded.requests[: int(np.searchsorted(recorded.requests.arrival_s, last, "right"))]
    result = reference.simulate(fleet, requests, recorded.replica[: len(requests)], record_iterations=True)
    ours: dict[int, Iterator[reference.Iteration]] = {
        r: iter([i for i in result.iterations if i.replica == r]) for r in range(fleet.num_replicas)
    }
    compared = identical = 0
    for start, replica, _, _, _, _, entries in logged:
        iteration = next(ours[int(replica)], None)
        theirs = {tuple(int(n) for n in entry.split(":")[:3]) for entry in entries.split(";")}
        compared += 1
        if iteration is not None and abs(iteration.start_s - float(start)) < 1e-6:
            # Vidur counts a token as processed when it is emitted, not when it is in the cache.
            batch = {(s.request, s.chunk, s.computed + s.decoding) for s in iteration.slots if s.chunk}
            identical += batch == theirs
    return {"batches_compared": compared, "batches_identical": identical}


def run(directory: Path, wanted: list[str]) -> list[dict[str, Any]]:
    """All wanted cells (none named: all)."""
    cells = list(find_cells(directory))
    unknown = sorted(set(wanted) - {cell.name for cell in cells})
    if unknown or not cells:
        known = ", ".join(cell.name for cell in cells) or "none"
        raise FairleadError(f"no cell {', '.join(unknown)} in {directory}; there are: {known}")
    rows = []
    for cell in cells:
        if wanted and cell.name not in wanted:
            continue
        try:
            rows.append(compare(cell))
        except FairleadError as error:
            rows.append({"cell": cell.name, "commit": cell.commit, "error": str(error)})
        except (OSError, ValueError, KeyError) as error:
            reason = f"its files cannot be read: {type(error).__name__} {error}"
            rows.append({"cell": cell.name, "commit": cell.commit, "error": reason})
        print(describe(rows[-1]), file=sys.stderr)
    return rows


def describe(row: Mapping[str, Any]) -> str:
    """One line about a cell."""
    if "error" in row:
        return f"{row['cell']:32s} cannot be run: {row['error']}"
    text = (
        f"{row['cell']:32s} {row['requests']:6d} requests, largest difference {row['max_abs_error_s']:.1e} s"
    )
    if row["restarts"]:
        text += f", {row['restarts']} restarts"
    if "batches_compared" in row:
        text += f", {row['batches_identical']} of {row['batches_compared']} batches identical"
    return text


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--reference", type=Path, required=True, help="directory of recorded runs")
    parser.add_argument("--cells", default="", help="names separated by commas (default: all)")
    parser.add_argument("--json", action="store_true", help="the comparison as JSON on stdout")
    arguments = parser.parse_args()
    try:
        rows = run(arguments.reference, [name for name in arguments.cells.split(",") if name])
    except FairleadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"cells": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
