"""Requests: when they arrive and how long they are, and the named scenarios that say so."""

from fairlead.workload.requests import Requests
from fairlead.workload.scenario import (
    Scenario,
    check_load,
    check_runs,
    generate,
    load_scenario,
    scenario_names,
)

__all__ = [
    "Requests",
    "Scenario",
    "check_load",
    "check_runs",
    "generate",
    "load_scenario",
    "scenario_names",
]
