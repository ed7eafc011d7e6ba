"""Which prompts each backend was sent: how much of a new one it may still have cached.

A prompt's JSON is cut into chunks of `CHUNK_BYTES`; each chunk's key depends on all before it. The memory per
backend is bounded (`view.prefixes`), whatever clients send.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view.prefixes import PrefixMemory, expected_hit, new_memory, remember
from fairlead.view.schema import EXPECTED_PREFIX_HIT_TOKENS

CHUNK_BYTES = 256
"""About 64 tokens: finer would cost more time than a hit is worth."""
MAX_CHUNKS = 2048
"""Of a longer prompt only the beginning is remembered."""


def chunk_keys(prompt: bytes) -> npt.NDArray[np.uint64]:
    """The chain of keys (chunks,) of a prompt's full chunks."""
    keys = []
    key = 0
    for end in range(CHUNK_BYTES, min(len(prompt), MAX_CHUNKS * CHUNK_BYTES) + 1, CHUNK_BYTES):
        key = hash((key, prompt[end - CHUNK_BYTES : end]))
        keys.append(key & 0xFFFFFFFFFFFFFFFF)
    return np.array(keys, np.uint64)


NO_KEYS = np.zeros(0, np.uint64)


class Prefixes:
    """The memories of all backends, by their rows in the ledger."""

    def __init__(self, chunks: int) -> None:
        """`chunks` are remembered per backend; 0: none."""
        self._chunks = chunks
        self._memory = new_memory(0, chunks)
        keys = np.ones(1, np.uint64)  # compiles before the first request comes
        self.forget(0)
        self.hits(np.zeros(1, np.int64), keys, 1.0, 1.0, np.zeros((1, EXPECTED_PREFIX_HIT_TOKENS + 1)))
        self.sent(0, keys)
        self.forget(0)

    def forget(self, row: int) -> None:
        """Nothing is cached there (any more)."""
        rows = len(self._memory.sent_clock)
        if row >= rows:
            more = new_memory(row + 4 - rows, self._chunks)
            self._memory = PrefixMemory(
                *(np.concatenate(pair) for pair in zip(self._memory, more, strict=True))
            )
        self._memory.sent_last[row] = 0

    def hits(
        self,
        candidates: npt.NDArray[np.int64],
        keys: npt.NDArray[np.uint64],
        tokens_per_chunk: float,
        most: float,
        out: npt.NDArray[np.float64],
    ) -> None:
        """Write the expected hits of the rows `candidates` (R,), at most `most` tokens, into (R, columns)."""
        _write_hits(self._memory, candidates, keys, tokens_per_chunk, most, out)

    def sent(self, row: int, keys: npt.NDArray[np.uint64]) -> None:
        """A prompt with these keys was sent there."""
        remember(self._memory, row, keys, 0, len(keys))


@njit()
def _write_hits(
    memory: Any,
    candidates: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    tokens_per_chunk: float,
    most: float,
    out: npt.NDArray[np.float64],
) -> None:
    for r in range(candidates.shape[0]):
        chunks = expected_hit(memory, candidates[r], keys, 0, keys.shape[0])
        out[r, EXPECTED_PREFIX_HIT_TOKENS] = min(chunks * tokens_per_chunk, most)
