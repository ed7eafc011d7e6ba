"""What goes wrong in a cluster while it serves: replicas that slow down, or die and return.

A scenario lists rules (`faults:`); `plan` works out from them, for one run, when each replica changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.section import Section, invalid

Which = Annotated[int, Field(ge=0)] | Literal["any"]


class _Window(Section):
    """A stretch of time in which something is wrong with a replica, perhaps again and again."""

    replica: Which
    """Its number, counted from 0; `any` draws one anew for each window."""
    start_s: float = Field(ge=0)
    """When it begins, seconds since the start of the run."""
    every_s: float | None = Field(default=None, gt=0)
    """It begins again and again, this many seconds apart; default: only once."""


class Slowdown(_Window):
    """A straggler: iterations that start within the window last `factor` times as long."""

    kind: Literal["slowdown"]
    factor: float = Field(gt=0, le=1000)
    """3: at a third of its speed."""
    duration_s: float = Field(gt=0)
    """Length of a window, seconds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_repetition(self.duration_s, self.every_s)
        return self


class Outage(_Window):
    """The replica dies and loses all its requests; at the end of the window it returns, empty."""

    kind: Literal["outage"]
    duration_s: float | None = Field(gt=0)
    """Length of a window, seconds; null: it never returns."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.duration_s is None and self.every_s is not None:
            raise invalid("an outage that never ends cannot repeat: give duration_s, or leave out every_s")
        _check_repetition(self.duration_s, self.every_s)
        return self


Fault = Annotated[Slowdown | Outage, Field(discriminator="kind")]


def _check_repetition(duration_s: float | None, every_s: float | None) -> None:
    if duration_s is not None and every_s is not None and duration_s >= every_s:
        raise invalid(
            f"duration_s ({duration_s:g}) must be less than every_s ({every_s:g}): "
            "the next window would begin before this one ends"
        )


def check_rules(rules: Sequence[Slowdown | Outage], replicas: int) -> None:
    """Whether the rules fit a cluster of `replicas` replicas, as far as it can be known without a run.

    Raises:
        pydantic_core.PydanticCustomError: for a replica that does not exist, and where no replica is left.
    """
    lost: dict[int, float] = {}
    for n, rule in enumerate(rules):
        which = 0 if replicas == 1 else rule.replica
        if rule.replica != "any" and rule.replica >= replicas:
            raise invalid(
                f"faults.{n}: there is no replica {rule.replica}: the {replicas} replicas are numbered "
                f"from 0 to {replicas - 1}"
            )
        if isinstance(rule, Outage) and rule.duration_s is None and which != "any":
            lost[which] = min(rule.start_s, lost.get(which, np.inf))
    if len(lost) == replicas:
        raise invalid(_no_replica_left(max(lost.values())))


def _no_replica_left(time_s: float) -> str:
    return (
        f"from {time_s:g} s on no replica is left, and none returns: requests would wait for ever; "
        "give an outage a duration_s"
    )


@dataclass(frozen=True, eq=False)
class Faults:
    """The changes of one run, in order of time, at most one per replica at a time."""

    time_s: npt.NDArray[np.float64]
    """(E,) when, seconds since the start of the run."""
    replica: npt.NDArray[np.int64]
    """(E,) which replica changes."""
    pace: npt.NDArray[np.float64]
    """(E,) from then on its iterations last so many times as long as they should."""
    up: npt.NDArray[np.bool_]
    """(E,) from then on it is there."""

    def __len__(self) -> int:
        """E."""
        return len(self.time_s)

    def check(self, replicas: int) -> None:
        """That a cluster of `replicas` replicas can live with this.

        Raises:
            FairleadError: for a replica that does not exist, or if in the end none is left.
        """
        if len(self) and not 0 <= self.replica.min() <= self.replica.max() < replicas:
            raise FairleadError(f"a fault of replica {self.replica.max()}, but there are {replicas}")
        last_up = np.ones(replicas, np.bool_)
        for r, up in zip(self.replica, self.up, strict=True):
            last_up[r] = up
        if not last_up.any():
            raise FairleadError(_no_replica_left(float(self.time_s[~self.up].max())))


class _Interval(NamedTuple):
    start_s: float
    end_s: float
    rule: Slowdown | Outage


def plan(rules: Sequence[Slowdown | Outage], replicas: int, until_s: float, seed: int, split: str) -> Faults:
    """The changes that the rules make in a run whose last request arrives at `until_s`.

    No window begins after that; those that have begun end as they should. Replicas that are drawn come from a
    stream of their own for each rule, so a longer run only goes on.

    Where windows on one replica overlap, the factors multiply, and it is away until the last outage ends.

    Raises:
        FairleadError: if no replica would be left for ever.
    """
    windows: list[list[_Interval]] = [[] for _ in range(replicas)]
    for n, rule in enumerate(rules):
        starts = _starts(rule, until_s)
        draw = rng.stream(seed, split, "faults", n)
        for start_s in starts:
            drawn = int(draw.integers(replicas))
            replica = drawn if rule.replica == "any" else rule.replica
            end_s = np.inf if rule.duration_s is None else start_s + rule.duration_s
            windows[replica].append(_Interval(start_s, end_s, rule))
    rows = [(time, r, *state) for r, each in enumerate(windows) for time, *state in _changes(each)]
    rows.sort(key=lambda row: row[:2])
    made = Faults(
        np.array([row[0] for row in rows], np.float64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], np.bool_),
    )
    made.check(replicas)
    return made


def _starts(rule: Slowdown | Outage, until_s: float) -> list[float]:
    if rule.start_s > until_s:
        return []
    if rule.every_s is None:
        return [rule.start_s]
    count = int((until_s - rule.start_s) / rule.every_s) + 1
    return [rule.start_s + i * rule.every_s for i in range(count)]


def _changes(windows: list[_Interval]) -> list[tuple[float, float, bool]]:
    """(time, pace, up) at each moment at which one replica changes."""
    moments = sorted({w.start_s for w in windows} | {w.end_s for w in windows} - {np.inf})
    changes = []
    before = (1.0, True)
    for moment in moments:
        pace, up = 1.0, True
        for window in windows:
            if window.start_s <= moment < window.end_s:
                if isinstance(window.rule, Slowdown):
                    pace *= window.rule.factor
                else:
                    up = False
        if (pace, up) != before:
            changes.append((moment, pace, up))
            before = pace, up
    return changes
