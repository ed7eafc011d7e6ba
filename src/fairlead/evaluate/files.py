"""The files of a run's results, none of which is ever overwritten by accident."""

import os
from collections.abc import Sequence
from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.files import partial_file

RESULTS_FILE = "results.json"
REQUESTS_FILE = "requests.parquet"
REPORT_FILE = "report.html"
DEPENDENCE_FILE = "dependence.json"
RUN_FILES: tuple[str, ...] = (RESULTS_FILE, REQUESTS_FILE, REPORT_FILE, DEPENDENCE_FILE)


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
