"""The requests of one run, as a struct of arrays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError


@dataclass(frozen=True, eq=False)
class Requests:
    """The requests of one run, in order of arrival.

    Anything array-like is accepted and stored as contiguous arrays of the types below.

    Raises:
        FairleadError: if lengths differ, or a value is out of range (the message names the row,
            counted from 0).
    """

    arrival_s: npt.NDArray[np.float64]
    """(N,) seconds since the start of the run: finite, not negative, not decreasing."""
    prompt_tokens: npt.NDArray[np.int64]
    """(N,) at least 1."""
    output_tokens: npt.NDArray[np.int64]
    """(N,) at least 1: the first token counts."""
    router: npt.NDArray[np.int64] | None = None
    """(N,) which of several routers it comes to, counted from 0; None: there is one router."""

    def __post_init__(self) -> None:
        """Converts and validates."""
        arrival = np.ascontiguousarray(self.arrival_s, dtype=np.float64)
        if arrival.ndim != 1:
            raise FairleadError(f"arrival_s must be one-dimensional, not of shape {arrival.shape}")
        object.__setattr__(self, "arrival_s", arrival)
        for name in ("prompt_tokens", "output_tokens"):
            object.__setattr__(self, name, _token_counts(name, getattr(self, name), len(arrival)))
        if self.router is not None:
            object.__setattr__(self, "router", _whole("router", self.router, len(arrival), 0))
        _reject("arrival_s", arrival, ~np.isfinite(arrival), "must be finite")
        _reject("arrival_s", arrival, arrival < 0, "must not be negative")
        late = np.zeros(len(arrival), dtype=np.bool_)
        late[1:] = np.diff(arrival) < 0
        _reject("arrival_s", arrival, late, "is earlier than the row before it; sort by arrival_s")

    def __len__(self) -> int:
        """The number of requests, N."""
        return len(self.arrival_s)

    def __getitem__(self, rows: slice) -> "Requests":
        """The requests of a slice; arrival times are kept as they are."""
        router = None if self.router is None else self.router[rows]
        return Requests(self.arrival_s[rows], self.prompt_tokens[rows], self.output_tokens[rows], router)


def _token_counts(name: str, values: npt.ArrayLike, expected: int) -> npt.NDArray[np.int64]:
    return _whole(name, values, expected, 1, " token")


def _whole(
    name: str, values: npt.ArrayLike, expected: int, least: int, unit: str = ""
) -> npt.NDArray[np.int64]:
    raw = np.asarray(values)
    if raw.shape != (expected,):
        raise FairleadError(f"{name} has shape {raw.shape}, but there are {expected} arrival times")
    if raw.dtype.kind not in "iu":
        numbers = raw.astype(np.float64)
        # A NaN compares unequal to its own rounding, so it is caught here too.
        _reject(name, numbers, ~(numbers == np.rint(numbers)), "must be a whole number")
        _reject(name, numbers, ~np.isfinite(numbers), "must be finite")
    counts = np.ascontiguousarray(raw, dtype=np.int64)
    _reject(name, counts, counts < least, f"must be at least {least}{unit}")
    return counts


def _reject(
    name: str, values: npt.NDArray[np.float64] | npt.NDArray[np.int64], bad: npt.NDArray[np.bool_], why: str
) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise FairleadError(f"request {row}: {name} = {values[row]} {why}")
