"""What a router remembers of the prompts that it sent: which prefixes a replica may still have cached.

A prompt is a chain of chunks, each known by a 64-bit key of its content and of everything before it (the
simulator uses the ids of KV blocks, the gateway hashes of its text). The memory of a replica holds as many as
its KV cache does and forgets the least recently used first, the ends of chains before their beginnings, as
the engine evicts its blocks. It is a belief: other routers' prompts, and when the engine really took up
what, are not known.

Answers are cached too, and the next prompt of a conversation quotes them. What they contain is not looked at:
their chunks are remembered as those that follow the prompt's last one, and get their true keys from the next
prompt that goes on from there.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit

NOTHING = -1
OLDEST, NEWEST, USED, MOST = range(4)
"""Columns of `sent_ends`."""


class PrefixMemory(NamedTuple):
    """Memories of several replicas (or pairs of router and replica); functions take one by its row.

    The simulator's `State` has the same fields and is taken as well (compiled parallel loops take no tuples
    within tuples).
    """

    sent_keys: npt.NDArray[np.uint64]
    """(rows, chunks)."""
    sent_refs: npt.NDArray[np.int32]
    """(rows, chunks): requests in flight that hold it."""
    sent_older: npt.NDArray[np.int32]
    """(rows, chunks): of those that nobody holds, the one that was used before it, or `NOTHING`,"""
    sent_newer: npt.NDArray[np.int32]
    """(rows, chunks): and the one that was used after it."""
    sent_index: npt.NDArray[np.int32]
    """(rows, power of two): hash table with linear probing, from key to chunk."""
    sent_ends: npt.NDArray[np.int32]
    """(rows, 4): of the chunks that nobody holds the one used longest ago and the one used last; how many
    chunks there are, and how many may be (0: nothing is remembered)."""


def new_memory(rows: int, chunks: int) -> PrefixMemory:
    """Empty memories for `chunks` chunks each; 0: they remember nothing."""
    memory = room_for(rows, chunks)
    memory.sent_ends[:, MOST] = chunks
    forget(memory)
    return memory


def room_for(rows: int, chunks: int) -> PrefixMemory:
    """Memories that remember nothing, with room for `chunks` chunks each.

    Those whose `sent_ends` allow some remember them once they have been emptied. The others are never
    touched: where only some clusters cache prefixes, that is most of the memory that is asked for.
    """
    # Half full at most, so that probing stays short.
    size = 1 << max(2 * chunks - 1, 0).bit_length()
    return PrefixMemory(
        np.zeros((rows, chunks), np.uint64),
        np.zeros((rows, chunks), np.int32),
        np.zeros((rows, chunks), np.int32),
        np.zeros((rows, chunks), np.int32),
        np.zeros((rows, size if chunks else 0), np.int32),
        np.zeros((rows, 4), np.int32),
    )


def forget(memory: Any) -> None:
    """Empty all memories."""
    for row in np.flatnonzero(memory.sent_ends[:, MOST]):
        memory.sent_index[row] = NOTHING
    memory.sent_ends[:, :MOST] = (NOTHING, NOTHING, 0)


@njit(allocates=False)
def forget_row(memory: Any, row: int) -> None:
    """Empty one memory: its replica has lost everything."""
    for place in range(memory.sent_index.shape[1]):
        memory.sent_index[row, place] = NOTHING
    ends = memory.sent_ends[row]
    ends[OLDEST] = NOTHING
    ends[NEWEST] = NOTHING
    ends[USED] = 0


@njit()
def resize(memory: Any, row: int, chunks: int) -> None:
    """Let one memory have so many chunks: if fewer, those used longest ago go first, held ones last."""
    used = memory.sent_ends[row, USED]
    keys, refs = np.empty(used, np.uint64), np.zeros(used, np.int32)
    count = 0
    chunk = memory.sent_ends[row, OLDEST]
    while chunk != NOTHING:
        keys[count] = memory.sent_keys[row, chunk]
        count += 1
        chunk = memory.sent_newer[row, chunk]
    for chunk in range(used):
        if memory.sent_refs[row, chunk] > 0:
            keys[count], refs[count] = memory.sent_keys[row, chunk], memory.sent_refs[row, chunk]
            count += 1
    forget_row(memory, row)
    memory.sent_ends[row, MOST] = chunks
    for i in range(max(0, count - chunks), count):
        chunk = _take(memory, row, keys[i])
        memory.sent_refs[row, chunk] = refs[i]
        if refs[i] == 0:
            _append(memory, row, chunk)


@njit(allocates=False)
def expected_hit(memory: Any, row: int, keys: npt.NDArray[Any], start: int, count: int, session: int) -> int:
    """How many chunks of the chain keys[start:start + count] are remembered without a gap, from its start.

    With an answer of the conversation `session` (0: of none) that followed what was found.
    """
    if memory.sent_ends[row, MOST] == 0:
        return 0
    hit = _known(memory, row, keys, start, count)
    if 0 < hit < count:
        hit += _answer_after(memory, row, np.uint64(keys[start + hit - 1]), session, count - hit)
    return hit


@njit(allocates=False)
def remember(memory: Any, row: int, keys: npt.NDArray[Any], start: int, count: int, session: int) -> None:
    """The chain keys[start:start + count] was sent: it is held until it is `answered`, if there is room."""
    if memory.sent_ends[row, MOST] == 0:
        return
    known = _known(memory, row, keys, start, count)
    if 0 < known < count:
        # What goes on from there quotes the answer: the same chunks, by their true keys.
        last = np.uint64(keys[start + known - 1])
        for i in range(_answer_after(memory, row, last, session, count - known)):
            key = np.uint64(keys[start + known + i])
            if _find(memory, row, key) == NOTHING:
                _rename(memory, row, _find(memory, row, _answer_key(last, session, i)), key)
    for i in range(count):
        _hold(memory, row, np.uint64(keys[start + i]))


@njit(allocates=False)
def answered(
    memory: Any, row: int, keys: npt.NDArray[Any], start: int, count: int, session: int, answer: int
) -> None:
    """The chain keys[start:start + count] is let go of, with an answer that fills `answer` chunks more.

    Its end will be forgotten before its beginning; what was forgotten meanwhile stays so.
    """
    if memory.sent_ends[row, MOST] == 0 or count == 0:
        return
    last = np.uint64(keys[start + count - 1])
    if _find(memory, row, last) != NOTHING:
        for i in range(answer - 1, -1, -1):
            key = _answer_key(last, session, i)
            if _find(memory, row, key) != NOTHING:
                _let_go(memory, row, key)
                continue
            chunk = _take(memory, row, key)
            if chunk != NOTHING:
                _append(memory, row, chunk)
    for i in range(count - 1, -1, -1):
        _let_go(memory, row, np.uint64(keys[start + i]))


@njit(allocates=False)
def _known(memory: Any, row: int, keys: npt.NDArray[Any], start: int, count: int) -> int:
    """How many chunks at the beginning of a chain are remembered by their true keys."""
    known = 0
    while known < count and _find(memory, row, np.uint64(keys[start + known])) != NOTHING:
        known += 1
    return known


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
def _answer_key(last: np.uint64, session: int, i: int) -> np.uint64:
    """The key of the `i`-th chunk of an answer to a prompt whose last chunk is `last`."""
    return mixed(mixed(mixed(last) + np.uint64(session)) + np.uint64(i + 1))


@njit(allocates=False)
def _answer_after(memory: Any, row: int, last: np.uint64, session: int, most: int) -> int:
    """How many chunks of an answer after `last` are remembered, `most` at most."""
    count = 0
    while count < most and _find(memory, row, _answer_key(last, session, count)) != NOTHING:
        count += 1
    return count


@njit(allocates=False)
def _place(memory: Any, row: int, key: np.uint64) -> int:
    """The index's entry that holds `key`, or the empty one where it would go."""
    mask = memory.sent_index.shape[1] - 1
    place = np.int64(mixed(key) & np.uint64(mask))
    while True:
        chunk = memory.sent_index[row, place]
        if chunk == NOTHING or memory.sent_keys[row, chunk] == key:
            return place  # type: ignore[return-value]
        place = (place + 1) & mask


@njit(allocates=False)
def _find(memory: Any, row: int, key: np.uint64) -> int:
    """The chunk of this key, or `NOTHING`."""
    return int(memory.sent_index[row, _place(memory, row, key)])


@njit(allocates=False)
def _hold(memory: Any, row: int, key: np.uint64) -> None:
    """One more request in flight has the chunk of this key, which is not forgotten until it lets go."""
    chunk = _find(memory, row, key)
    if chunk == NOTHING:
        chunk = _take(memory, row, key)
        if chunk == NOTHING:
            return
    elif memory.sent_refs[row, chunk] == 0:
        _unlink(memory, row, chunk)
    memory.sent_refs[row, chunk] += 1


@njit(allocates=False)
def _let_go(memory: Any, row: int, key: np.uint64) -> None:
    """A request has used the chunk of this key: where nobody else holds it, it is the one used last."""
    chunk = _find(memory, row, key)
    if chunk == NOTHING:
        return
    if memory.sent_refs[row, chunk] == 0:
        _unlink(memory, row, chunk)
    else:
        memory.sent_refs[row, chunk] -= 1
        if memory.sent_refs[row, chunk] > 0:
            return
    _append(memory, row, chunk)


@njit(allocates=False)
def _append(memory: Any, row: int, chunk: int) -> None:
    """A chunk that nobody holds is the one used last."""
    newest = memory.sent_ends[row, NEWEST]
    memory.sent_older[row, chunk] = newest
    memory.sent_newer[row, chunk] = NOTHING
    memory.sent_ends[row, NEWEST] = chunk
    if newest == NOTHING:
        memory.sent_ends[row, OLDEST] = chunk
    else:
        memory.sent_newer[row, newest] = chunk


@njit(allocates=False)
def _take(memory: Any, row: int, key: np.uint64) -> int:
    """A chunk for a new key, outside the order: a free one, or the oldest; `NOTHING` if all are held."""
    ends = memory.sent_ends[row]
    if ends[USED] < ends[MOST]:
        chunk = ends[USED]
        ends[USED] += 1
    else:
        chunk = ends[OLDEST]
        if chunk == NOTHING:
            return NOTHING
        _unlink(memory, row, chunk)
        _drop(memory, row, memory.sent_keys[row, chunk])
    memory.sent_keys[row, chunk] = key
    memory.sent_refs[row, chunk] = 0
    memory.sent_index[row, _place(memory, row, key)] = chunk
    return int(chunk)


@njit(allocates=False)
def _unlink(memory: Any, row: int, chunk: int) -> None:
    """Take a chunk out of the order of use."""
    older, newer = memory.sent_older[row, chunk], memory.sent_newer[row, chunk]
    if older == NOTHING:
        memory.sent_ends[row, OLDEST] = newer
    else:
        memory.sent_newer[row, older] = newer
    if newer == NOTHING:
        memory.sent_ends[row, NEWEST] = older
    else:
        memory.sent_older[row, newer] = older


@njit(allocates=False)
def _rename(memory: Any, row: int, chunk: int, key: np.uint64) -> None:
    """A chunk gets another key, in the same place of the order."""
    _drop(memory, row, memory.sent_keys[row, chunk])
    memory.sent_keys[row, chunk] = key
    memory.sent_index[row, _place(memory, row, key)] = chunk


@njit(allocates=False)
def _drop(memory: Any, row: int, key: np.uint64) -> None:
    """Take a key out of the index, moving up later ones that probing would miss (Knuth, TAOCP 3, 6.4 R)."""
    mask = memory.sent_index.shape[1] - 1
    gap = _place(memory, row, key)
    place = gap
    while True:
        place = (place + 1) & mask
        chunk = memory.sent_index[row, place]
        if chunk == NOTHING:
            break
        home = np.int64(mixed(memory.sent_keys[row, chunk]) & np.uint64(mask))
        if ((place - home) & mask) >= ((place - gap) & mask):
            memory.sent_index[row, gap] = chunk
            gap = place
    memory.sent_index[row, gap] = NOTHING
