"""What requests have in common: for each full block of tokens an id that equal prefixes share."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError


def full_blocks(
    prompt_tokens: npt.NDArray[np.int64], output_tokens: npt.NDArray[np.int64], block_size: int
) -> npt.NDArray[np.int64]:
    """(N,) full blocks that each request ever computes: its last output token is never computed."""
    blocks: npt.NDArray[np.int64] = (prompt_tokens + output_tokens - 1) // block_size
    return blocks


@dataclass(frozen=True, eq=False)
class Content:
    """For each full KV block of N requests, prompt and output, what it contains.

    An id stands for a block's tokens *and all tokens before them*: two requests whose i-th blocks have the
    same id agree on everything up to there. Ids are dense, from 0 up, so that they need only 32 bits.
    `full_blocks` tells how many each request has; one more, if its last token fills it, may be given for all.

    Raises:
        FairleadError: for an id that is negative or offsets that do not fit.
    """

    ids: npt.NDArray[np.int32]
    """(B,) the ids of all requests, one request after the other."""
    offsets: npt.NDArray[np.int64]
    """(N + 1,) where the ids of each request begin; the last one is B."""
    block_size: int
    """Tokens per block."""

    def __post_init__(self) -> None:
        """Converts and validates."""
        object.__setattr__(self, "ids", np.ascontiguousarray(self.ids, np.int32))
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets, np.int64))
        if self.block_size < 1:
            raise FairleadError(f"block_size is {self.block_size}: give at least 1 token")
        ends = self.offsets
        if not len(ends) or ends[0] != 0 or ends[-1] != len(self.ids) or (np.diff(ends) < 0).any():
            raise FairleadError(f"offsets must rise from 0 to the number of ids, {len(self.ids)}")
        if len(self.ids) and self.ids.min() < 0:
            raise FairleadError(f"content id {self.ids.min()} is negative; number contents from 0")

    def __getitem__(self, rows: slice) -> "Content":
        """The content of a slice of consecutive requests, ids as they are."""
        first, last, step = rows.indices(len(self.offsets) - 1)
        if step != 1:
            raise FairleadError("the content of requests can only be cut into consecutive pieces")
        last = max(first, last)
        begin, end = self.offsets[first], self.offsets[last]
        return Content(self.ids[begin:end], self.offsets[first : last + 1] - begin, self.block_size)


def chains(lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """starts[i], starts[i] + 1, ... for lengths[i] numbers, one i after the other; (sum of lengths,)."""
    ends = np.cumsum(lengths)
    numbers: npt.NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(
        starts - (ends - lengths), lengths
    )
    return numbers


def unshared(
    prompt_tokens: npt.NDArray[np.int64], output_tokens: npt.NDArray[np.int64], block_size: int
) -> Content:
    """Content of requests that have nothing in common."""
    counts = full_blocks(prompt_tokens, output_tokens, block_size)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Content(np.arange(offsets[-1], dtype=np.int32), offsets, block_size)


def dense(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Ids from 0 up, equal where the keys are, same shape."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int32).reshape(keys.shape)
