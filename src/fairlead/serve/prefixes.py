"""Which prompts each backend was sent: how much of a new one it may still have cached.

A prompt's JSON is cut into chunks of `CHUNK_BYTES`; each chunk's key depends on all before it. The memory
per backend is bounded (`view.prefixes`), whatever clients send, and as large as in the simulator: what the
backend's KV cache holds, once that is known.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.serve.facts import Facts
from fairlead.view.prefixes import (
    MOST,
    PrefixMemory,
    answered,
    expected_hit,
    forget_row,
    new_memory,
    remember,
    resize,
)
from fairlead.view.schema import EXPECTED_PREFIX_HIT_TOKENS

CHUNK_BYTES = 256
"""About 64 tokens: finer would cost more time than a hit is worth."""
MAX_CHUNKS = 2048
"""Of a longer prompt only the beginning is remembered."""
MOST_CHUNKS = 65_536
"""Remembered of a backend, however large its KV cache is: less than 2 MiB."""
WHERE_UNKNOWN = 16_384
"""Chunks remembered of a backend whose KV cache has a size that nobody told."""
MUCH = 1.05
"""A memory's size is changed where it should be larger or smaller by such a factor: entries have to move."""


_WORD = np.dtype(np.uint64)
_WORDS = CHUNK_BYTES // _WORD.itemsize
_SECRET = np.frombuffer(os.urandom(2 * _WORD.itemsize), _WORD)


def chunk_keys(prompt: bytes, secret: npt.NDArray[np.uint64] = _SECRET) -> npt.NDArray[np.uint64]:
    """The chain of keys (chunks,) of a prompt's full chunks.

    Each is SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012) of the prompt up to the chunk's end. The
    `secret` (2,) is another one in each process: so no client can make prompts up that look alike.
    """
    chunks = min(len(prompt) // CHUNK_BYTES, MAX_CHUNKS)
    keys = np.empty(chunks, np.uint64)
    _write_keys(np.frombuffer(prompt, _WORD, chunks * _WORDS), secret, keys)
    return keys


NO_KEYS = np.zeros(0, np.uint64)


def answer_chunks(facts: Facts, prompt_tokens: int, answer_tokens: int) -> int:
    """How many chunks an answer fills behind a prompt's full ones, its text being as dense as the prompt's.

    0 where the prompt is so long that only its beginning has keys: nothing is known of its end.
    """
    chunks, size = len(facts.prompt) // CHUNK_BYTES, facts.prompt_bytes
    if answer_tokens == 0 or chunks > MAX_CHUNKS:
        return 0
    # The last token of an answer is never computed.
    end = len(facts.prompt) + (answer_tokens - 1) * size / max(prompt_tokens, 1)
    return int(end // CHUNK_BYTES) - chunks


class Prefixes:
    """The memories of all backends, by their rows in the ledger."""

    def __init__(self, chunks: int | None) -> None:
        """`chunks` are remembered per backend; 0: none; None: as many as `fit` says."""
        self._fixed = chunks is not None
        self._chunks = MOST_CHUNKS if chunks is None else chunks
        self._first = WHERE_UNKNOWN if chunks is None else chunks
        self._memory = new_memory(0, self._chunks)
        keys = chunk_keys(bytes(CHUNK_BYTES))  # compiles before the first request comes
        self.forget(0)
        self.hits(np.zeros(1, np.int64), keys, 0, 1.0, 1.0, np.zeros((1, EXPECTED_PREFIX_HIT_TOKENS + 1)))
        self.sent(0, keys, 0)
        self.answered(0, keys, 0, 1)
        resize(self._memory, 0, self._first)
        self.forget(0)

    def forget(self, row: int) -> None:
        """Nothing is cached there (any more)."""
        rows = len(self._memory.sent_ends)
        if row >= rows:
            more = new_memory(row + 4 - rows, self._chunks)
            more.sent_ends[:, MOST] = self._first
            arrays: Any = zip(self._memory, more, strict=True)
            self._memory = PrefixMemory(*(np.concatenate(pair) for pair in arrays))
        forget_row(self._memory, row)

    def taken_over(self, row: int) -> None:
        """Another backend has the row now: nothing is cached there, and nobody knows how much could be."""
        self.forget(row)
        self._memory.sent_ends[row, MOST] = self._first

    def fit(self, row: int, kv_capacity_tokens: float, bytes_per_token: float) -> None:
        """Remember what the KV cache holds, unless told how much."""
        if self._fixed:
            return
        chunks = max(1, min(round(kv_capacity_tokens * bytes_per_token / CHUNK_BYTES), self._chunks))
        has = int(self._memory.sent_ends[row, MOST])
        if max(chunks, has) > MUCH * min(chunks, has):
            resize(self._memory, row, chunks)

    def hits(
        self,
        candidates: npt.NDArray[np.int64],
        keys: npt.NDArray[np.uint64],
        session: int,
        tokens_per_chunk: float,
        most: float,
        out: npt.NDArray[np.float64],
    ) -> None:
        """Write the expected hits of the rows `candidates` (R,), at most `most` tokens, into (R, columns)."""
        _write_hits(self._memory, candidates, keys, session, tokens_per_chunk, most, out)

    def sent(self, row: int, keys: npt.NDArray[np.uint64], session: int) -> None:
        """A prompt with these keys was sent there; `session` is the number of its conversation, 0 of none."""
        remember(self._memory, row, keys, 0, len(keys), session)

    def answered(self, row: int, keys: npt.NDArray[np.uint64], session: int, answer: int) -> None:
        """It is not there any more; its answer, as far as it came, filled so many chunks behind it."""
        answered(self._memory, row, keys, 0, len(keys), session, answer)


@njit()
def _write_hits(
    memory: Any,
    candidates: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    session: int,
    tokens_per_chunk: float,
    most: float,
    out: npt.NDArray[np.float64],
) -> None:
    for r in range(candidates.shape[0]):
        chunks = expected_hit(memory, candidates[r], keys, 0, keys.shape[0], session)
        out[r, EXPECTED_PREFIX_HIT_TOKENS] = min(chunks * tokens_per_chunk, most)


@njit(allocates=False)
def _write_keys(
    words: npt.NDArray[np.uint64], secret: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]
) -> None:
    v0 = secret[0] ^ np.uint64(0x736F6D6570736575)
    v1 = secret[1] ^ np.uint64(0x646F72616E646F6D)
    v2 = secret[0] ^ np.uint64(0x6C7967656E657261)
    v3 = secret[1] ^ np.uint64(0x7465646279746573)
    for chunk in range(keys.shape[0]):
        for i in range(chunk * _WORDS, (chunk + 1) * _WORDS):
            v3 ^= words[i]
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
            v0 ^= words[i]
        # The hash ends here for this key and goes on for the next one. Its last word, the length modulo 256
        # in the highest byte, is 0.
        e0, e1, e2, e3 = _round(v0, v1, v2, v3)
        e2 ^= np.uint64(0xFF)
        for _ in range(3):
            e0, e1, e2, e3 = _round(e0, e1, e2, e3)
        keys[chunk] = e0 ^ e1 ^ e2 ^ e3


@njit(inline=True)
def _round(
    v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    v0 += v1
    v2 += v3
    v1 = _rotated(v1, 13) ^ v0
    v3 = _rotated(v3, 16) ^ v2
    v0 = _rotated(v0, 32)
    v2 += v1
    v0 += v3
    v1 = _rotated(v1, 17) ^ v2
    v3 = _rotated(v3, 21) ^ v0
    v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


@njit(inline=True)
def _rotated(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))
