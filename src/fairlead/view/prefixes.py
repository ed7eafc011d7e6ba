"""What a router remembers of the prompts that it sent: which prefixes a replica may still have cached.

A prompt is a chain of chunks, each known by a 64-bit key of its content and of everything before it (the
simulator uses the ids of KV blocks, the gateway hashes of its text). The memory is a bounded,
set-associative table per router and replica: 8 entries per set, the least recently used of which makes
room. It is a belief: the engine may have evicted what is remembered, or kept what was forgotten.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit

WAYS = 8
"""Entries per set."""


class PrefixMemory(NamedTuple):
    """Memories of several replicas (or pairs of router and replica); functions take one by its row."""

    keys: npt.NDArray[np.uint64]
    """(rows, sets, WAYS)."""
    used: npt.NDArray[np.int64]
    """(rows, sets, WAYS): when each was last sent, counted in chunks; 0 is an empty entry."""
    clock: npt.NDArray[np.int64]
    """(rows,): chunks sent so far."""


def new_memory(rows: int, chunks: int) -> PrefixMemory:
    """Empty memories for `chunks` chunks each, rounded up to whole sets; 0: they remember nothing."""
    sets = -(-chunks // WAYS)
    shape = (rows, sets, WAYS)
    return PrefixMemory(np.zeros(shape, np.uint64), np.zeros(shape, np.int64), np.zeros(rows, np.int64))


def forget(memory: PrefixMemory) -> None:
    """Empty all memories."""
    memory.used[:] = 0
    memory.clock[:] = 0


@njit()
def _mixed(key: np.uint64) -> np.uint64:
    """The key's bits spread evenly: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = key
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@njit()
def _set_of(memory: PrefixMemory, key: np.uint64) -> int:
    # Multiply and shift: evenly into any number of sets (Lemire, ACM TOMACS 29(1), 2019).
    high = _mixed(key) >> np.uint64(32)
    return np.int64((high * np.uint64(memory.keys.shape[1])) >> np.uint64(32))  # type: ignore[return-value]


@njit()
def expected_hit(memory: PrefixMemory, row: int, keys: npt.NDArray[Any], start: int, count: int) -> int:
    """How many chunks of the chain keys[start:start + count] are remembered without a gap, from its start."""
    if memory.keys.shape[1] == 0:
        return 0
    for i in range(count):
        key = np.uint64(keys[start + i])
        place = _set_of(memory, key)
        found = False
        for way in range(WAYS):
            if memory.keys[row, place, way] == key and memory.used[row, place, way] > 0:
                found = True
        if not found:
            return i
    return count


@njit()
def remember(memory: PrefixMemory, row: int, keys: npt.NDArray[Any], start: int, count: int) -> None:
    """The chain keys[start:start + count] was sent: its end will be forgotten before its beginning."""
    if memory.keys.shape[1] == 0:
        return
    memory.clock[row] += count
    for i in range(count):
        key = np.uint64(keys[start + i])
        place = _set_of(memory, key)
        entry = 0
        for way in range(WAYS):
            if memory.keys[row, place, way] == key and memory.used[row, place, way] > 0:
                entry = way
                break
            if memory.used[row, place, way] < memory.used[row, place, entry]:
                entry = way
        memory.keys[row, place, entry] = key
        memory.used[row, place, entry] = memory.clock[row] - i
