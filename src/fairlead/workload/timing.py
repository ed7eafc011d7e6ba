"""How long a replica's iterations take, as a scenario names it: `replicas[].timing`."""

from typing import Annotated, Literal

from pydantic import Field

from fairlead.section import FileBeside, Section


class TableTiming(Section):
    """Times looked up by new tokens and sequences in the batch, plus a time per token of context."""

    kind: Literal["table"]
    path: FileBeside
    """JSON or npz with `tokens`, `sequences` and `seconds`, or a CSV with these columns."""
    kv_token_s: float = Field(default=0.0, ge=0, le=1)
    """Seconds per token of context that the decoding requests read."""


class VidurProfileTiming(Section):
    """The sum of operators that Vidur predicts from its profiling CSVs."""

    kind: Literal["vidur_profile"]
    mlp: FileBeside
    """Vidur's mlp.csv: the operators outside attention by number of tokens."""
    attention: FileBeside
    """Vidur's attention.csv."""
    all_reduce: FileBeside | None = None
    """Vidur's all_reduce.csv, with tensor parallelism."""


class FittedTiming(Section):
    """Coefficients fitted to measurements."""

    kind: Literal["fitted"]
    path: FileBeside
    """The JSON file that a calibration wrote."""


TimingSection = Annotated[
    TableTiming | VidurProfileTiming | FittedTiming,
    Field(discriminator="kind"),
]

TIMING_FILES = ("mlp", "attention", "all_reduce")
"""Keys here that name files, besides `path`: their content counts in a scenario's hash."""
