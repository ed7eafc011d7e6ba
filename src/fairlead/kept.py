"""Measurements that are kept between runs: small files, each there as a whole or not at all."""

from pathlib import Path
from tempfile import TemporaryDirectory

from fairlead.errors import FairleadError


def keep(path: Path, text: str, what: str) -> None:
    """Write `text` to `path`, whatever other processes keep there at the same moment.

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
