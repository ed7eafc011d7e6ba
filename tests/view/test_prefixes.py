"""What a router remembers of the prompts that it sent."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.view.prefixes import WAYS, PrefixMemory, expected_hit, forget, new_memory, remember, resize


def chain(*contents: int) -> np.ndarray:
    return np.array(contents, np.uint64)


def hit(memory: PrefixMemory, *contents: int, row: int = 0) -> int:
    return expected_hit(memory, row, chain(*contents), 0, len(contents))


def send(memory: PrefixMemory, *contents: int, row: int = 0) -> None:
    remember(memory, row, chain(*contents), 0, len(contents))


def test_a_prefix_is_expected_where_it_was_sent() -> None:
    memory = new_memory(2, 64)
    send(memory, 5, 6, 7, row=1)
    assert hit(memory, 5, 6, 8, row=1) == 2
    assert hit(memory, 5, 6, 7, 9, row=1) == 3
    assert hit(memory, 6, 7, row=1) == 2
    assert hit(memory, 9, 5, row=1) == 0
    assert hit(memory, 5, 6, 7, row=0) == 0


def test_a_memory_of_another_size_remembers_what_was_sent_last() -> None:
    memory = new_memory(2, 64 * WAYS)
    resize(memory, 0, 8)
    contents = [[chain * 100 + i for i in range(6)] for chain in range(8)]
    for each in contents:
        send(memory, *each)
    before = [hit(memory, *each) for each in contents]
    assert sum(before) > 40
    resize(memory, 0, 64)  # larger: nothing is lost
    assert [hit(memory, *each) for each in contents] == before
    send(memory, *contents[0])
    resize(memory, 0, 1)  # of all that was sent, the last that fits
    assert (memory.sent_last[0] > 0).sum() == WAYS
    assert hit(memory, *contents[0]) == 6
    assert hit(memory, *contents[7]) == WAYS - 6
    assert memory.sent_sets.tolist() == [1, 64]


def test_key_0_is_a_key_like_any_other() -> None:
    memory = new_memory(1, 16)
    assert hit(memory, 0) == 0
    send(memory, 0, 1)
    assert hit(memory, 0, 1) == 2


def test_ids_of_blocks_and_hashes_are_both_keys() -> None:
    memory = new_memory(1, 16)
    remember(memory, 0, np.array([3, 4], np.int32), 0, 2)
    assert expected_hit(memory, 0, np.array([9, 3, 4], np.int32), 1, 2) == 2
    send(memory, 2**64 - 1)
    assert hit(memory, 2**64 - 1) == 1


def test_the_least_recently_sent_is_forgotten_first_and_ends_before_beginnings() -> None:
    memory = new_memory(1, WAYS)
    assert memory.sent_keys.shape == (1, 1, WAYS)
    send(memory, 1, 2, 3, 4)
    send(memory, 11, 12, 13, 14)
    send(memory, 1)
    send(memory, 21, 22)
    assert hit(memory, 1, 2, 3, 4) == 2
    assert hit(memory, 11, 12, 13, 14) == 4
    assert hit(memory, 21, 22) == 2


def test_what_is_longer_than_the_memory_keeps_its_beginning() -> None:
    memory = new_memory(1, WAYS)
    send(memory, *range(100, 130))
    assert hit(memory, *range(100, 130)) == WAYS - 1


def test_no_memory_expects_nothing_and_forgetting_empties_it() -> None:
    nothing = new_memory(3, 0)
    send(nothing, 1, 2)
    assert hit(nothing, 1, 2) == 0
    memory = new_memory(1, 10)
    send(memory, 1, 2)
    forget(memory)
    assert hit(memory, 1, 2) == 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), max_size=30),
    st.integers(1, 4),
)
def test_it_is_a_least_recently_used_memory_in_each_set(sent: list[list[int]], sets: int) -> None:
    """Against lists ordered by use, with the sets that the memory itself chose."""
    probe = new_memory(1, sets * WAYS)
    for key in range(41):
        send(probe, key)
    places = {int(key): place for place in range(sets) for key in probe.sent_keys[0, place]}
    memory = new_memory(1, sets * WAYS)
    plain: list[list[int]] = [[] for _ in range(sets)]
    for contents in sent:
        if any(content not in places for content in contents):
            continue
        # The beginning counts as the most recently used.
        send(memory, *contents)
        newest: list[list[int]] = [[] for _ in range(sets)]
        for content in contents:
            place = places[content]
            kept = plain[place]
            if content in kept:
                kept.remove(content)
            elif len(kept) + len(newest[place]) == WAYS:
                (kept or newest[place]).pop()
            newest[place].append(content)
        for place in range(sets):
            plain[place] = newest[place] + plain[place]
    for key, place in places.items():
        assert hit(memory, key) == (key in plain[place])
