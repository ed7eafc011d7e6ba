"""The requests of one run, as a struct of arrays."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.workload.content import Content, full_blocks, unshared
from fairlead.workload.faults import Faults


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
    session: npt.NDArray[np.int64] | None = None
    """(N,) an opaque number that the requests of one conversation share; 0, or None for all: no session."""
    content: Content | None = None
    """What their blocks contain; None: they have nothing in common."""
    estimate: npt.NDArray[np.int64] | None = None
    """(N,) what the router takes the prompt's tokens for, at least 1; None: it counts them right."""
    faults: Faults | None = None
    """What befalls the cluster meanwhile; None: nothing."""

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
        if self.estimate is not None:
            object.__setattr__(self, "estimate", _token_counts("estimate", self.estimate, len(arrival)))
        _reject("arrival_s", arrival, ~np.isfinite(arrival), "must be finite")
        _reject("arrival_s", arrival, arrival < 0, "must not be negative")
        late = np.zeros(len(arrival), dtype=np.bool_)
        late[1:] = np.diff(arrival) < 0
        _reject("arrival_s", arrival, late, "is earlier than the row before it; sort by arrival_s")
        if self.session is not None:
            object.__setattr__(self, "session", _whole("session", self.session, len(arrival), 0))
        if self.content is not None:
            _check_content(self.content, self.prompt_tokens, self.output_tokens)

    def __len__(self) -> int:
        """The number of requests, N."""
        return len(self.arrival_s)

    def __getitem__(self, rows: slice) -> "Requests":
        """The requests of a slice; arrival times and faults are kept as they are."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        kept: dict[str, Any] = {name: None if each is None else each[rows] for name, each in columns.items()}
        return replace(self, **kept)

    def content_of_blocks(self, block_size: int, *, last_token: bool = False) -> Content:
        """What blocks of `block_size` tokens contain: as given, or nothing in common.

        `last_token`: the block that the last output token fills, though it is never computed, included.

        Raises:
            FairleadError: if the content was given for blocks of another size, or without that last block.
        """
        if self.content is None:
            return unshared(self.prompt_tokens, self.output_tokens + last_token, block_size)
        if self.content.block_size != block_size:
            raise FairleadError(
                f"the content of these requests is given in blocks of {self.content.block_size} tokens, but "
                f"the engine's block_size is {block_size}"
            )
        if last_token:
            needed = full_blocks(self.prompt_tokens, self.output_tokens + 1, block_size)
            short = np.diff(self.content.offsets) < needed
            if short.any():
                raise FairleadError(
                    f"request {int(np.argmax(short))}: the content of its last block is missing, which its "
                    "last token fills; this scheduler caches that block too"
                )
        return self.content


_COLUMNS = tuple(field.name for field in fields(Requests) if field.name != "faults")


def repeated(requests: Requests, count: int) -> Requests:
    """`count` requests: these again and again, each time with sessions and contents of their own.

    Arrival times are repeated too, so they have to be equal.
    """
    size = len(requests)
    rounds = -(-count // size)
    rows = np.resize(np.arange(size), count)
    turn = np.arange(count) // size
    session, content = requests.session, requests.content
    if session is not None:
        session = np.where(session[rows] == 0, 0, session[rows] + turn * (session.max() + 1))
    if content is not None:
        shift = int(content.ids.max(initial=-1)) + 1
        ids = np.concatenate([content.ids.astype(np.int64) + shift * i for i in range(rounds)])
        lengths = np.diff(content.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        content = Content(ids[: offsets[-1]].astype(np.int32), offsets, content.block_size)
    return Requests(
        requests.arrival_s[rows],
        requests.prompt_tokens[rows],
        requests.output_tokens[rows],
        session=session,
        content=content,
    )


def _check_content(content: Content, prompts: npt.NDArray[np.int64], outputs: npt.NDArray[np.int64]) -> None:
    """As many blocks as the tokens of each request fill, for all of them with or without the last token."""
    found = np.diff(content.offsets)
    if len(found) != len(prompts):
        raise FairleadError(f"there is content of {len(found)} requests, but {len(prompts)} arrival times")
    needed = full_blocks(prompts, outputs, content.block_size)
    if (found != needed).any() and (found != full_blocks(prompts, outputs + 1, content.block_size)).any():
        i = int(np.argmax(found != needed))
        raise FairleadError(
            f"request {i}: content has {found[i]} blocks of {content.block_size} tokens, but {prompts[i]} "
            f"prompt and {outputs[i]} output tokens fill {needed[i]} (the last token is never computed)"
        )


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
