"""Iteration times looked up in tables: what a replica may use instead of analytic coefficients.

Both classes are plain, validated facts; `batch_time` packs them for compiled code and looks them up.
Nothing is extrapolated: a run that could leave a table is refused before it starts (`Limits`), or ends with
an error (`TOO_FEW_ROWS`).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator.timing import Coefficients

KV_BUCKET = 64
"""Contexts are rounded up to a multiple of this many tokens before an operator's time is looked up."""

TOO_FEW_ROWS = (
    "has too few rows: the prompts of one iteration had more cached tokens, together, than it reaches to. "
    "Extend the table, lower max_num_seqs, or turn prefix_caching off"
)
"""What is wrong with a `prefill_s` that a run has left, which shows only as it runs."""

_ENDLESS = 2**31


class Limits(NamedTuple):
    """The largest batch that a run can form on a replica."""

    tokens: int
    """New tokens in one iteration."""
    sequences: int
    """Requests in one iteration."""
    context: int
    """Tokens of one request, prompt and output."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """t = seconds[tokens, sequences] + kv_s * context.

    `context` is the sum over the decoding requests of their tokens, the new one included.

    Raises:
        FairleadError: if a value is negative or not finite, or a time of a non-empty batch is zero.
    """

    seconds: npt.NDArray[np.float64]
    """(T + 1, S + 1) s by new tokens and by requests in the batch; row and column 0 are not used."""
    kv_s: float = 0.0
    """s per token of context that the decoding requests read."""

    def __post_init__(self) -> None:
        """Converts and validates."""
        seconds = _times("seconds", self.seconds, 2)
        object.__setattr__(self, "seconds", seconds)
        if seconds.shape[0] < 2 or seconds.shape[1] < 2:
            raise FairleadError("seconds must reach to at least one token and one sequence")
        if not (seconds[1:, 1:] > 0).all():
            raise FairleadError("seconds must be positive: an iteration cannot take no time")
        _not_negative("kv_s", self.kv_s)

    def scaled(self, factor: float) -> "StepTable":
        """The same with all times multiplied."""
        return StepTable(self.seconds * factor, self.kv_s * factor)

    def check(self, limits: Limits) -> None:
        """Refuse a run that could need times beyond the table.

        Raises:
            FairleadError: naming the end of the table and what exceeds it.
        """
        tokens, sequences = (n - 1 for n in self.seconds.shape)
        _reaches("the table of iteration times", "new tokens", tokens, limits.tokens)
        _reaches("the table of iteration times", "sequences", sequences, limits.sequences)


@dataclass(frozen=True, eq=False)
class OperatorTables:
    """Sum of three operator times, as in Vidur: everything per token, decode attention, prefill attention.

    t = tokens_s[tokens]
        + decode_s[decodes - 1, ceil(trunc(mean context) / 64)] * (decode_overhead if decodes > 1)
        + prefill_s[behind / 64, ceil(chunk / chunk_step) - 1] * (prefill_overhead if prefills > 1)

    The mean context is over the decoding requests, the new token included. `chunk` is the root of the sum
    of the squared prompt chunks, rounded to whole tokens; `behind` the computed tokens before the chunks,
    rounded up to a multiple of 64 (each, or their sum). The defaults are those of Vidur at commit 7d47513;
    25e0082 has chunk_step=32, both overheads 1 and round_each=False.

    Raises:
        FairleadError: if a value is negative or not finite, or an iteration could take no time.
    """

    tokens_s: npt.NDArray[np.float64]
    """(T + 1,) s by new tokens in the batch; entry 0 is not used."""
    decode_s: npt.NDArray[np.float64]
    """(B, KV + 1) s by decoding requests (from 1) and mean context in units of 64 tokens (from 0)."""
    prefill_s: npt.NDArray[np.float64]
    """(KV' + 1, C) s by tokens before the chunk in units of 64 and by chunk in units of `chunk_step`."""
    decode_overhead: float = 1.1
    """Factor where more than one request decodes."""
    prefill_overhead: float = 1.1
    """Factor where more than one prompt is computed."""
    chunk_step: int = 1
    """Tokens per column of `prefill_s`."""
    round_each: bool = True
    """Whether the tokens before each chunk are rounded up before they are summed."""

    def __post_init__(self) -> None:
        """Converts and validates."""
        for name, dimensions in (("tokens_s", 1), ("decode_s", 2), ("prefill_s", 2)):
            object.__setattr__(self, name, _times(name, getattr(self, name), dimensions))
        if len(self.tokens_s) < 2 or not (self.tokens_s[1:] > 0).all():
            raise FairleadError("tokens_s must be positive from one token on: an iteration takes some time")
        _not_negative("decode_overhead", self.decode_overhead)
        _not_negative("prefill_overhead", self.prefill_overhead)
        if self.chunk_step < 1:
            raise FairleadError(f"chunk_step is {self.chunk_step}: give a positive number of tokens")

    def scaled(self, factor: float) -> "OperatorTables":
        """The same with all times multiplied."""
        return replace(
            self,
            tokens_s=self.tokens_s * factor,
            decode_s=self.decode_s * factor,
            prefill_s=self.prefill_s * factor,
        )

    def check(self, limits: Limits) -> None:
        """Refuse a run that could need times beyond the tables.

        Raises:
            FairleadError: naming the end of the table and what exceeds it.
        """
        batch, contexts = self.decode_s.shape
        behind, chunks = self.prefill_s.shape
        _reaches("the table tokens_s", "new tokens", len(self.tokens_s) - 1, limits.tokens)
        _reaches("the table decode_s", "decoding requests", batch, limits.sequences)
        _reaches("the table decode_s", "tokens of context", (contexts - 1) * KV_BUCKET, limits.context)
        _reaches("the table prefill_s", "tokens in a chunk", chunks * self.chunk_step, limits.tokens)
        _reaches("the table prefill_s", "tokens before a chunk", (behind - 1) * KV_BUCKET, limits.context)


TimingModel = Coefficients | StepTable | OperatorTables
"""How long the iterations of one replica take."""


def reach(model: TimingModel) -> Limits:
    """The largest batch that a model has a time for (practically unlimited for coefficients)."""
    if isinstance(model, StepTable):
        return Limits(model.seconds.shape[0] - 1, model.seconds.shape[1] - 1, _ENDLESS)
    if isinstance(model, OperatorTables):
        chunk = model.prefill_s.shape[1] * model.chunk_step
        context = (min(model.decode_s.shape[1], len(model.prefill_s)) - 1) * KV_BUCKET
        return Limits(min(len(model.tokens_s) - 1, chunk), len(model.decode_s), context)
    return Limits(_ENDLESS, _ENDLESS, _ENDLESS)


def _times(name: str, values: npt.ArrayLike, dimensions: int) -> npt.NDArray[np.float64]:
    array = np.ascontiguousarray(values, np.float64)
    if array.ndim != dimensions or not array.size:
        raise FairleadError(f"{name} has shape {array.shape}: give {dimensions} dimension(s), not empty")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise FairleadError(f"{name}{list(where)} is {array[where]}: times are finite and not negative")
    return array


def _not_negative(name: str, value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise FairleadError(f"{name} is {value}: give a finite number that is not negative")


def _reaches(table: str, unit: str, end: int, needed: int) -> None:
    if needed > end:
        raise FairleadError(
            f"{table} ends at {end:,} {unit}, but a batch of this run can have {needed:,}: extend the table, "
            "lower max_num_batched_tokens or max_num_seqs, or shorten the requests"
        )
