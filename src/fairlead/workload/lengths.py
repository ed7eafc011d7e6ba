"""How long requests are: prompt and output tokens.

Each kind draws from the stream of lengths, which knows nothing of arrivals. Prompt and output are
joined by a Gaussian copula: normal deviates with Pearson correlation rho = 2 sin(pi rho_s / 6) have
Spearman's rank correlation rho_s (Pearson 1907; Kruskal, "Ordinal measures of association", JASA 1958),
and ranks survive the monotone maps from deviates to lengths. (Rounding to tokens makes ties, which take
a little off.)
"""

import math
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationInfo, field_validator, model_validator
from scipy.special import ndtr

from fairlead.rng import stream, word
from fairlead.section import FileBeside, Section, beside_file, invalid
from fairlead.workload.tables import load_table
from fairlead.workload.traces import Lengths, TrainShare, part_of, read_lengths, window

Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
RankCorrelation = Annotated[float, Field(ge=-1, le=1)]


def correlated_normals(count: int, rank_correlation: float, seed: int, split: str) -> npt.NDArray[np.float64]:
    """(count, 2) standard normal deviates, of prompt and output, with that rank correlation."""
    rho = 2.0 * math.sin(math.pi * rank_correlation / 6.0)
    deviates = stream(seed, split, "lengths").standard_normal((count, 2))
    deviates[:, 1] = rho * deviates[:, 0] + math.sqrt(max(1.0 - rho * rho, 0.0)) * deviates[:, 1]
    return deviates


class Empirical(Section):
    """Lengths of a real service, from a table of quantiles."""

    kind: Literal["empirical"] = "empirical"
    table: str
    """Name of a table that ships with Fairlead, or a JSON file relative to the scenario file."""
    rank_correlation: RankCorrelation | None = None
    """Of prompt and output; default: the table's own."""

    @field_validator("table")
    @classmethod
    def _check_table(cls, table: str, info: ValidationInfo) -> str:
        name_or_file = str(beside_file(table, info)) if table.endswith(".json") else table
        load_table(name_or_file)
        return name_or_file

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` requests."""
        table = load_table(self.table)
        rank_correlation = table.rank_correlation if self.rank_correlation is None else self.rank_correlation
        uniforms = ndtr(correlated_normals(count, rank_correlation, seed, split))
        return Lengths(table.quantile("prompt", uniforms[:, 0]), table.quantile("output", uniforms[:, 1]))


class LognormalLength(Section):
    """A lognormal length, given by mean and median: sigma^2 = 2 ln(mean / median)."""

    mean: float = Field(ge=1)
    """Tokens, before the cut at `max`."""
    median: float = Field(ge=1)
    max: Tokens = 131_072
    """Longer draws become this long."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.median > self.mean:
            raise invalid(
                f"the median ({self.median:g}) of a lognormal length is never above its mean ({self.mean:g})"
            )
        if self.median > self.max:
            raise invalid(f"max ({self.max}) must be at least the median ({self.median:g})")
        return self

    def lengths(self, deviates: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Whole tokens, at least 1, from standard normal deviates of the same shape."""
        sigma = math.sqrt(2.0 * math.log(self.mean / self.median))
        # The cut comes before the exponential, which could overflow.
        exponent = np.minimum(math.log(self.median) + sigma * deviates, math.log(self.max))
        return np.clip(np.rint(np.exp(exponent)), 1, self.max).astype(np.int64)


class Lognormal(Section):
    """Lognormal prompt and output: long tails with few parameters."""

    kind: Literal["lognormal"] = "lognormal"
    prompt: LognormalLength
    output: LognormalLength
    rank_correlation: RankCorrelation = 0.0

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` requests."""
        deviates = correlated_normals(count, self.rank_correlation, seed, split)
        return Lengths(self.prompt.lengths(deviates[:, 0]), self.output.lengths(deviates[:, 1]))


class Range(Section):
    """Every whole number of tokens from `min` to `max`, equally likely."""

    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise invalid(f"min ({self.min}) must not be above max ({self.max})")
        return self

    def lengths(self, deviates: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Whole tokens from standard normal deviates of the same shape."""
        steps = np.floor(ndtr(deviates) * (self.max - self.min + 1)).astype(np.int64)
        return np.minimum(self.min + steps, self.max)


class Uniform(Section):
    """Uniform prompt and output."""

    kind: Literal["uniform"] = "uniform"
    prompt: Range
    output: Range
    rank_correlation: RankCorrelation = 0.0

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` requests."""
        deviates = correlated_normals(count, self.rank_correlation, seed, split)
        return Lengths(self.prompt.lengths(deviates[:, 0]), self.output.lengths(deviates[:, 1]))


class Zipf(Section):
    """Prompt + output from a bounded Zipf law, split in a fixed ratio, as Vidur's `zipf` generator does.

    P(total = min + k - 1) is proportional to k^-theta for k = 1 .. max - min + 1 (theta 0: uniform).
    """

    kind: Literal["zipf"] = "zipf"
    theta: float = Field(ge=0, le=10)
    min: Annotated[int, Field(ge=2, le=1_000_000)]
    """Fewest tokens of prompt and output together."""
    max: Annotated[int, Field(ge=2, le=1_000_000)]
    prompt_to_output: float = Field(gt=0)
    """Prompt tokens per output token."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise invalid(f"min ({self.min}) must not be above max ({self.max})")
        return self

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` requests; both sides get at least one token."""
        uniforms = stream(seed, split, "lengths").random(count)
        total = self.min + np.searchsorted(
            _zipf_cdf(self.max - self.min + 1, self.theta), uniforms, side="right"
        )
        output = np.clip(np.rint(total / (1.0 + self.prompt_to_output)).astype(np.int64), 1, total - 1)
        return Lengths((total - output).astype(np.int64), output)


@lru_cache(maxsize=8)
def _zipf_cdf(items: int, theta: float) -> npt.NDArray[np.float64]:
    """P(k <= 1 .. items); the last entry is exactly 1, above every uniform draw."""
    cumulative: npt.NDArray[np.float64] = np.cumsum(np.arange(1, items + 1, dtype=np.float64) ** -theta)
    cumulative /= cumulative[-1]
    return cumulative


class Fixed(Section):
    """All requests alike: for laws and arithmetic, not for training."""

    kind: Literal["fixed"] = "fixed"
    prompt: Tokens
    output: Tokens

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` equal requests."""
        return Lengths(
            np.full(count, self.prompt, dtype=np.int64), np.full(count, self.output, dtype=np.int64)
        )


class Trace(Section):
    """The lengths of a trace, in its order: training and validation take the first part, evaluation the rest.

    With arrivals of kind `replay` from the same file, each request keeps its own arrival time. With arrivals
    that are drawn, runs may have lengths in common where they need more than the trace has: intervals then
    speak of this trace's lengths, not of others like them.
    """

    kind: Literal["trace"] = "trace"
    path: FileBeside
    """CSV in the Azure or Vidur format (times not needed), relative to the scenario file."""
    train_share: TrainShare = 0.5
    """Share of the rows, from the start, that belongs to training."""

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` consecutive requests; FairleadError if the trace is bad or too short."""
        lengths = read_lengths(self.path)
        rows = window(len(lengths.prompt_tokens), count, self.train_share, seed, split, self.path)
        return Lengths(lengths.prompt_tokens[rows].copy(), lengths.output_tokens[rows].copy())


PartLengths = Annotated[
    Empirical | Lognormal | Uniform | Zipf | Fixed | Trace,
    Field(discriminator="kind"),
]


class Part(Section):
    """One sort of request in a mixture."""

    weight: float = Field(gt=0, le=1e9)
    """Its share of the requests, relative to the weights of the other parts."""
    lengths: PartLengths

    @field_validator("lengths", mode="before")
    @classmethod
    def _refuse_nesting(cls, lengths: Any) -> Any:
        if isinstance(lengths, dict) and lengths.get("kind") == "mixture":
            raise invalid(
                "a mixture inside a mixture; list its parts in the outer one, with their weights multiplied"
            )
        return lengths


class Mixture(Section):
    """Several sorts of requests, such as chat, code and long documents: each request draws its sort.

    Each sort has a random stream of its own, so changing the lengths of one leaves the others as they were.
    No router is told which sort a request is of.
    """

    kind: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=1)

    def draw(self, count: int, seed: int, split: str) -> Lengths:
        """`count` requests; the k-th request of a part has the k-th lengths that the part draws."""
        sorts = self.sorts(count, seed, split)
        prompts, outputs = np.empty(count, np.int64), np.empty(count, np.int64)
        for index, part in enumerate(self.parts):
            mine = sorts == index
            if mine.any():
                # A seed of its own, because the kinds all draw from the stream of lengths.
                own = int(word(seed, split, "lengths of part", index))
                prompts[mine], outputs[mine] = part.lengths.draw(int(mine.sum()), own, split)
        return Lengths(prompts, outputs)

    def sorts(self, count: int, seed: int, split: str) -> npt.NDArray[np.int64]:
        """(count,) which part each request is of."""
        shares = np.cumsum([part.weight for part in self.parts])
        uniforms = stream(seed, split, "sorts").random(count)
        return np.searchsorted(shares[:-1] / shares[-1], uniforms, side="right")


LengthModel = Annotated[
    Empirical | Lognormal | Uniform | Zipf | Fixed | Trace | Mixture,
    Field(discriminator="kind"),
]


def traces_in(lengths: LengthModel | None) -> list[Trace]:
    """The traces that lengths are taken from, those of a mixture's parts among them."""
    each = [part.lengths for part in lengths.parts] if isinstance(lengths, Mixture) else [lengths]
    return [one for one in each if isinstance(one, Trace)]


def rows_for_training(lengths: LengthModel) -> int | None:
    """How many requests the training split can draw; None where nothing limits it."""
    limits = [
        len(part_of(len(read_lengths(trace.path).prompt_tokens), trace.train_share, "train"))
        for trace in traces_in(lengths)
    ]
    return min(limits, default=None)
