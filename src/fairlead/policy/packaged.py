"""Policies that ship with the package, by name: `fairlead/generalist`.

Beside each `NAME.onnx` in `policies/` lie `NAME.yaml`, what it is trained with, and `NAME.json`, how it went.
`benchmarks/generalist.py` makes them anew.
"""

from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.section import did_you_mean

PREFIX = "fairlead/"
GENERALIST = f"{PREFIX}generalist"
"""One policy for all kinds of clusters: what decides unless something else is asked for."""

DIRECTORY = Path(__file__).parents[1] / "policies"

RETRAIN = "python benchmarks/generalist.py"
"""The command that makes the generalist anew, in a clone of the repository."""


def packaged_names() -> list[str]:
    """The policies that ship with Fairlead, sorted."""
    return sorted(PREFIX + path.stem for path in DIRECTORY.glob("*.onnx"))


def is_packaged(text: str) -> bool:
    """Whether `text` is the name of a packaged policy, or meant to be one; files end in .onnx."""
    return text.startswith(PREFIX) and not text.endswith(".onnx")


def policy_path(text: str | Path) -> Path:
    """The file of the policy that `text` names: a packaged one, or a file of the user's own.

    Raises:
        FairleadError: if it is called like a packaged one, and there is none of that name.
    """
    name = str(text)
    if not is_packaged(name):
        return Path(text)
    if name not in packaged_names():
        raise FairleadError(f"unknown packaged policy {name!r}; {did_you_mean(name, packaged_names())}")
    return DIRECTORY / f"{name.removeprefix(PREFIX)}.onnx"
