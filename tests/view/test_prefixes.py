"""What a router remembers of the prompts that it sent."""

from collections.abc import Hashable, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.view.prefixes import (
    MOST,
    NEWEST,
    NOTHING,
    OLDEST,
    USED,
    PrefixMemory,
    answered,
    expected_hit,
    forget,
    forget_row,
    new_memory,
    remember,
    resize,
    room_for,
)


def chain(*contents: int) -> np.ndarray:
    return np.array(contents, np.uint64)


def hit(memory: PrefixMemory, *contents: int, row: int = 0, session: int = 0) -> int:
    return expected_hit(memory, row, chain(*contents), 0, len(contents), session)


def send(memory: PrefixMemory, *contents: int, row: int = 0, session: int = 0) -> None:
    remember(memory, row, chain(*contents), 0, len(contents), session)


def let_go(memory: PrefixMemory, *contents: int, row: int = 0, session: int = 0, answer: int = 0) -> None:
    answered(memory, row, chain(*contents), 0, len(contents), session, answer)


def serve(memory: PrefixMemory, *contents: int, row: int = 0, session: int = 0, answer: int = 0) -> None:
    send(memory, *contents, row=row, session=session)
    let_go(memory, *contents, row=row, session=session, answer=answer)


def test_a_prefix_is_expected_where_it_was_sent() -> None:
    memory = new_memory(2, 64)
    send(memory, 5, 6, 7, row=1)
    for _ in range(2):
        assert hit(memory, 5, 6, 8, row=1) == 2
        assert hit(memory, 5, 6, 7, 9, row=1) == 3
        assert hit(memory, 6, 7, row=1) == 2
        assert hit(memory, 9, 5, row=1) == 0
        assert hit(memory, 5, 6, 7, row=0) == 0
        let_go(memory, 5, 6, 7, row=1)  # an answer that fills nothing changes nothing


def test_key_0_is_a_key_like_any_other() -> None:
    memory = new_memory(1, 16)
    assert hit(memory, 0) == 0
    send(memory, 0, 1)
    assert hit(memory, 0, 1) == 2


def test_ids_of_blocks_and_hashes_are_both_keys() -> None:
    memory = new_memory(1, 16)
    remember(memory, 0, np.array([3, 4], np.int32), 0, 2, 0)
    assert expected_hit(memory, 0, np.array([9, 3, 4], np.int32), 1, 2, 0) == 2
    send(memory, 2**64 - 1)
    assert hit(memory, 2**64 - 1) == 1


def test_the_least_recently_used_is_forgotten_first_and_ends_before_beginnings() -> None:
    memory = new_memory(1, 8)
    serve(memory, 1, 2, 3, 4)
    serve(memory, 11, 12, 13, 14)
    serve(memory, 1)
    serve(memory, 21, 22)
    assert hit(memory, 1, 2, 3, 4) == 2
    assert hit(memory, 11, 12, 13, 14) == 4
    assert hit(memory, 21, 22) == 2


def test_what_is_held_is_not_forgotten() -> None:
    memory = new_memory(1, 8)
    send(memory, 1, 2, 3)
    send(memory, 1, 2)
    for first in range(10, 90, 10):
        serve(memory, *range(first, first + 4))
    assert hit(memory, 1, 2, 3) == 3
    let_go(memory, 1, 2)  # the first request still holds it
    serve(memory, *range(100, 105))
    assert hit(memory, 1, 2, 3) == 3 and hit(memory, *range(100, 105)) == 5
    let_go(memory, 1, 2, 3)
    serve(memory, *range(110, 117))
    assert hit(memory, 1, 2, 3) == 1


def test_where_all_is_held_there_is_no_room() -> None:
    memory = new_memory(1, 4)
    send(memory, 1, 2, 3)
    send(memory, 1, 11, 12)  # of which the end is not remembered
    assert hit(memory, 1, 2, 3) == 3 and hit(memory, 1, 11, 12) == 2
    let_go(memory, 1, 11, 12, answer=3)  # nor the answer behind it
    assert memory.sent_ends[0, USED] == 4
    serve(memory, 21)
    assert hit(memory, 21) == 1 and hit(memory, 1, 11) == 1


def test_what_is_longer_than_the_memory_keeps_its_beginning() -> None:
    memory = new_memory(1, 8)
    serve(memory, *range(100, 130))
    assert hit(memory, *range(100, 130)) == 8


def test_an_answer_is_cached_for_its_conversation_and_gets_its_true_keys() -> None:
    memory = new_memory(1, 64)
    serve(memory, 1, 2, session=7, answer=3)
    assert hit(memory, 1, 2, 91, 92, 93, 94, session=7) == 5
    assert hit(memory, 1, 2, 91, session=7) == 3  # no more than there is of the prompt
    assert hit(memory, 1, 2, session=7) == 2
    assert hit(memory, 1, 2, 91, 92, 93, 94, session=8) == 2
    assert hit(memory, 1, 91, session=7) == 1  # it does not go on behind the whole prompt
    send(memory, 1, 2, 91, 92, 93, 94, session=7)
    assert memory.sent_ends[0, USED] == 6  # nothing is there twice
    assert hit(memory, 1, 2, 91, 92, 93, 94, session=8) == 6
    assert hit(memory, 1, 2, 81, session=7) == 2  # the answer is not nameless any more
    let_go(memory, 1, 2, 91, 92, 93, 94, session=7, answer=1)
    assert hit(memory, 1, 2, 91, 92, 93, 94, 95, 96, session=7) == 7


def test_a_conversation_of_nobody_has_its_answers_too() -> None:
    memory = new_memory(1, 64)
    serve(memory, 1, 2, answer=2)
    assert hit(memory, 1, 2, 91, 92, 93) == 4


def test_what_was_forgotten_meanwhile_stays_so() -> None:
    memory = new_memory(1, 64)
    send(memory, 1, 2)
    forget_row(memory, 0)  # the replica has been restarted
    let_go(memory, 1, 2, answer=2)
    assert hit(memory, 1, 2, 3) == 0 and memory.sent_ends[0, USED] == 0


def test_a_memory_of_another_size_remembers_what_was_used_last() -> None:
    memory = new_memory(2, 512)
    resize(memory, 0, 64)
    contents = [[chain * 100 + i for i in range(6)] for chain in range(8)]
    for each in contents:
        serve(memory, *each)
    resize(memory, 0, 512)  # larger: nothing is lost
    assert [hit(memory, *each) for each in contents] == [6] * 8
    send(memory, *contents[0])  # held
    resize(memory, 0, 8)
    assert [hit(memory, *each) for each in contents] == [6, 0, 0, 0, 0, 0, 0, 2]
    serve(memory, 1000, 1001, 1002)
    assert hit(memory, *contents[0]) == 6 and hit(memory, 1000, 1001, 1002) == 2
    let_go(memory, *contents[0])
    serve(memory, *range(2000, 2008))
    assert hit(memory, *range(2000, 2008)) == 8
    assert memory.sent_ends[:, MOST].tolist() == [8, 512]


def test_memories_that_may_hold_nothing_are_never_touched() -> None:
    memory = room_for(2, 64)
    memory.sent_ends[1, MOST] = 64
    forget(memory)
    assert not memory.sent_index[0].any()  # as the system gave it: it takes no memory
    serve(memory, 1, 2)  # in row 0
    assert hit(memory, 1, 2) == 0
    resize(memory, 0, 64)
    serve(memory, 1, 2)
    assert hit(memory, 1, 2) == 2


def test_no_memory_expects_nothing_and_forgetting_empties_it() -> None:
    nothing = new_memory(3, 0)
    serve(nothing, 1, 2, answer=1)
    assert hit(nothing, 1, 2) == 0
    memory = new_memory(1, 10)
    serve(memory, 1, 2)
    forget(memory)
    assert hit(memory, 1, 2) == 0
    serve(memory, 1, 2)
    assert hit(memory, 1, 2) == 2


class Plain:
    """The same in lists and dictionaries; what follows a prompt is known by that prompt's end."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.free: list[Hashable] = []  # the one used longest ago first
        self.held: dict[Hashable, int] = {}

    def known(self, key: Hashable) -> bool:
        return key in self.free or key in self.held

    def room(self) -> bool:
        if len(self.free) + len(self.held) == self.most:
            if not self.free:
                return False
            self.free.pop(0)
        return True

    def hit(self, keys: Sequence[int], session: int) -> int:
        count = 0
        while count < len(keys) and self.known(keys[count]):
            count += 1
        quoted = 0
        while 0 < count and count + quoted < len(keys) and self.known((keys[count - 1], session, quoted)):
            quoted += 1
        return count + quoted

    def send(self, keys: Sequence[int], session: int) -> None:
        count = 0
        while count < len(keys) and self.known(keys[count]):
            count += 1
        for i in range(self.hit(keys, session) - count):
            name = (keys[count - 1], session, i)
            if not self.known(keys[count + i]):
                self.free[self.free.index(name)] = keys[count + i]
        for key in keys:
            if key in self.free:
                self.free.remove(key)
            elif key not in self.held and not self.room():
                continue
            self.held[key] = self.held.get(key, 0) + 1

    def let_go(self, keys: Sequence[int], session: int, answer: int) -> None:
        if keys and self.known(keys[-1]):
            for i in reversed(range(answer)):
                name = (keys[-1], session, i)
                if name in self.free:
                    self.free.remove(name)
                elif not self.room():
                    continue
                self.free.append(name)
        for key in reversed(keys):
            if self.held.get(key, 0) > 1:
                self.held[key] -= 1
            elif self.known(key):
                self.held.pop(key, None)
                if key in self.free:
                    self.free.remove(key)
                self.free.append(key)


CHAINS = st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True)
STEPS = st.lists(st.tuples(CHAINS, st.integers(0, 1), st.integers(0, 4), st.booleans()), max_size=40)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 16), st.integers(1, 16))
def test_it_is_what_the_plain_one_is(
    steps: list[tuple[list[int], int, int, bool]], most: int, other: int
) -> None:
    """Requests come, some stay for a while, and what is expected is the same at every step."""
    memory, plain = new_memory(1, 16), Plain(most)
    resize(memory, 0, most)
    staying: list[tuple[list[int], int, int]] = []
    for keys, session, answer, stays in steps:
        assert hit(memory, *keys, session=session) == plain.hit(keys, session)
        send(memory, *keys, session=session)
        plain.send(keys, session)
        staying.append((keys, session, answer))
        while staying and (not stays or len(staying) > 3):
            leaving, whose, filled = staying.pop(0)
            let_go(memory, *leaving, session=whose, answer=filled)
            plain.let_go(leaving, whose, filled)
        assert memory.sent_ends[0, USED] <= most
    for key in range(13):
        assert hit(memory, key) == plain.hit([key], 0)
    for leaving, whose, filled in staying:
        let_go(memory, *leaving, session=whose, answer=filled)
        plain.let_go(leaving, whose, filled)
    resize(memory, 0, other)
    del plain.free[: max(0, len(plain.free) - other)]
    plain.most = other
    order, chunk = 0, memory.sent_ends[0, OLDEST]
    while chunk != NOTHING:
        order, chunk = order + 1, memory.sent_newer[0, chunk]
    assert order == len(plain.free) == memory.sent_ends[0, USED]
    assert (memory.sent_ends[0, NEWEST] == NOTHING) == (not plain.free)
    for keys, session, _, _ in steps:
        assert hit(memory, *keys, session=session) == plain.hit(keys, session)
