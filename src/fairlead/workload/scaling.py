"""The same scenario with another number of replicas: `chat-unequal:16`."""

from collections.abc import Sequence

from fairlead.errors import FairleadError
from fairlead.workload.scenario import Scenario


def split_count(text: str) -> tuple[str, int | None]:
    """`NAME_OR_FILE:16` as the name and 16; without a number behind a colon the text alone."""
    name, colon, count = text.rpartition(":")
    return (name, int(count)) if colon and name and count.isdecimal() else (text, None)


def with_replicas(scenario: Scenario, count: int) -> Scenario:
    """The scenario with `count` replicas, named `NAME:count`; its groups keep their proportions.

    Loads are fractions of capacity, so the requests become more or fewer with the cluster.

    Raises:
        FairleadError: for fewer replicas than groups, and where a fault names a replica that is gone.
    """
    if count == scenario.num_replicas:
        return scenario
    counts = proportional([group.count for group in scenario.replicas], count)
    if counts is None:
        raise FairleadError(
            f"{scenario.name}:{count}: the cluster has {len(scenario.replicas)} groups of replicas, and each "
            "keeps at least one"
        )
    groups = [{**dict(group), "count": each} for group, each in zip(scenario.replicas, counts, strict=True)]
    return scenario.replace(name=f"{scenario.name}:{count}", replicas=groups)


def proportional(shares: Sequence[int], total: int) -> list[int] | None:
    """`total` dealt in proportion to `shares`, at least 1 to each; None where there is not enough.

    Remainders go to those that were cut most (the method of the largest remainder); ties to the first.
    """
    if total < len(shares):
        return None
    exact = [share * total / sum(shares) for share in shares]
    given = [max(1, int(each)) for each in exact]
    while sum(given) != total:
        step = 1 if sum(given) < total else -1
        open_to = [i for i in range(len(shares)) if step > 0 or given[i] > 1]
        given[max(open_to, key=lambda i: (step * (exact[i] - given[i]), -i))] += step
    return given
