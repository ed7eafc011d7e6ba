"""The file of fitted coefficients: a calibration writes it, a scenario names it (`kind: fitted`)."""

import json
import math
from pathlib import Path
from typing import Any

from fairlead.errors import FairleadError
from fairlead.simulator.timing import TIMING_FIELDS, Coefficients

FORMAT = "fairlead-coefficients-1"


def write_coefficients(path: Path, coefficients: Coefficients, report: dict[str, Any]) -> None:
    """Write the file; an existing one is replaced.

    Args:
        path: of the JSON file.
        coefficients: what was fitted.
        report: how good the fit is, as plain data; for people, nothing reads it.

    Raises:
        FairleadError: it cannot be written.
    """
    content = {"format": FORMAT, "coefficients": coefficients._asdict(), "fit": report}
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise FairleadError(f"cannot write {path}: {error.strerror}") from None


def read_coefficients(path: Path) -> Coefficients:
    """The coefficients in a file.

    Raises:
        FairleadError: it is not such a file, or a value is missing, negative or not finite.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FairleadError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FairleadError(f"{path} holds no fitted coefficients: write it with `fairlead calibrate fit`")
    values = content.get("coefficients")
    if not isinstance(values, dict) or set(values) != set(TIMING_FIELDS):
        raise FairleadError(f"{path}: coefficients must be exactly {', '.join(TIMING_FIELDS)}")
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value >= 0):
            raise FairleadError(f"{path}: {name} is {value}: give a finite number that is not negative")
    if values["base_s"] + max(values["weights_s"], values["token_s"]) + values["seq_s"] <= 0:
        raise FairleadError(f"{path}: an iteration would take no time: fit it to more measurements")
    return Coefficients(**{name: float(value) for name, value in values.items()})
