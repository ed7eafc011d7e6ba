"""When requests arrive: the kinds of arrival process.

Each gives `times(count, rate, seed, split)`: seconds, at `rate` requests/s on average. They come from a
random stream of their own, so they do not depend on the lengths. The noise does not depend on the rate
either: where a process has no seconds of its own, another rate only stretches the times.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fairlead.errors import FairleadError
from fairlead.rng import stream
from fairlead.section import FileBeside, Section
from fairlead.workload.modulated import Diurnal, FlashCrowd, MarkovModulated, Times, unit_poisson
from fairlead.workload.traces import Recording, TrainShare, read_trace, window


class Poisson(Section):
    """Independent users: exponential gaps (coefficient of variation 1)."""

    kind: Literal["poisson"] = "poisson"

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds, after gaps of mean 1 / rate; the first gap begins at 0."""
        return unit_poisson(count, seed, split) / rate


class Gamma(Section):
    """Burstier (cv > 1) or smoother (cv < 1) than Poisson: independent Gamma gaps."""

    kind: Literal["gamma"] = "gamma"
    cv: float = Field(gt=0, le=20)
    """Coefficient of variation of the gaps: standard deviation / mean."""

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds; a Gamma variable of shape k has cv = 1 / sqrt(k)."""
        shape = 1.0 / self.cv**2
        gaps = stream(seed, split, "arrivals").standard_gamma(shape, count) / shape
        return np.cumsum(gaps) / rate


class Deterministic(Section):
    """Equal gaps."""

    kind: Literal["deterministic"] = "deterministic"

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds: 1 / rate, 2 / rate, ..."""
        return np.arange(1, count + 1) / rate


class Replay(Section):
    """The arrival times of a trace, stretched so that their mean rate is the one asked for.

    Training and validation replay the first part of the trace and evaluation the rest, so that no arrival is
    seen in both; the seed picks which rows of its part a run replays (`traces.window`).
    """

    kind: Literal["replay"] = "replay"
    path: FileBeside
    """CSV in the Azure or Vidur format, relative to the scenario file."""
    train_share: TrainShare = 0.5
    """Share of the rows, from the start, that belongs to training."""

    def times(self, count: int, rate: float, seed: int, split: str) -> Times:
        """(count,) arrival times in seconds: one mean gap from 0, then the trace's own gaps, stretched.

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
        return np.cumsum(gaps) / rate

    def recording(self, count: int) -> Recording:
        """What `count` arrivals are taken from; errors as `read_trace`."""
        return Recording(self.path, len(read_trace(self.path).arrival_s), self.train_share, count)


Arrivals = Annotated[
    Poisson | Gamma | MarkovModulated | Diurnal | FlashCrowd | Deterministic | Replay,
    Field(discriminator="kind"),
]
