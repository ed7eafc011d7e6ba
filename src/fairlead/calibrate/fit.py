"""Coefficients of the iteration time from observed iterations, by non-negative least squares.

The model is t = base + max(weights, token n) + comm n + seq s + kv k + pair p for n new tokens, s sequences,
k tokens of context and p query-key pairs. With x = weights / token, the number of tokens at which
arithmetic takes over, max(weights, token n) is token max(x, n): for a given x the model is linear. So x is
searched and the rest solved by non-negative least squares (Lawson and Hanson, 1974), on relative
errors: measured times vary in proportion to their length.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import csv, parquet
from scipy.optimize import nnls

from fairlead.errors import FairleadError
from fairlead.simulator.timing import Coefficients

COLUMNS = ("tokens", "seqs", "kv_tokens", "pairs", "seconds")
"""Of a file of measurements; one row is one iteration."""
LEAST_ROWS = 30
_CROSSOVERS = 60
"""Candidates for the crossover in each of three rounds."""
_LEAST_SHARE = 0.01
"""Of the measurements; fewer on one side of the crossover say nothing about that side."""
_NO_WORSE = 1.01
"""Ratio of errors below which the simpler description is taken."""
_WORST_CONDITION = 1e4

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measurements:
    """N observed iterations.

    Raises:
        FairleadError: if columns differ in length, or a value is not finite, negative or senseless.
    """

    tokens: FloatArray
    """(N,) new tokens: one per decode, plus the prompt chunks."""
    seqs: FloatArray
    """(N,) requests with at least one token."""
    kv_tokens: FloatArray
    """(N,) context lengths summed over the decoding requests, the new token included."""
    pairs: FloatArray
    """(N,) query-key pairs of the prompt chunks: c n + c (c + 1) / 2 for c tokens behind n."""
    seconds: FloatArray
    """(N,) how long the iteration took."""

    def __post_init__(self) -> None:
        """Validates."""
        for name in COLUMNS:
            values = np.asarray(getattr(self, name), np.float64)
            object.__setattr__(self, name, values)
            if values.shape != (len(self.seconds),):
                raise FairleadError(f"{name} has {values.size} values, seconds has {len(self.seconds)}")
            least = 0.0 if name in ("kv_tokens", "pairs") else 1.0 if name != "seconds" else 1e-9
            bad = ~(np.isfinite(values) & (values >= least))
            if bad.any():
                row = int(np.argmax(bad))
                raise FairleadError(f"row {row}: {name} is {values[row]:g}; it must be at least {least:g}")
        if (self.seqs > self.tokens).any():
            row = int(np.argmax(self.seqs > self.tokens))
            raise FairleadError(f"row {row}: more sequences than new tokens")

    def __len__(self) -> int:
        """N."""
        return len(self.seconds)


@dataclass(frozen=True)
class Fit:
    """Coefficients and how well they describe the measurements."""

    coefficients: Coefficients
    rows: int
    r2: float
    """1 - squared errors / squared deviations from the mean, of the seconds."""
    mean_relative_error: float
    p99_relative_error: float
    max_relative_error: float
    tokens: tuple[int, int]
    """The fewest and the most new tokens seen: beyond them, the fit is a guess."""
    notes: tuple[str, ...] = ()
    """What the measurements do not decide."""


def read_measurements(path: Path) -> Measurements:
    """A CSV or Parquet file with the columns `tokens`, `seqs`, `kv_tokens`, `pairs` and `seconds`.

    Raises:
        FairleadError: naming the file and what is wrong with it.
    """
    try:
        table = parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)
    except OSError as error:
        raise FairleadError(f"cannot read {path}: {error.strerror or error}") from None
    except pyarrow.ArrowException as error:
        kind = "Parquet" if path.suffix == ".parquet" else "CSV"
        raise FairleadError(f"{path} is not a {kind} file: {' '.join(str(error).split())[:100]}") from None
    twice = [name for name in COLUMNS if table.column_names.count(name) > 1]
    if twice:
        raise FairleadError(f"{path} has the column {twice[0]} twice: leave one of them out")
    absent = [name for name in COLUMNS if name not in table.column_names]
    if absent:
        raise FairleadError(f"{path} lacks the column {absent[0]}: give {', '.join(COLUMNS)}")
    try:
        columns = {
            name: np.asarray(table[name].cast("float64").to_numpy(zero_copy_only=False)) for name in COLUMNS
        }
    except (pyarrow.ArrowException, NotImplementedError):
        raise FairleadError(f"{path}: all of {', '.join(COLUMNS)} must hold numbers") from None
    try:
        return Measurements(**columns)
    except FairleadError as error:
        raise FairleadError(f"{path}: {error}") from None


def fit(measured: Measurements) -> Fit:
    """The coefficients that describe the measurements best.

    Raises:
        FairleadError: too few rows, rows that all took the same time, or rows in which quantities move
            together so that they cannot be told apart; the message says which to vary.
    """
    _check_informative(measured)
    tokens = measured.tokens
    fewest, most = low, high = float(tokens.min()), float(tokens.max())
    for _ in range(3):
        candidates = np.unique(np.geomspace(low, high, _CROSSOVERS))
        errors = np.array([_solve(measured, x)[1] for x in candidates])
        at = int(np.argmin(errors))
        low, high = float(candidates[max(at - 1, 0)]), float(candidates[min(at + 1, len(candidates) - 1)])
    crossover = float(candidates[at])
    # Noise alone prefers some crossover: one inside the range must describe the measurements better.
    as_good = [end for end in (fewest, most) if _solve(measured, end)[1] <= _NO_WORSE * errors[at]]
    if as_good:
        slope = _solve(measured, fewest)[0][1:3].sum()
        grows = slope * (most - fewest) > 0.1 * measured.seconds.mean()
        crossover = as_good[0 if grows else -1]
    base, token, comm, seq, kv, pair = _solve(measured, crossover)[0]
    found = Coefficients(base, token * crossover, token, comm, seq, kv, pair)
    return _judged(measured, found, crossover)


def _solve(measured: Measurements, crossover: float) -> tuple[FloatArray, float]:
    """(base, token, comm, seq, kv, pair) and the norm of the relative errors."""
    tokens = measured.tokens
    features = [
        np.ones(len(measured)),
        np.maximum(tokens, crossover),
        tokens,
        measured.seqs,
        measured.kv_tokens,
        measured.pairs,
    ]
    design = np.stack(features, 1) / measured.seconds[:, None]
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    solution, error = nnls(design / scale, np.ones(len(measured)))
    return solution / scale, float(error)


def _judged(measured: Measurements, c: Coefficients, crossover: float) -> Fit:
    m = measured
    products = np.maximum(c.weights_s, c.token_s * m.tokens)
    predicted = c.base_s + products + c.comm_s * m.tokens + c.seq_s * m.seqs
    predicted = predicted + c.kv_s * m.kv_tokens + c.pair_s * m.pairs
    relative = np.abs(predicted / m.seconds - 1)
    spread = float(((m.seconds - m.seconds.mean()) ** 2).sum())
    notes = []
    if (m.tokens > crossover).mean() < _LEAST_SHARE:
        notes.append(
            f"no iteration is bound by arithmetic (the most tokens are {m.tokens.max():g}): token_s is only "
            "an upper bound"
        )
    if (m.tokens < crossover).mean() < _LEAST_SHARE:
        notes.append(
            f"no iteration is bound by reading the weights (the fewest tokens are {m.tokens.min():g}): "
            "base_s and weights_s cannot be told apart"
        )
    return Fit(
        coefficients=c,
        rows=len(m),
        r2=1.0 - float(((predicted - m.seconds) ** 2).sum()) / spread,
        mean_relative_error=float(relative.mean()),
        p99_relative_error=float(np.percentile(relative, 99)),
        max_relative_error=float(relative.max()),
        tokens=(int(m.tokens.min()), int(m.tokens.max())),
        notes=tuple(notes),
    )


def _check_informative(measured: Measurements) -> None:
    if len(measured) < LEAST_ROWS:
        raise FairleadError(
            f"{len(measured)} measurements are too few for 7 coefficients: give at least {LEAST_ROWS}"
        )
    if np.ptp(measured.seconds) == 0:
        raise FairleadError(
            f"all measurements took {measured.seconds[0]:g} s, so nothing can be told from them: check how "
            "seconds were measured"
        )
    names = ("tokens", "seqs", "kv_tokens", "pairs")
    columns = np.stack([getattr(measured, name) for name in names], 1)
    spread = columns.std(0)
    for name, deviation, mean in zip(names, spread, np.abs(columns).mean(0), strict=True):
        if deviation <= 1e-6 * max(mean, 1.0):
            raise FairleadError(
                f"{name} is the same in all measurements, so its cost cannot be told from the fixed cost: "
                "vary the batch sizes, the lengths of contexts and those of prompts"
            )
    standard = (columns - columns.mean(0)) / spread
    _, values, directions = np.linalg.svd(standard, full_matrices=False)
    if values[0] > _WORST_CONDITION * values[-1]:
        weights = np.abs(directions[-1])
        together = [name for name, weight in zip(names, weights, strict=True) if weight > 0.1]
        raise FairleadError(
            f"{' and '.join(together)} always change together in these measurements, so their costs cannot "
            "be told apart: vary them independently, for example prompts alone, decodes alone and both"
        )
