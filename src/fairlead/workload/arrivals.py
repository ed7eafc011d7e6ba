"""When requests arrive: gaps with mean 1, which `generate` divides by the rate.

Gaps depend on neither the rate nor the lengths: they come from a random stream of their own.
"""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fairlead.errors import FairleadError
from fairlead.rng import stream
from fairlead.section import FileBeside, Section
from fairlead.workload.traces import read_trace, window

Gaps = npt.NDArray[np.float64]


class Poisson(Section):
    """Independent users: exponential gaps (coefficient of variation 1)."""

    kind: Literal["poisson"] = "poisson"

    def gaps(self, count: int, seed: int, split: str) -> Gaps:
        """(count,) gaps of mean 1, the first one before the first request."""
        return stream(seed, split, "arrivals").standard_exponential(count)


class Gamma(Section):
    """Burstier (cv > 1) or smoother (cv < 1) than Poisson: independent Gamma gaps."""

    kind: Literal["gamma"] = "gamma"
    cv: float = Field(gt=0, le=20)
    """Coefficient of variation of the gaps: standard deviation / mean."""

    def gaps(self, count: int, seed: int, split: str) -> Gaps:
        """(count,) gaps of mean 1; a Gamma variable of shape k has cv = 1 / sqrt(k)."""
        shape = 1.0 / self.cv**2
        return stream(seed, split, "arrivals").standard_gamma(shape, count) / shape


class Deterministic(Section):
    """Equal gaps."""

    kind: Literal["deterministic"] = "deterministic"

    def gaps(self, count: int, seed: int, split: str) -> Gaps:
        """(count,) ones."""
        return np.ones(count)


class Replay(Section):
    """The arrival times of a trace, stretched so that their mean rate is the one asked for.

    Training replays the first part of the trace and evaluation the rest, so that no arrival is seen
    in both; the seed picks where in its part a run begins.
    """

    kind: Literal["replay"] = "replay"
    path: FileBeside
    """CSV in the Azure or Vidur format, relative to the scenario file."""
    train_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the rows, from the start, that belongs to training."""

    def gaps(self, count: int, seed: int, split: str) -> Gaps:
        """(count,) gaps of mean 1: one mean gap, then the trace's own.

        Raises:
            FairleadError: if the trace is bad, too short, or a single instant.
        """
        times = read_trace(self.path).arrival_s
        rows = window(len(times), count, self.train_share, seed, split, self.path)
        gaps = np.ones(count)
        if count > 1:
            span = times[rows.stop - 1] - times[rows.start]
            if span <= 0:
                raise FairleadError(
                    f"{self.path}: {count} requests arrive at the same instant; nothing to stretch"
                )
            gaps[1:] = np.diff(times[rows]) * ((count - 1) / span)
        return gaps


Arrivals = Annotated[Poisson | Gamma | Deterministic | Replay, Field(discriminator="kind")]
