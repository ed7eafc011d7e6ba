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
REMEMBERED = 2.0
"""How many times the tokens that fit into a replica's KV cache are remembered of what it was sent. Better
than once and three times as many (docs/experiments.md): probably because some set of eight overflows long
before all are full, and a chain ends at its first chunk that is forgotten."""


class PrefixMemory(NamedTuple):
    """Memories of several replicas (or pairs of router and replica); functions take one by its row.

    The simulator's `State` has the same fields and is taken as well (compiled parallel loops take no tuples
    within tuples).
    """

    sent_keys: npt.NDArray[np.uint64]
    """(rows, sets, WAYS)."""
    sent_last: npt.NDArray[np.int64]
    """(rows, sets, WAYS): when each was last sent, counted in chunks; 0 is an empty entry."""
    sent_clock: npt.NDArray[np.int64]
    """(rows,): chunks sent so far."""
    sent_sets: npt.NDArray[np.int64]
    """(rows,): how many of its sets a row uses; 0: it remembers nothing."""


def new_memory(rows: int, chunks: int) -> PrefixMemory:
    """Empty memories for `chunks` chunks each, rounded up to whole sets; 0: they remember nothing."""
    sets = sets_for(chunks)
    shape = (rows, sets, WAYS)
    return PrefixMemory(
        np.zeros(shape, np.uint64),
        np.zeros(shape, np.int64),
        np.zeros(rows, np.int64),
        np.full(rows, sets, np.int64),
    )


def sets_for(chunks: int) -> int:
    """Sets that hold so many chunks."""
    return -(-chunks // WAYS)


def forget(memory: Any) -> None:
    """Empty all memories."""
    memory.sent_last[:] = 0
    memory.sent_clock[:] = 0


@njit(allocates=False)
def forget_row(memory: Any, row: int) -> None:
    """Empty one memory: its replica has lost everything."""
    for place in range(memory.sent_sets[row]):
        for way in range(WAYS):
            memory.sent_last[row, place, way] = 0


@njit()
def resize(memory: Any, row: int, sets: int) -> None:
    """Let one memory use so many of its sets; where that is fewer, those sent longest ago are forgotten."""
    had = memory.sent_sets[row]
    keys, last = memory.sent_keys[row, :had].copy(), memory.sent_last[row, :had].copy()
    memory.sent_sets[row] = sets
    memory.sent_last[row, :] = 0
    for place in range(had):
        for way in range(WAYS):
            if last[place, way] > 0:
                _keep(memory, row, keys[place, way], last[place, way])


@njit(allocates=False)
def _keep(memory: Any, row: int, key: np.uint64, last: int) -> None:
    """An entry in the place of its set's oldest, unless it is older itself."""
    place = _set_of(memory, row, key)
    oldest = 0
    for way in range(WAYS):
        if memory.sent_last[row, place, way] < memory.sent_last[row, place, oldest]:
            oldest = way
    if memory.sent_last[row, place, oldest] < last:
        memory.sent_keys[row, place, oldest] = key
        memory.sent_last[row, place, oldest] = last


@njit(allocates=False)
def mixed(key: np.uint64) -> np.uint64:
    """The key's bits spread evenly: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = key
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@njit(allocates=False)
def _set_of(memory: Any, row: int, key: np.uint64) -> int:
    # Multiply and shift: evenly into any number of sets (Lemire, ACM TOMACS 29(1), 2019).
    high = mixed(key) >> np.uint64(32)
    return np.int64((high * np.uint64(memory.sent_sets[row])) >> np.uint64(32))  # type: ignore[return-value]


@njit(allocates=False)
def expected_hit(memory: Any, row: int, keys: npt.NDArray[Any], start: int, count: int) -> int:
    """How many chunks of the chain keys[start:start + count] are remembered without a gap, from its start."""
    if memory.sent_sets[row] == 0:
        return 0
    for i in range(count):
        key = np.uint64(keys[start + i])
        place = _set_of(memory, row, key)
        found = False
        for way in range(WAYS):
            if memory.sent_keys[row, place, way] == key and memory.sent_last[row, place, way] > 0:
                found = True
        if not found:
            return i
    return count


@njit(allocates=False)
def remember(memory: Any, row: int, keys: npt.NDArray[Any], start: int, count: int) -> None:
    """The chain keys[start:start + count] was sent: its end will be forgotten before its beginning."""
    if memory.sent_sets[row] == 0:
        return
    memory.sent_clock[row] += count
    for i in range(count):
        key = np.uint64(keys[start + i])
        place = _set_of(memory, row, key)
        entry = 0
        for way in range(WAYS):
            if memory.sent_keys[row, place, way] == key and memory.sent_last[row, place, way] > 0:
                entry = way
                break
            if memory.sent_last[row, place, way] < memory.sent_last[row, place, entry]:
                entry = way
        memory.sent_keys[row, place, entry] = key
        memory.sent_last[row, place, entry] = memory.sent_clock[row] - i
