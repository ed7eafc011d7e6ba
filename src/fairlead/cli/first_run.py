"""What is slow only the first time is announced: compilation, and the measurement of capacity."""

from typing import TYPE_CHECKING

from fairlead.cli.output import say

if TYPE_CHECKING:
    from fairlead.workload.scenario import Scenario


def announce_compilation() -> None:
    """Say so if Numba has nothing in its cache yet and will compile the simulator."""
    from fairlead.compiled import is_cached, remove_old_caches

    if not is_cached():
        remove_old_caches()
        say("compiling the simulator (only the first time; about a minute) ...")


def capacity(scenario: "Scenario") -> float:
    """The scenario's capacity in requests/s, announced if it must be measured first."""
    from fairlead.simulator.capacity import capacity_rps

    announce_compilation()
    return capacity_rps(
        scenario,
        measuring=lambda: say(f"measuring the capacity of {scenario.name} (only the first time) ..."),
    )
