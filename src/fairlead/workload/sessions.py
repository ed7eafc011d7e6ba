"""Conversations: each turn's prompt is all that was said before and something new.

Open loop: a turn arrives an *assumed* service time and a think time after the turn before it, so that no
router changes the arrivals that it is judged by. A router that serves a turn more slowly than assumed meets
the next one earlier than a patient user would have sent it.
"""

import math
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fairlead.errors import FairleadError
from fairlead.rng import stream
from fairlead.section import Section, invalid
from fairlead.workload.arrivals import Arrivals, Poisson, Replay
from fairlead.workload.content import Content, chains, full_blocks
from fairlead.workload.lengths import LengthModel, Tokens
from fairlead.workload.requests import Requests
from fairlead.workload.traces import Recording

CALIBRATION_SESSIONS = 4096
"""Sessions that tell how many requests a session makes and how long the longest lasts, for all runs alike."""

Whole = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Number = TypeVar("_Number", np.int64, np.float64)


class GeometricTurns(Section):
    """After each turn the user goes on with the same probability."""

    kind: Literal["geometric"] = "geometric"
    mean: float = Field(gt=1, le=1000)
    """Turns per session, before the cut at `max`."""
    max: int = Field(default=64, ge=1, le=10_000)

    def turns(self, uniforms: Floats) -> Whole:
        """Turns per session, at least 1, from uniform numbers in [0, 1) of the same shape."""
        further = np.floor(np.log1p(-uniforms) / math.log1p(-1.0 / self.mean)).astype(np.int64)
        return np.minimum(1 + further, self.max)


class UniformTurns(Section):
    """Every number of turns from `min` to `max`, equally likely."""

    kind: Literal["uniform"] = "uniform"
    min: int = Field(ge=1, le=10_000)
    max: int = Field(ge=1, le=10_000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise invalid(f"min ({self.min}) must not be above max ({self.max})")
        return self

    def turns(self, uniforms: Floats) -> Whole:
        """Turns per session from uniform numbers in [0, 1) of the same shape."""
        return self.min + np.floor(uniforms * (self.max - self.min + 1)).astype(np.int64)


Turns = Annotated[GeometricTurns | UniformTurns, Field(discriminator="kind")]


class ThinkTime(Section):
    """Lognormal seconds between an answer and the next question: sigma^2 = 2 ln(mean / median)."""

    mean_s: float = Field(gt=0, le=1e6)
    """Before the cut at `max_s`."""
    median_s: float = Field(gt=0, le=1e6)
    max_s: float = Field(default=600.0, gt=0, le=1e6)
    """Longer draws become this long."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.median_s > self.mean_s:
            raise invalid(
                f"the median ({self.median_s:g}) of a lognormal time is above its mean ({self.mean_s:g})"
            )
        return self

    def seconds(self, deviates: Floats) -> Floats:
        """Times from standard normal deviates of the same shape."""
        sigma = math.sqrt(2.0 * math.log(self.mean_s / self.median_s))
        return np.exp(np.minimum(math.log(self.median_s) + sigma * deviates, math.log(self.max_s)))


class SystemPrompts(Section):
    """Instructions that many sessions begin with, word for word."""

    count: int = Field(ge=1, le=100_000)
    """How many different ones there are."""
    tokens: Tokens
    """Length of each."""
    zipf: float = Field(default=1.0, ge=0, le=10)
    """The k-th most popular one is chosen with probability proportional to k^-zipf (0: all alike)."""

    def choose(self, uniforms: Floats) -> Whole:
        """Which system prompt, from uniform numbers in [0, 1) of the same shape."""
        cumulative = np.cumsum(np.arange(1, self.count + 1, dtype=np.float64) ** -self.zipf)
        return np.searchsorted(cumulative / cumulative[-1], uniforms, side="right").astype(np.int64)


class _Drawn(NamedTuple):
    """All turns of some sessions, session after session; a turn that does not fit ends its session."""

    session: Whole
    offset_s: Floats
    """When it arrives after the session's first turn."""
    prompt: Whole
    output: Whole
    system: Whole
    """The system prompt of its session."""

    def at(self, rows: Whole | npt.NDArray[np.bool_]) -> "_Drawn":
        """Some of them."""
        session, offset_s, prompt, output, system = self
        return _Drawn(session[rows], offset_s[rows], prompt[rows], output[rows], system[rows])


class Sessions(Section):
    """Conversations of several turns, in place of `arrivals` and `lengths`."""

    starts: Arrivals = Poisson()
    """How sessions begin; times in these kinds count from the longest session before the run's start."""
    turns: Turns
    """How many turns a session has."""
    lengths: LengthModel
    """Of each turn: `prompt` is what the user adds, `output` the answer."""
    think_time: ThinkTime
    """From an answer to the next turn."""
    assumed_ttft_s: float = Field(default=0.5, ge=0, le=3600)
    """Assumed time to the first token of an answer."""
    assumed_tpot_s: float = Field(default=0.03, ge=0, le=60)
    """Assumed time per token of an answer."""
    max_context: Tokens = 8192
    """A session ends before the turn whose prompt and output would be longer than this."""
    system_prompts: SystemPrompts | None = None
    """What sessions begin with, if they do."""

    def requests(
        self, count: int, rate: float, seed: int, split: str, max_tokens: int | None, block_size: int | None
    ) -> Requests:
        """`count` requests at `rate` requests/s on average.

        Sessions are under way when the run begins, as many as in the long run, so that the rate is the same
        from the start; nothing that was said before is in any cache.

        Args:
            count: how many.
            rate: requests per second, over all sessions.
            seed: of the random streams.
            split: first name of the random streams.
            max_tokens: outputs end there.
            block_size: tokens per block of the requests' `content`; None: none is given.

        Raises:
            FairleadError: if no turn fits into `max_context`.
        """
        per_session, longest_s = _calibrate(self, max_tokens)
        session_rate = rate / per_session
        sessions = self._enough(count, rate, max_tokens)
        while True:
            drawn = self._draw(sessions, seed, split, max_tokens)
            starts = self.starts.times(sessions, session_rate, seed, split) - longest_s
            arrival = starts[drawn.session] + drawn.offset_s
            # Sessions that were not drawn begin later than the last one that was.
            ready = np.flatnonzero((arrival >= 0) & (arrival <= starts[-1]))
            if len(ready) >= count:
                break
            sessions *= 2
        chosen = ready[np.argsort(arrival[ready], kind="stable")][:count]
        turns = drawn.at(chosen)
        return Requests(
            arrival[chosen],
            turns.prompt,
            turns.output,
            session=turns.session + 1,
            content=None if block_size is None else self._content(turns, block_size),
        )

    def _enough(self, count: int, rate: float, max_tokens: int | None) -> int:
        """How many sessions make `count` requests, but for rare luck."""
        per_session, longest_s = _calibrate(self, max_tokens)
        return int(1.2 * (count / per_session + rate / per_session * longest_s)) + 16

    def recording(self, count: int, rate: float, max_tokens: int | None) -> Recording | None:
        """What the starts of `count` requests' sessions are taken from, if they are recorded."""
        if not isinstance(self.starts, Replay):
            return None
        return self.starts.recording(self._enough(count, rate, max_tokens))

    def _draw(self, sessions: int, seed: int, split: str, max_tokens: int | None) -> _Drawn:
        """All turns of `sessions` sessions; more sessions only continue fewer ones."""
        turns = self.turns.turns(stream(seed, split, "turns").random(sessions))
        session = np.repeat(np.arange(sessions), turns)
        first = np.cumsum(turns) - turns
        new, output = self.lengths.draw(len(session), seed, split)
        if max_tokens is not None:
            output = np.minimum(output, max_tokens)
        think_s = self.think_time.seconds(stream(seed, split, "think times").standard_normal(len(session)))
        system = np.zeros(sessions, np.int64)
        if self.system_prompts is not None:
            system = self.system_prompts.choose(stream(seed, split, "system prompts").random(sessions))
        context = self._system_tokens + _within(new + output, first, turns)
        gaps_s = self.assumed_ttft_s + self.assumed_tpot_s * output + think_s
        offset_s = _within(gaps_s, first, turns) - gaps_s
        everything = _Drawn(session, offset_s, context - output, output, system[session])
        return everything.at(context <= self.max_context)

    @property
    def _system_tokens(self) -> int:
        return 0 if self.system_prompts is None else self.system_prompts.tokens

    def _content(self, turns: _Drawn, block_size: int) -> Content:
        """A session's blocks are numbered in one row, behind those of all system prompts."""
        counts = full_blocks(turns.prompt, turns.output, block_size)
        shared = self._system_tokens // block_size
        prompts = 0 if self.system_prompts is None else self.system_prompts.count
        own = np.zeros(int(turns.session.max(initial=-1)) + 1, np.int64)
        np.maximum.at(own, turns.session, np.maximum(counts - shared, 0))
        base = prompts * shared + np.cumsum(own) - own
        position = chains(counts, np.zeros(len(counts), np.int64))
        of_system = np.repeat(turns.system * shared, counts) + position
        of_session = np.repeat(base[turns.session], counts) + position - shared
        ids = np.where(position < shared, of_system, of_session)
        return Content(ids.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]), block_size)


def _within(values: npt.NDArray[_Number], first: Whole, turns: Whole) -> npt.NDArray[_Number]:
    """Running sums of `values` that begin anew with each session."""
    sums = np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
    within: npt.NDArray[_Number] = sums[1:] - np.repeat(sums[first], turns)
    return within


@lru_cache(maxsize=32)
def _calibrate(sessions: Sessions, max_tokens: int | None) -> tuple[float, float]:
    """(mean requests per session, seconds that the longest session lasts) of a fixed sample."""
    drawn = sessions._draw(CALIBRATION_SESSIONS, 0, "calibration", max_tokens)
    if not len(drawn.session):
        raise FairleadError(
            f"no turn fits into max_context {sessions.max_context}: raise it or shorten the lengths"
        )
    return len(drawn.session) / CALIBRATION_SESSIONS, float(drawn.offset_s.max())
