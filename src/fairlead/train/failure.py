"""A number that is not finite ends training, with everything that is needed to see why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairlead.errors import FairleadError
from fairlead.files import atomic

FAILURE_FILE = "failure.pt"


class NotFinite(FairleadError):
    """Something became NaN or infinite."""

    def __init__(self, message: str, culprit: str, tensors: Mapping[str, Any]) -> None:
        """`culprit` names what is not finite; `tensors` are what it was computed from."""
        super().__init__(message)
        self.culprit, self.tensors = culprit, dict(tensors)


def dump(error: NotFinite, directory: Path, **more: Any) -> Path:
    """Write what `error` carries, and more, to `failure.pt`; returns its path."""
    path = directory / FAILURE_FILE
    whole = {"message": str(error), "culprit": error.culprit, "tensors": error.tensors, **more}
    with atomic(path) as partial:
        torch.save(whole, partial)
    return path
