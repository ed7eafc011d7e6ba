"""The compiled block pool against its plain twin, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.compiled import njit
from fairlead.simulator import block_pool
from fairlead.simulator.reference_pool import Block, BlockPool

SIZE = 4
"""Tokens per block."""


class Pair:
    """The same operations on both pools."""

    def __init__(self, blocks: int) -> None:
        self.pool = block_pool.new_pool(1, blocks, 16, blocks, SIZE)
        block_pool.clear_pool(self.pool, 0, blocks)
        self.twin = BlockPool(blocks)
        self.rows: dict[int, int] = {}
        self.held: dict[int, list[Block]] = {}
        self.blocks = blocks

    def admit(self, name: int, contents: list[int], tokens: int) -> int | None:
        """Admit a request of so many known tokens, if there is room; the blocks that it hit."""
        most = (tokens - 1) // SIZE
        ids = np.array(contents, np.int32)
        row = block_pool.next_row(self.pool, 0)
        hit, idle = block_pool.longest_hit(self.pool, 0, row, ids, 0, most)
        expected = self.twin.longest_hit(contents, most)
        assert (hit, idle) == (len(expected), sum(block.refs == 0 for block in expected))
        need = -(-tokens // SIZE) - hit
        if need + idle > len(self.twin.free):
            return None
        assert block_pool.take_row(self.pool, 0) == row
        block_pool.hold_hit(self.pool, 0, row, hit)
        block_pool.extend(self.pool, 0, row, ids, 0, hit * SIZE, tokens - hit * SIZE, SIZE)
        self.twin.hold(expected)
        held = expected + self.twin.take(need)
        for position in range(hit, tokens // SIZE):
            self.twin.cache(held[position], contents[position])
        self.rows[name], self.held[name] = row, held
        return hit

    def leave(self, name: int) -> None:
        held = self.held.pop(name)
        before = len(self.twin.free)
        self.twin.release(held)
        free = block_pool.release(self.pool, 0, self.rows.pop(name), len(held))
        assert free == len(self.twin.free) - before

    def check(self) -> None:
        """Both have the same free queue; references count holders; every block is somewhere once."""
        order = free_queue(self.pool, 0)
        assert contents_of(self.pool, 0, order) == [block.content for block in self.twin.free]
        refs = self.pool.blocks["refs"][0]
        holders = np.zeros(self.blocks, int)
        for name, row in self.rows.items():
            for b in self.pool.block_tables[0, row, : len(self.held[name])]:
                holders[b] += 1
        np.testing.assert_array_equal(refs, holders)
        assert sorted(order) == np.flatnonzero(refs == 0).tolist()
        for content, blocks in self.twin.cached.items():
            found = block_pool.find(self.pool, 0, content)
            assert self.pool.blocks[0, found].refs == blocks[0].refs
        assert (self.pool.block_index[0] >= 0).sum() == len(self.twin.cached)


def free_queue(pool: block_pool.Pool, k: int) -> list[int]:
    order, b = [], int(pool.block_queues[k].first)
    while b != block_pool.NO_BLOCK:
        order.append(b)
        b = int(pool.blocks[k, b].after)
    return order


def contents_of(pool: block_pool.Pool, k: int, order: list[int]) -> list[int | None]:
    found = [int(pool.blocks[k, b].content) for b in order]
    return [None if content == block_pool.NO_BLOCK else content for content in found]


def test_a_prefix_is_found_again_and_the_last_token_is_computed() -> None:
    pair = Pair(8)
    assert pair.admit(1, [10, 11], 9) == 0
    assert pair.admit(2, [10, 11], 9) == 2
    # 8 known tokens are two full blocks, but the last token has to be computed.
    assert pair.admit(3, [10, 11], 8) == 1
    pair.check()


def test_the_end_of_a_chain_is_taken_before_its_beginning() -> None:
    pair = Pair(4)
    pair.admit(1, [10, 11, 12, 13], 16)
    pair.leave(1)
    assert contents_of(pair.pool, 0, free_queue(pair.pool, 0)) == [13, 12, 11, 10]
    pair.admit(2, [20, 21], 8)
    pair.leave(2)
    assert pair.admit(3, [10, 11, 12, 13], 13) == 2
    pair.check()


def test_a_hit_refreshes_and_held_blocks_are_not_taken() -> None:
    pair = Pair(4)
    pair.admit(1, [10], 4)
    pair.admit(2, [20], 4)
    pair.leave(1)
    pair.leave(2)
    assert pair.admit(3, [10], 5) == 1
    assert pair.admit(4, [30, 31, 32], 12) is None
    assert pair.admit(5, [30, 31], 8) == 0
    assert block_pool.find(pair.pool, 0, 20) == block_pool.NO_BLOCK
    assert block_pool.find(pair.pool, 0, 10) != block_pool.NO_BLOCK
    pair.check()


def test_duplicates_are_hit_oldest_first() -> None:
    pair = Pair(6)
    pair.admit(1, [10], 4)
    pair.admit(2, [10], 4)
    first, second = (int(pair.pool.block_tables[0, pair.rows[name], 0]) for name in (1, 2))
    assert first != second
    pair.leave(1)
    assert pair.admit(3, [10], 5) == 1
    assert int(pair.pool.block_tables[0, pair.rows[3], 0]) == first
    pair.check()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pool_agrees_with_the_twin_on_anything(data: st.DataObject) -> None:
    """Chains from a small tree, so that prefixes, duplicates and evictions happen all the time."""
    pair = Pair(data.draw(st.integers(1, 24), label="blocks"))
    for name in range(data.draw(st.integers(1, 60), label="steps")):
        leaving = data.draw(st.sampled_from([None, *pair.rows]), label="leaving")
        if leaving is not None:
            pair.leave(leaving)
        tree = data.draw(st.integers(0, 3), label="tree")
        branch = data.draw(st.integers(0, 6), label="branch")
        tokens = data.draw(st.integers(1, 4 * min(pair.blocks, 8)), label="tokens")
        chain = [1000 * tree + (0 if i < branch else 10 * branch) + i for i in range(8)]
        if len(pair.rows) < 16:
            pair.admit(name, chain, tokens)
        pair.check()


@njit()
def fill_and_empty(pool: block_pool.Pool, count: int) -> int:
    """Caches and evicts scattered ids; how many lookups went wrong."""
    wrong = 0
    for i in range(count):
        b = block_pool.take(pool, 0)
        block_pool.append(pool, 0, b)
        block_pool.cache(pool, 0, b, (i * 7919) % 1_000_003)
        for back in range(min(i + 1, 5)):
            wrong += block_pool.find(pool, 0, ((i - back) * 7919) % 1_000_003) == -1
        if i >= pool.blocks.shape[1]:
            wrong += block_pool.find(pool, 0, ((i - pool.blocks.shape[1]) * 7919) % 1_000_003) != -1
    return wrong


@pytest.mark.parametrize("blocks", [5, 64, 1000])
def test_the_index_survives_many_evictions(blocks: int) -> None:
    pool = block_pool.new_pool(1, blocks, 1, 1, SIZE)
    block_pool.clear_pool(pool, 0, blocks)
    assert fill_and_empty(pool, 20_000) == 0
    assert (pool.block_index[0] >= 0).sum() == blocks
