"""Writing results so that nothing is ever overwritten by accident or left half written."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fairlead.errors import FairleadError

RESULTS_FILE = "results.json"
REQUESTS_FILE = "requests.parquet"
REPORT_FILE = "report.html"
DEPENDENCE_FILE = "dependence.json"
RUN_FILES: tuple[str, ...] = (RESULTS_FILE, REQUESTS_FILE, REPORT_FILE, DEPENDENCE_FILE)


def partial_file(path: Path) -> Path:
    """Where `path` is written until it is complete; in the same directory, so that renaming is atomic."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a file to write to, which becomes `path` when the block ends, or vanishes if it raises."""
    partial = partial_file(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file, all of it or nothing."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def prepare_output_directory(path: str | Path, names: Sequence[str] = RUN_FILES) -> Path:
    """Make the directory for a run's results.

    Args:
        path: the directory; created with its parents if need be.
        names: the files that the run will write; other files in the directory do not matter.

    Raises:
        FairleadError: it holds one of `names` already, is a file, or cannot be written to.
    """
    directory = Path(path)
    if directory.exists() and not directory.is_dir():
        raise FairleadError(f"{directory} is a file, not a directory: choose another output directory")
    for name in names:
        for held in (directory / name, partial_file(directory / name)):
            if held.exists():
                raise FairleadError(
                    f"{directory} already holds another run ({held.name}): choose another output directory, "
                    "or move that run away; nothing was overwritten"
                )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FairleadError(
            f"cannot make the output directory {directory}: {error.strerror or error}"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise FairleadError(f"cannot write to {directory}: choose another output directory")
    return directory
