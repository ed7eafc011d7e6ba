"""Length tables: a trace's prompt and output lengths boiled down to quantiles.

A table keeps each marginal's quantile function at fixed probabilities (dense, and denser in the tails)
and the rank correlation between the two. It is a few kilobytes of facts about a trace, never the trace.
"""

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from fairlead.errors import FairleadError
from fairlead.section import Section, did_you_mean, first_problem, invalid

_TAILS = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.0075)
PROBABILITIES: tuple[float, ...] = tuple(
    sorted({i / 200 for i in range(201)} | set(_TAILS) | {round(1 - tail, 5) for tail in _TAILS})
)
"""Where tables fitted by `fit_table` know the quantiles: every half percent, and the tails."""


class Marginal(Section):
    """The lengths of one side, prompt or output, in tokens."""

    mean: float = Field(ge=1)
    """Mean of the trace itself, not of the table."""
    p99: float = Field(ge=1)
    quantiles: tuple[int, ...]
    """One per probability: the smallest length with at least that share of requests at or below it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        values = np.array(self.quantiles)
        if len(values) < 2 or values[0] < 1 or (np.diff(values) < 0).any():
            raise invalid("quantiles must be at least 2 whole numbers from 1 up, not decreasing")
        return self


class LengthTable(Section):
    """Quantiles of prompt and output lengths, with their source."""

    name: str
    source: str
    licence: str
    requests: int = Field(gt=0)
    """How many requests the quantiles were computed from."""
    rank_correlation: float = Field(ge=-1, le=1)
    """Spearman's rank correlation of prompt and output length."""
    probabilities: tuple[float, ...]
    prompt: Marginal
    output: Marginal

    @model_validator(mode="after")
    def _check(self) -> Self:
        grid = np.array(self.probabilities)
        if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or (np.diff(grid) <= 0).any():
            raise invalid("probabilities must increase from 0 to 1")
        for side, marginal in (("prompt", self.prompt), ("output", self.output)):
            if len(marginal.quantiles) != len(grid):
                raise invalid(f"{side} has {len(marginal.quantiles)} quantiles for {len(grid)} probabilities")
        return self

    def quantile(self, side: str, probability: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Lengths of `side` ("prompt" or "output") at probabilities in [0, 1], same shape.

        Linear between the table's points; a length shared by many requests spans several points, so it keeps
        its weight.
        """
        values = (self.prompt if side == "prompt" else self.output).quantiles
        return np.rint(np.interp(probability, self.probabilities, values)).astype(np.int64)


def fit_table(
    prompt_tokens: npt.NDArray[np.int64],
    output_tokens: npt.NDArray[np.int64],
    *,
    name: str,
    source: str,
    licence: str,
) -> LengthTable:
    """The table of a trace's lengths ((N,) each)."""
    # Imported here: scipy.stats takes a second to load, and only fitting needs it.
    from scipy.stats import spearmanr

    return LengthTable(
        name=name,
        source=source,
        licence=licence,
        requests=len(prompt_tokens),
        rank_correlation=round(float(spearmanr(prompt_tokens, output_tokens).statistic), 4),
        probabilities=PROBABILITIES,
        prompt=_fit_marginal(prompt_tokens),
        output=_fit_marginal(output_tokens),
    )


def _fit_marginal(tokens: npt.NDArray[np.int64]) -> Marginal:
    quantiles = np.quantile(tokens, PROBABILITIES, method="inverted_cdf")
    return Marginal(
        mean=round(float(tokens.mean()), 3),
        p99=round(float(np.quantile(tokens, 0.99)), 3),
        quantiles=tuple(int(value) for value in quantiles),
    )


def table_names() -> list[str]:
    """The tables that ship with Fairlead, sorted."""
    entries = (resources.files("fairlead.workload") / "tables").iterdir()
    return sorted(entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json"))


def load_table(name_or_file: str) -> LengthTable:
    """A table by its name, or from a JSON file (anything that ends in .json).

    Raises:
        FairleadError: if there is no such table, or the file is not one.
    """
    return parse_table(table_text(name_or_file), name_or_file)


def table_text(name_or_file: str) -> str:
    """The JSON text of a table; errors as `load_table`."""
    if name_or_file.endswith(".json"):
        try:
            return Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FairleadError(f"cannot read the length table {name_or_file}: {error}") from None
    if name_or_file not in table_names():
        hint = did_you_mean(name_or_file, table_names())
        raise FairleadError(f"unknown length table {name_or_file!r}; {hint}; or a path that ends in .json")
    return (resources.files("fairlead.workload") / "tables" / f"{name_or_file}.json").read_text(
        encoding="utf-8"
    )


@lru_cache(maxsize=8)
def parse_table(text: str, where: str) -> LengthTable:
    """The table in a JSON text; `where` names it in errors."""
    try:
        return LengthTable.model_validate(json.loads(text))
    except ValidationError as error:
        raise first_problem(error, where) from None
    except ValueError as error:
        raise FairleadError(f"{where} is not JSON: {error}") from None
