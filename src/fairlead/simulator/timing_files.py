"""Iteration-time models from the files that a scenario names (`replicas[].timing`)."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator.fitted import read_coefficients
from fairlead.simulator.hardware import Model
from fairlead.simulator.tables import StepTable, TimingModel
from fairlead.simulator.vidur_profile import read_vidur_profile
from fairlead.workload.scenario import EngineOptions
from fairlead.workload.timing import FittedTiming, TableTiming, TimingSection

_Grid = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
GRID = ("tokens", "sequences", "seconds")
"""The arrays of a table file: the grid's two axes and the times on it."""


def read_timing(
    section: TimingSection, facts: Model, tensor_parallel: int, engine: EngineOptions
) -> TimingModel:
    """The model that a section describes.

    Args:
        section: names the files.
        facts: the model that a replica serves.
        tensor_parallel: devices per replica.
        engine: whose limits say how far tables must reach.

    Raises:
        FairleadError: naming the file and what is wrong with it.
    """
    if isinstance(section, TableTiming):
        return read_step_table(section.path, section.kv_token_s)
    if isinstance(section, FittedTiming):
        return read_coefficients(section.path)
    return read_vidur_profile(
        section.mlp,
        section.attention,
        section.all_reduce,
        facts,
        tensor_parallel=tensor_parallel,
        block_size=engine.block_size,
        max_tokens=max(engine.max_num_batched_tokens, engine.max_num_seqs),
    )


def read_step_table(path: Path, kv_s: float) -> StepTable:
    """The table in a JSON, npz or CSV file; times between its points are interpolated linearly.

    JSON and npz hold `tokens` (T,), `sequences` (S,) and `seconds` (T, S); a CSV has these three as
    columns, one row for each point of the grid. Batches below the first point take its time; the table
    ends at the last.

    Raises:
        FairleadError: naming the file and what is wrong with it.
    """
    try:
        grid = _read_csv(path) if path.suffix == ".csv" else _read_arrays(path)
        return interpolated(*grid, kv_s)
    except FairleadError as error:
        raise FairleadError(f"{path}: {error}") from None


def interpolated(
    tokens: npt.NDArray[np.float64],
    sequences: npt.NDArray[np.float64],
    seconds: npt.NDArray[np.float64],
    kv_s: float,
) -> StepTable:
    """A table of every whole number up to the ends of the grid; bilinear between its points.

    Raises:
        FairleadError: if the axes do not increase, are not positive whole numbers, or the shapes differ.
    """
    for name, axis in (("tokens", tokens), ("sequences", sequences)):
        if axis.ndim != 1 or not axis.size or not (np.isfinite(axis) & (axis == np.rint(axis))).all():
            raise FairleadError(f"{name} must be a list of whole numbers")
        if axis[0] < 1 or (np.diff(axis) <= 0).any():
            raise FairleadError(f"{name} must be positive and increase")
    if seconds.shape != (len(tokens), len(sequences)):
        raise FairleadError(
            f"seconds has shape {seconds.shape}, but there are {len(tokens)} tokens and "
            f"{len(sequences)} sequences"
        )
    if not np.isfinite(seconds).all():
        raise FairleadError("seconds must be finite")
    every = np.arange(int(sequences[-1]) + 1)
    rows = np.array([np.interp(every, sequences, row) for row in seconds])
    every = np.arange(int(tokens[-1]) + 1)
    return StepTable(np.array([np.interp(every, tokens, column) for column in rows.T]).T, kv_s)


def _read_arrays(path: Path) -> _Grid:
    try:
        content = json.loads(path.read_text()) if path.suffix == ".json" else _npz(path)
        tokens, sequences, seconds = (np.asarray(content[name], np.float64) for name in GRID)
    except KeyError as error:
        raise FairleadError(f"{error.args[0]} is missing: give {', '.join(GRID)}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FairleadError(f"cannot be read as {path.suffix.lstrip('.') or 'npz'}: {error}") from None
    return tokens, sequences, seconds


def _npz(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    with path.open("rb") as file:  # numpy would leave a broken one open
        return dict(np.load(file))


def _read_csv(path: Path) -> _Grid:
    try:
        with path.open(encoding="utf-8") as file:
            header = [name.strip() for name in file.readline().split(",")]
            cells = np.loadtxt(file, delimiter=",", ndmin=2)
        tokens, sequences, seconds = (cells[:, header.index(name)] for name in GRID)
    except (OSError, ValueError, IndexError) as error:
        raise FairleadError(f"cannot be read as CSV with the columns {', '.join(GRID)}: {error}") from None
    rows, row = np.unique(tokens, return_inverse=True)
    columns, column = np.unique(sequences, return_inverse=True)
    points = len(np.unique(row * len(columns) + column))
    if not points == len(seconds) == len(rows) * len(columns):
        raise FairleadError("give one row for every pair of tokens and sequences")
    grid = np.empty((len(rows), len(columns)))
    grid[row, column] = seconds
    return rows, columns, grid
