"""Request traces from CSV files, in two formats known by their header.

- Azure (Azure Public Dataset, "LLM inference traces"): `TIMESTAMP,ContextTokens,GeneratedTokens`, with
  ISO 8601 timestamps.
- Vidur: `arrived_at,num_prefill_tokens,num_decode_tokens`, with seconds. Vidur's files of lengths
  only (no `arrived_at`) serve where times are not needed.

Other columns are ignored. A request needs at least one prompt and one output token: without an
output token it has neither a first token nor an end, so such a row is an error, not a guess.
"""

import csv
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fairlead.errors import FairleadError
from fairlead.rng import stream
from fairlead.workload.requests import Requests

MOST_TOKENS = 10_000_000
"""Of a prompt or an output; more is a mistake in the trace."""


class Format(NamedTuple):
    """The columns of one trace format."""

    name: str
    time: str
    prompt: str
    output: str
    parse_time: Callable[[str], float]
    """Reads a cell of the time column; ValueError if it cannot."""
    unit_s: float
    """Seconds per unit of what `parse_time` returns."""
    from_first: bool
    """Whether times are counted from the first row (calendar times) rather than from 0."""


def _microseconds(text: str) -> int:
    """Microseconds since 2000, an exact integer; a time zone is honoured, UTC is the default."""
    moment = datetime.fromisoformat(text.strip())
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _elapsed(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError("must be finite")
    if seconds < 0:
        raise ValueError("must not be negative")
    return seconds


FORMATS = (
    Format("Azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", _microseconds, 1e-6, True),
    Format("Vidur", "arrived_at", "num_prefill_tokens", "num_decode_tokens", _elapsed, 1.0, False),
)


TrainShare = Annotated[float, Field(gt=0, lt=1)]
"""Share of a trace's rows, from the start, that belongs to training and validation."""


class Lengths(NamedTuple):
    """Prompt and output lengths of a trace, (N,) int64 each."""

    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]


class Recording(NamedTuple):
    """The trace that a workload's arrivals are taken from, and how much of it one run takes."""

    path: Path
    rows: int
    train_share: float
    needed: int
    """Rows for one run."""


def read_trace(path: Path | str) -> Requests:
    """The requests of a CSV file in either format, in the order of the file.

    Azure's calendar times are counted from the first row; Vidur's seconds are kept. Reading is cached
    until the file changes: treat the arrays as read-only.

    Raises:
        FairleadError: naming the row, for a missing column or cell, a value that is negative, not finite
            or not a whole number of tokens from 1 to `MOST_TOKENS`, and for times that are not sorted.
    """
    arrival_s, lengths = _read(*version(path), True)
    return Requests(arrival_s, lengths.prompt_tokens, lengths.output_tokens)


def read_lengths(path: Path | str) -> Lengths:
    """The lengths alone of a CSV file in either format; the time column may be absent.

    Raises:
        FairleadError: as `read_trace`, times aside.
    """
    return _read(*version(path), False)[1]


def part_of(rows: int, train_share: float, split: str) -> range:
    """Which of a trace's `rows` rows belong to a split.

    The first `train_share` of them are for "train" and "validate", the others for "evaluate".
    """
    boundary = round(rows * train_share)
    return range(boundary, rows) if split == "evaluate" else range(boundary)


def window(rows: int, count: int, train_share: float, seed: int, split: str, path: Path) -> slice:
    """Which `count` consecutive rows of a trace one run replays. Times and lengths get the same window.

    Training begins anywhere in its part. The parts of "validate" and "evaluate" are cut into as many disjoint
    windows as they have room for, and seed s gets number s modulo how many there are: consecutive seeds have
    no row in common as long as there are no more of them than windows (`check_runs` sees to that).

    Raises:
        FairleadError: if the split has fewer rows than asked for.
    """
    part = part_of(rows, train_share, split)
    if count > len(part):
        raise FairleadError(
            f"{path}: {count} requests asked for, but the trace has {rows} rows, of which {len(part)} for "
            f"{split} (train_share {train_share:g}); ask for at most {len(part)} or bring a longer trace"
        )
    if split == "train":
        offset = int(stream(seed, split, "trace window").integers(len(part) - count + 1))
    else:
        offset = count * (seed % (len(part) // count))
    start = part.start + offset
    return slice(start, start + count)


def version(path: Path | str) -> tuple[Path, int, int]:
    """The file's identity for the cache: its path, time of change and size."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise FairleadError(f"cannot read the trace {path}: {error.strerror}") from None
    return Path(path), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _read(
    path: Path, _changed_ns: int, _size: int, with_times: bool
) -> tuple[npt.NDArray[np.float64], Lengths]:
    times: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            layout = _recognise(path, header, with_times)
            columns = [header.index(name) for name in (layout.prompt, layout.output)]
            time_column = header.index(layout.time) if with_times else -1
            row = 0
            for cells in reader:
                if not cells:
                    continue  # a blank line, often the last one
                row += 1
                where = f"{path}: row {row} (line {reader.line_num})"
                if len(cells) < len(header):
                    raise FairleadError(
                        f"{where} has {len(cells)} cells, the header has {len(header)}; complete it"
                    )
                prompts.append(_tokens(cells[columns[0]], f"{where}: {layout.prompt}"))
                outputs.append(_tokens(cells[columns[1]], f"{where}: {layout.output}"))
                if with_times:
                    times.append(_time(cells[time_column], layout, f"{where}: {layout.time}"))
                    if row > 1 and times[-1] < times[-2]:
                        raise FairleadError(
                            f"{where}: {layout.time} is earlier than in row {row - 1}; sort the trace by it"
                        )
        except (csv.Error, UnicodeDecodeError) as error:
            raise FairleadError(f"{path} is not a CSV text file: {error}") from None
    if not prompts:
        raise FairleadError(f"{path}: the trace has a header but no rows")
    origin = times[0] if times and layout.from_first else 0
    arrival_s = np.array([time - origin for time in times], dtype=np.float64) * layout.unit_s
    return arrival_s, Lengths(np.array(prompts, dtype=np.int64), np.array(outputs, dtype=np.int64))


def _recognise(path: Path, header: list[str], with_times: bool) -> Format:
    """The format whose columns the header has; if none fits, an error about the nearest one."""
    if not any(header):
        raise FairleadError(f"{path}: the file is empty; a trace starts with a header line")
    missing = []
    for layout in FORMATS:
        needed = ([layout.time] if with_times else []) + [layout.prompt, layout.output]
        missing.append([name for name in needed if name not in header])
        if not missing[-1]:
            return layout
    nearest = min(range(len(FORMATS)), key=lambda index: len(missing[index]))
    known = " or ".join(
        f"{layout.time},{layout.prompt},{layout.output} ({layout.name})" for layout in FORMATS
    )
    raise FairleadError(f"{path}: missing column {', '.join(missing[nearest])}; a trace has {known}")


def _time(cell: str, layout: Format, where: str) -> float:
    try:
        return layout.parse_time(cell)
    except (ValueError, OverflowError) as error:
        why = str(error) if str(error).startswith("must") else f"is not a time of the {layout.name} format"
        raise FairleadError(f"{where} = {cell!r} {why}; correct or delete the row") from None


def _tokens(cell: str, where: str) -> int:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number):
        raise FairleadError(f"{where} = {cell!r} is not a finite whole number; correct or delete the row")
    if number < 1:
        raise FairleadError(f"{where} = {cell!r} must be at least 1 token; correct or delete the row")
    if number > MOST_TOKENS:
        raise FairleadError(
            f"{where} = {cell!r} must be at most {MOST_TOKENS:,} tokens; correct or delete the row"
        )
    return int(number)
