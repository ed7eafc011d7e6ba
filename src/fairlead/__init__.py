"""Fairlead learns how to route requests across the replicas of an LLM inference cluster.

The names below are the public interface. They are imported when first used, so `import fairlead`
itself loads nothing heavy.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.workload.scenario import Scenario, load_scenario, scenario_names

__version__ = "0.1.0"

__all__ = [
    "FairleadError",
    "Scenario",
    "__version__",
    "load_scenario",
    "scenario_names",
]

_HOME = {
    "Scenario": "fairlead.workload.scenario",
    "load_scenario": "fairlead.workload.scenario",
    "scenario_names": "fairlead.workload.scenario",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'fairlead' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(set(globals()) | set(__all__))


if "gymnasium" in sys.modules:
    # Gymnasium is loaded already, so registering the environment costs nothing; otherwise
    # `import fairlead.env` does it.
    import_module("fairlead.env")
