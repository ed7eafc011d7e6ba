"""The same scenario at another load: `chat-equal@1.2`."""

import re

from fairlead.workload.scenario import Scenario


def split_load(text: str) -> tuple[str, float | None]:
    """`NAME_OR_FILE@1.2` as the name and 1.2; without a number behind an `@` the text alone."""
    found = re.fullmatch(r"(.+)@([0-9]+(?:\.[0-9]+)?)", text)
    return (found[1], float(found[2])) if found else (text, None)


def with_load(scenario: Scenario, load: float) -> Scenario:
    """The scenario at `load` of its capacity alone, named `NAME@load`.

    Above 1 more arrives than the cluster can serve: queues grow for as long as it lasts.

    Raises:
        FairleadError: for a load that is no sensible fraction of capacity.
    """
    return scenario.replace(name=f"{scenario.name}@{load:g}", loads=(load,))
