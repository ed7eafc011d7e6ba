"""Arrivals whose rate changes over seconds: Markov-modulated, with a daily rhythm, with flash crowds.

All are Poisson processes whose rate is the mean rate times a factor f(t) of mean 1. They are made by
rescaling time: if u_1, u_2, ... are the points of a Poisson process of rate 1, then the t_i with
rate * integral of f from 0 to t_i = u_i are those of the modulated process (Cinlar, "Introduction to
Stochastic Processes", 1975, section 4.7; Brown et al., "The time-rescaling theorem", Neural Computation
2002). Unlike thinning (Lewis and Shedler 1979), it wastes no draw, and both the u_i and the path of f stay
what they were when the rate changes.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fairlead.rng import stream
from fairlead.section import Section, invalid

Times = npt.NDArray[np.float64]
Seconds = Annotated[float, Field(ge=1e-3, le=1e9)]
_CHUNK = 256
"""Pieces of a path drawn at once; fixed, so that a longer run begins like a shorter one."""


class Pieces(NamedTuple):
    """A stretch of a rate that is constant in pieces."""

    seconds: npt.NDArray[np.float64]
    """(P,) how long each piece lasts."""
    factors: npt.NDArray[np.float64]
    """(P,) the rate in each, relative to the mean rate."""


def unit_poisson(count: int, seed: int, split: str) -> Times:
    """(count,) points of a Poisson process of rate 1, from the stream of arrivals."""
    return np.cumsum(stream(seed, split, "arrivals").standard_exponential(count))


def rescale(operational: Times, path: Iterator[Pieces]) -> Times:
    """The t_i with integral of f from 0 to t_i = `operational`[i], (N,) seconds, not decreasing.

    Args:
        operational: (N,) seconds at the mean rate, not decreasing.
        path: f from time 0 on, without an end.
    """
    operational = np.maximum(operational, np.finfo(np.float64).tiny)
    ends, areas = [np.zeros(1)], [np.zeros(1)]
    while areas[-1][-1] < operational[-1]:
        piece = next(path)
        ends.append(ends[-1][-1] + np.cumsum(piece.seconds))
        areas.append(areas[-1][-1] + np.cumsum(piece.seconds * piece.factors))
    # Where f is 0 the area stands still and nobody arrives: area[last - 1] < operational <= area[last].
    end, area = np.concatenate(ends), np.concatenate(areas)
    last = np.searchsorted(area, operational, side="left")
    share = (operational - area[last - 1]) / (area[last] - area[last - 1])
    return end[last - 1] + share * (end[last] - end[last - 1])


class MarkovState(Section):
    """One state of a Markov-modulated Poisson process."""

    rate: float = Field(ge=0, le=1000)
    """Arrivals per second in this state, relative to those in the other states (any unit)."""
    mean_s: Seconds
    """Mean seconds that it lasts (exponential)."""


class MarkovModulated(Section):
    """Markov-modulated Poisson process: bursts and lulls that last for seconds.

    A hidden state sets the rate; it lasts for an exponential time, then any other state follows, all equally
    likely. The start is stationary, so state i rules a share of the time proportional to its `mean_s`.
    Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance
    Evaluation 18 (1993).
    """

    kind: Literal["mmpp"] = "mmpp"
    states: tuple[MarkovState, ...]
    """At least two."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.states) < 2:
            raise invalid(
                "states: a Markov-modulated process needs at least 2; with one, take {kind: poisson}"
            )
        if all(state.rate == 0 for state in self.states):
            raise invalid("states: nobody would ever arrive; give at least one state a rate above 0")
        return self

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds, on average `rate` per second over the long run."""
        return rescale(unit_poisson(count, seed, split) / rate, self._path(seed, split))

    def _path(self, seed: int, split: str) -> Iterator[Pieces]:
        draw = stream(seed, split, "arrivals", "states")
        mean_s = np.array([state.mean_s for state in self.states])
        factors = np.array([state.rate for state in self.states])
        shares = mean_s / mean_s.sum()
        factors = factors / (shares @ factors)
        state = int(draw.choice(len(shares), p=shares))
        while True:
            # Steps of 1 to (states - 1), around the circle of states, lead to any other one.
            steps = draw.integers(1, len(shares), _CHUNK)
            states = (state + np.concatenate([[0], np.cumsum(steps)])) % len(shares)
            state = int(states[-1])
            visited = states[:-1]
            yield Pieces(draw.standard_exponential(_CHUNK) * mean_s[visited], factors[visited])


class FlashCrowd(Section):
    """A Poisson process with crowds: now and then, the rate is `multiplier` times the usual for a while.

    Calm times between crowds are exponential, crowds are equally long, the start is stationary. The usual
    rate is lowered so that the mean, crowds included, is the one asked for: with multiplier m and a crowd's
    share of the time p, the factor is 1 / (1 + p (m - 1)) in calm times and m times that in a crowd.
    """

    kind: Literal["flash_crowd"] = "flash_crowd"
    multiplier: float = Field(gt=1, le=1000)
    """Rate in a crowd / rate in calm times."""
    duration_s: Seconds
    """Seconds that a crowd lasts."""
    every_s: Seconds
    """Mean seconds from the start of one crowd to the start of the next; longer than `duration_s`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.every_s <= self.duration_s:
            raise invalid(
                f"every_s ({self.every_s:g}) must be above duration_s ({self.duration_s:g}): "
                "there would be no time between crowds"
            )
        return self

    @property
    def factors(self) -> tuple[float, float]:
        """The rate in calm times and in a crowd, relative to the mean rate."""
        calm = 1.0 / (1.0 + (self.multiplier - 1.0) * self.duration_s / self.every_s)
        return calm, self.multiplier * calm

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds, on average `rate` per second over the long run."""
        return rescale(unit_poisson(count, seed, split) / rate, self._path(seed, split))

    def _path(self, seed: int, split: str) -> Iterator[Pieces]:
        draw = stream(seed, split, "arrivals", "crowds")
        factors = np.tile(self.factors[::-1], _CHUNK)
        # What is left of a crowd in progress at time 0, if there is one; calm times have no memory.
        in_crowd = draw.random() < self.duration_s / self.every_s
        first = self.duration_s * draw.random() if in_crowd else 0.0
        while True:
            seconds = np.full(2 * _CHUNK, self.duration_s)
            seconds[0] = first
            seconds[1::2] = draw.standard_exponential(_CHUNK) * (self.every_s - self.duration_s)
            yield Pieces(seconds, factors)
            first = self.duration_s


class Diurnal(Section):
    """A daily rhythm: the rate follows a sine, and each seed begins at another time of the day.

    Rate(t) = mean * (1 + amplitude * sin(2 pi (t / period_s + phase))). A compressed day, such as a period of
    five minutes, lets a run of a few thousand requests meet rush hour and night.
    """

    kind: Literal["diurnal"] = "diurnal"
    period_s: Seconds = 86_400.0
    """Seconds in a day."""
    amplitude: float = Field(gt=0, lt=1)
    """The peak is 1 + amplitude times the mean rate, the trough 1 - amplitude times."""

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds, on average `rate` per second over whole days."""
        phase = 2.0 * math.pi * stream(seed, split, "arrivals", "phase").random()
        turn = 2.0 * math.pi / self.period_s
        swing = self.amplitude / turn
        wanted = unit_poisson(count, seed, split) / rate - swing * math.cos(phase)
        # t - swing * cos(turn * t + phase) = wanted, by bisection: the left side grows with t.
        low, high = np.maximum(wanted - swing, 0.0), wanted + swing
        for _ in range(64):
            middle = 0.5 * (low + high)
            early = middle - swing * np.cos(turn * middle + phase) < wanted
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        # Rounding may swap neighbours that are as good as equal.
        return np.maximum.accumulate(high)
