"""Logs of a run: one CSV row per event under a fixed header, the same numbers in TensorBoard."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from fairlead.errors import FairleadError


class Progress(NamedTuple):
    """What training tells whoever watches it."""

    stage: str
    """`imitation`, `critic warm-up` or `ppo`; `evaluation` within them."""
    done: int
    total: int
    metrics: Mapping[str, float]
    """The latest numbers, for display."""


class CsvLog:
    """A CSV file whose rows always match their header. The first column, an integer, numbers the rows."""

    def __init__(self, path: Path, columns: tuple[str, ...], *, keep_below: int = 0) -> None:
        """Open `path`; of an existing file, rows numbered below `keep_below` are kept.

        Raises:
            FairleadError: if an existing file has another header.
        """
        self.columns = columns
        kept: list[list[str]] = []
        if path.exists() and keep_below > 0:
            with path.open(newline="") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            if tuple(header) != columns:
                raise FairleadError(f"{path} has other columns than this version writes; move it away")
            # A row cut short by a crash is one whose iteration is done again.
            kept = [row for row in rows if len(row) == len(columns) and int(row[0]) < keep_below]
        self._file: IO[str] = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows([list(columns), *kept])
        self._file.flush()

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; its keys must be the columns. NaN becomes an empty cell."""
        if set(row) != set(self.columns):
            raise ValueError(f"row and header differ in {sorted(set(row) ^ set(self.columns))}")
        number, *rest = (row[name] for name in self.columns)
        self._writer.writerow([int(number), *("" if math.isnan(x) else repr(float(x)) for x in rest)])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tracker:
    """The CSV log and TensorBoard events of one kind of event."""

    def __init__(self, directory: Path, name: str, columns: tuple[str, ...], *, keep_below: int = 0) -> None:
        """Log to `directory/name.csv` and `directory/tensorboard`; `keep_below` as in `CsvLog`."""
        self._csv = CsvLog(directory / f"{name}.csv", columns, keep_below=keep_below)
        self._board = SummaryWriter(str(directory / "tensorboard" / name), purge_step=keep_below or None)
        self._number = columns[0]

    def write(self, row: Mapping[str, float]) -> None:
        """Log one event."""
        self._csv.write(row)
        for name, value in row.items():
            if name != self._number and not math.isnan(value):
                self._board.add_scalar(name, value, int(row[self._number]))

    def histogram(self, name: str, values: npt.NDArray[np.floating[Any]], number: int) -> None:
        """The distribution of many values at once, in TensorBoard."""
        if len(values):
            self._board.add_histogram(name, values, number)

    def __enter__(self) -> "Tracker":
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close both."""
        self._csv.close()
        self._board.close()
