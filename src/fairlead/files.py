"""Files that are there as a whole or not at all, whatever goes wrong while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fairlead.errors import FairleadError


def partial_file(path: Path) -> Path:
    """Where `path` is written until it is complete; in the same directory, so that renaming is atomic."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a file to write to, which becomes `path` when the block ends, or vanishes if it raises.

    A crash at any moment, of the machine too, leaves the old file or the new one. For one writer at a time.
    """
    partial = partial_file(path)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # before the name is given: a file system may do these in any order
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file, all of it or nothing."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def keep(path: Path, text: str, what: str) -> None:
    """Keep a measurement for later runs, whatever other processes keep in `path` at the same moment.

    Raises:
        FairleadError: if it cannot be written; `what` says what it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a place of its own, which vanishes: several processes may have measured the same.
        with TemporaryDirectory(dir=path.parent) as own:
            part = Path(own) / path.name
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    except OSError as error:
        raise FairleadError(f"cannot keep the measured {what} in {path}: {error.strerror}") from None
