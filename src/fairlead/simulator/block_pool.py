"""KV blocks with prefix caching, compiled: the block pool of vLLM V1 (`vllm/v1/core/block_pool.py`).

A full block is *cached* under the id of its content; the id stands for the block's tokens and all tokens
before it (vLLM: a hash chain). Requests with the same prefix share cached blocks by counting references. A
block that nobody holds waits in the free queue, still cached, until it comes to the front and is taken for
something else: least recently used first. `reference_pool.py` is the plain twin.

Which physical block is which never shows; only the order of the free queue does.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit

NO_BLOCK = -1

BLOCK = np.dtype(
    [
        ("refs", "i4"),  # running requests that hold it
        ("content", "i4"),  # id of what it is cached under, NO_BLOCK if it is not
        ("before", "i4"),  # neighbours in the free queue, while nobody holds it
        ("after", "i4"),
        ("older", "i4"),  # ring of the blocks cached under the same content, oldest first
        ("newer", "i4"),
    ],
    align=True,
)

QUEUE = np.dtype([("first", "i4"), ("last", "i4"), ("rows", "i4")], align=True)
"""Ends of a replica's free queue, and how many of its block tables are in use."""


class Pool(NamedTuple):
    """The block pools of all replicas.

    Every function takes the replica's number `k` and either this or the engine's `State`, which has the same
    fields (compiled parallel loops take no tuples within tuples).
    """

    blocks: npt.NDArray[Any]
    """(replicas, blocks) of BLOCK; a replica with fewer blocks leaves the last ones alone."""
    block_queues: npt.NDArray[Any]
    """(replicas,) of QUEUE."""
    block_index: npt.NDArray[np.int32]
    """(replicas, power of two): hash table with linear probing, from content to its oldest block."""
    block_tables: npt.NDArray[np.int32]
    """(replicas, rows, blocks of a request): which blocks a running request holds."""
    table_rows: npt.NDArray[np.int32]
    """(replicas, rows): the tables' rows, those in use first; a slot keeps its row when it moves."""
    slot_order: npt.NDArray[np.int32]
    """(replicas, rows) and"""
    phase_ends: npt.NDArray[np.int32]
    """(replicas, block size): scratch space in which decoding slots are sorted."""


def new_pool(replicas: int, blocks: int, rows: int, width: int, block_size: int) -> Pool:
    """Pools of up to `blocks` blocks for requests of up to `width` blocks, `rows` of them at once.

    Call `clear_pool` before use. With `blocks` 0 nothing is allocated: no prefix caching.
    """
    if blocks == 0:
        rows = width = block_size = 0
    # Half full at most, so that probing stays short.
    size = 1 << max(2 * blocks - 1, 0).bit_length()
    return Pool(
        np.zeros((replicas, blocks), BLOCK).view(np.recarray),
        np.zeros(replicas, QUEUE).view(np.recarray),
        np.zeros((replicas, size if blocks else 0), np.int32),
        np.zeros((replicas, rows, width), np.int32),
        np.zeros((replicas, rows), np.int32),
        np.zeros((replicas, rows), np.int32),
        np.zeros((replicas, block_size), np.int32),
    )


@njit(allocates=False)
def clear_pools(pool: Any, blocks: npt.NDArray[np.int64]) -> None:
    """`clear_pool` for every replica with its number of blocks; 0 where it caches nothing."""
    for k in range(blocks.shape[0]):
        if blocks[k] > 0:
            clear_pool(pool, k, blocks[k])


@njit(allocates=False)
def clear_pool(pool: Any, k: int, blocks: int) -> None:
    """Replica `k` has `blocks` free blocks in order, with nothing cached."""
    queue = pool.block_queues[k]
    queue.first = NO_BLOCK
    queue.last = NO_BLOCK
    queue.rows = 0
    for b in range(blocks):
        block = pool.blocks[k, b]
        block.refs = 0
        block.content = NO_BLOCK
        append(pool, k, b)
    for i in range(pool.block_index.shape[1]):
        pool.block_index[k, i] = NO_BLOCK
    for row in range(pool.table_rows.shape[1]):
        pool.table_rows[k, row] = row


@njit(allocates=False)
def append(pool: Any, k: int, b: int) -> None:
    """Put block `b` at the end of the free queue."""
    queue = pool.block_queues[k]
    block = pool.blocks[k, b]
    block.before = queue.last
    block.after = NO_BLOCK
    if queue.last == NO_BLOCK:
        queue.first = b
    else:
        pool.blocks[k, queue.last].after = b
    queue.last = b


@njit(allocates=False)
def unlink(pool: Any, k: int, b: int) -> None:
    """Take block `b` out of the free queue, wherever it stands."""
    queue = pool.block_queues[k]
    block = pool.blocks[k, b]
    if block.before == NO_BLOCK:
        queue.first = block.after
    else:
        pool.blocks[k, block.before].after = block.after
    if block.after == NO_BLOCK:
        queue.last = block.before
    else:
        pool.blocks[k, block.after].before = block.before


@njit(allocates=False)
def _home(pool: Any, content: int) -> int:
    """Where probing for `content` starts (Fibonacci hashing, Knuth, TAOCP 3, 6.4)."""
    return ((np.int64(content) * 2654435769) >> 13) & (pool.block_index.shape[1] - 1)


@njit(allocates=False)
def _place(pool: Any, k: int, content: int) -> int:
    """The index's entry that holds `content`, or the empty one where it would go."""
    mask = pool.block_index.shape[1] - 1
    i = _home(pool, content)
    while pool.block_index[k, i] != NO_BLOCK and pool.blocks[k, pool.block_index[k, i]].content != content:
        i = (i + 1) & mask
    return i


@njit(allocates=False)
def find(pool: Any, k: int, content: int) -> int:
    """The block that has been cached longest under `content`, or NO_BLOCK."""
    return int(pool.block_index[k, _place(pool, k, content)])


@njit(allocates=False)
def cache(pool: Any, k: int, b: int, content: int) -> None:
    """Block `b` is full: it can be found under `content` from now on, after its duplicates."""
    block = pool.blocks[k, b]
    i = _place(pool, k, content)
    block.content = content
    oldest = pool.block_index[k, i]
    if oldest == NO_BLOCK:
        block.older = b
        block.newer = b
        pool.block_index[k, i] = b
        return
    newest = pool.blocks[k, oldest].older
    block.older = newest
    block.newer = oldest
    pool.blocks[k, newest].newer = b
    pool.blocks[k, oldest].older = b


@njit(allocates=False)
def evict(pool: Any, k: int, b: int) -> None:
    """What was cached in block `b` is forgotten."""
    block = pool.blocks[k, b]
    i = _place(pool, k, block.content)
    block.content = NO_BLOCK
    if block.newer == b:
        _close_gap(pool, k, i)
        return
    pool.blocks[k, block.older].newer = block.newer
    pool.blocks[k, block.newer].older = block.older
    if pool.block_index[k, i] == b:
        pool.block_index[k, i] = block.newer


@njit(allocates=False)
def _close_gap(pool: Any, k: int, gap: int) -> None:
    """Empty an entry of the index, moving up later ones that probing would no longer reach (Knuth, 6.4 R)."""
    mask = pool.block_index.shape[1] - 1
    i = gap
    while True:
        i = (i + 1) & mask
        b = pool.block_index[k, i]
        if b == NO_BLOCK:
            break
        home = _home(pool, pool.blocks[k, b].content)
        if ((i - home) & mask) >= ((i - gap) & mask):
            pool.block_index[k, gap] = b
            gap = i
    pool.block_index[k, gap] = NO_BLOCK


@njit(allocates=False)
def take(pool: Any, k: int) -> int:
    """The block at the front of the free queue, for one holder; what it had cached is forgotten."""
    b = pool.block_queues[k].first
    unlink(pool, k, b)
    block = pool.blocks[k, b]
    if block.content != NO_BLOCK:
        evict(pool, k, b)
    block.refs = 1
    return int(b)


@njit(allocates=False)
def hold(pool: Any, k: int, b: int) -> None:
    """One more holder of cached block `b`."""
    block = pool.blocks[k, b]
    if block.refs == 0:
        unlink(pool, k, b)
    block.refs += 1


@njit(allocates=False)
def next_row(pool: Any, k: int) -> int:
    """The block table that the next request to be admitted will have."""
    return int(pool.table_rows[k, pool.block_queues[k].rows])


@njit(allocates=False)
def take_row(pool: Any, k: int) -> int:
    """A block table for a request that is admitted."""
    queue = pool.block_queues[k]
    row = pool.table_rows[k, queue.rows]
    queue.rows += 1
    return int(row)


@njit(allocates=False)
def release(pool: Any, k: int, row: int, held: int) -> int:
    """A request leaves: it lets go of its `held` blocks, the last one first; how many became free.

    In this order the end of its chain is taken before the beginning, which more requests may share.
    """
    free = 0
    for position in range(held - 1, -1, -1):
        b = pool.block_tables[k, row, position]
        block = pool.blocks[k, b]
        block.refs -= 1
        if block.refs == 0:
            append(pool, k, b)
            free += 1
    queue = pool.block_queues[k]
    queue.rows -= 1
    pool.table_rows[k, queue.rows] = row
    return free


@njit(allocates=False)
def longest_hit(
    pool: Any, k: int, row: int, contents: npt.NDArray[np.int32], start: int, most: int
) -> tuple[int, int]:
    """(blocks cached of the chain contents[start:start + most], how many of these nobody holds).

    The blocks found are written into table `row`; nothing else changes.
    """
    idle = 0
    for position in range(most):
        b = find(pool, k, contents[start + position])
        if b == NO_BLOCK:
            return position, idle
        pool.block_tables[k, row, position] = b
        if pool.blocks[k, b].refs == 0:
            idle += 1
    return most, idle


@njit(allocates=False)
def hold_hit(pool: Any, k: int, row: int, hit: int) -> None:
    """Hold the first `hit` blocks of table `row`, as `longest_hit` found them."""
    for position in range(hit):
        hold(pool, k, pool.block_tables[k, row, position])


@njit(allocates=False)
def extend(
    pool: Any,
    k: int,
    row: int,
    contents: npt.NDArray[np.int32],
    start: int,
    done: int,
    tokens: int,
    block_size: int,
) -> None:
    """A request computes `tokens` tokens behind `done` ones: take the blocks, cache those that are filled.

    `contents[start + i]` is the content of its i-th block. The free blocks must suffice.
    """
    for position in range((done + block_size - 1) // block_size, (done + tokens - 1) // block_size + 1):
        pool.block_tables[k, row, position] = take(pool, k)
    for position in range(done // block_size, (done + tokens) // block_size):
        cache(pool, k, pool.block_tables[k, row, position], contents[start + position])
