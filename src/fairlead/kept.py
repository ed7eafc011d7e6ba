"""Measurements that are kept between runs: small files, each there as a whole or not at all."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from fairlead.errors import FairleadError


def keep(path: Path, text: str, what: str) -> None:
    """Write `text` to `path`, whatever other processes keep there at the same moment.

    Raises:
        FairleadError: if it cannot be written; `what` says what it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: several processes may have measured the same.
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as part:
            part.write(text)
        os.replace(part.name, path)
    except OSError as error:
        raise FairleadError(f"cannot keep the measured {what} in {path}: {error.strerror}") from None
