"""Numbers that change during training, as functions of its progress from 0 (start) to 1 (end)."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fairlead.section import Section, invalid


class Constant(Section):
    """Always the same."""

    kind: Literal["constant"] = "constant"
    value: float

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return self.value

    @property
    def range(self) -> tuple[float, float]:
        """Its least and greatest value."""
        return self.value, self.value


class Linear(Section):
    """A straight line."""

    kind: Literal["linear"] = "linear"
    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return self.start + (self.end - self.start) * progress

    @property
    def range(self) -> tuple[float, float]:
        """Its least and greatest value."""
        return min(self.start, self.end), max(self.start, self.end)


class Exponential(Section):
    """Equal ratios in equal times; both ends are positive."""

    kind: Literal["exponential"] = "exponential"
    start: Annotated[float, Field(gt=0)]
    end: Annotated[float, Field(gt=0)]

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        return float(self.start * (self.end / self.start) ** progress)

    @property
    def range(self) -> tuple[float, float]:
        """Its least and greatest value."""
        return min(self.start, self.end), max(self.start, self.end)


class Piecewise(Section):
    """Straight lines between points (progress, value); constant before the first and after the last."""

    kind: Literal["piecewise"] = "piecewise"
    points: Annotated[tuple[tuple[float, float], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _in_order(self) -> "Piecewise":
        times = [progress for progress, _ in self.points]
        if times != sorted(times) or times[0] < 0 or times[-1] > 1:
            raise invalid(
                f"the schedule runs backwards or out of [0, 1]: {times}; the points' first numbers are "
                "shares of the training and must rise"
            )
        return self

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        times, values = zip(*self.points, strict=True)
        return float(np.interp(progress, np.array(times), np.array(values)))

    @property
    def range(self) -> tuple[float, float]:
        """Its least and greatest value."""
        values = [value for _, value in self.points]
        return min(values), max(values)


def _shorthand(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    if isinstance(value, list | tuple):
        return {"kind": "piecewise", "points": value}
    return value


Schedule = Annotated[
    Annotated[Constant | Linear | Exponential | Piecewise, Field(discriminator="kind")],
    BeforeValidator(_shorthand),
]
"""A schedule; a bare number is a constant, a list of (progress, value) pairs is piecewise linear."""


def _positive(schedule: Constant | Linear | Exponential | Piecewise) -> Any:
    if schedule.range[0] <= 0:
        raise invalid(f"must be greater than 0 all along, but falls to {schedule.range[0]:g}")
    return schedule


def _not_negative(schedule: Constant | Linear | Exponential | Piecewise) -> Any:
    if schedule.range[0] < 0:
        raise invalid(f"must not be negative, but falls to {schedule.range[0]:g}")
    return schedule


def _share(schedule: Constant | Linear | Exponential | Piecewise) -> Any:
    if schedule.range[0] < 0 or schedule.range[1] > 1:
        raise invalid(f"must stay between 0 and 1, but ranges over {list(schedule.range)}")
    return schedule


PositiveSchedule = Annotated[Schedule, AfterValidator(_positive)]
WeightSchedule = Annotated[Schedule, AfterValidator(_not_negative)]
ShareSchedule = Annotated[Schedule, AfterValidator(_share)]
