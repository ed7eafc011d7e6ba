"""The emulator's tokenizer: its counts, its ids, and what the blocks of a conversation share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.emulate.prompts import (
    ANSWER_WORDS,
    BadPrompt,
    answer_text,
    block_contents,
    chat_ids,
    count_chat,
    count_prompt,
    prompt_ids,
    text_ids,
)

TEXTS = st.text(alphabet="ab \n\t", max_size=30)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": TEXTS}), min_size=1
)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("one two  three\nfour", 4), ("", 1), ("  ", 1), ([5, 6, 7], 3), (["one two"], 2), ([[5, 6]], 2)],
)
def test_a_token_is_a_word_or_an_id(prompt, tokens):
    assert count_prompt(prompt) == len(prompt_ids(prompt)) == tokens


@given(TEXTS)
def test_as_many_ids_as_tokens_in_a_text(text):
    assert len(prompt_ids(text)) == count_prompt(text)


@given(MESSAGES)
def test_as_many_ids_as_tokens_in_a_chat(messages):
    assert len(chat_ids(messages)) == count_chat(messages)


def test_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]
    assert count_chat([{"role": "user", "content": parts}]) == 3 + 2 + 1
    with pytest.raises(BadPrompt):
        count_chat([{"role": "user", "content": [{"type": "image_url"}]}])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.integers(1, 30), st.integers(1, 8))
def test_an_id_for_each_block_that_is_ever_computed(prompt, output_tokens, size):
    contents = block_contents(prompt, output_tokens, size)
    assert len(contents) == (len(prompt) + output_tokens - 1) // size


def test_blocks_agree_as_far_as_everything_before_them_does():
    one, two = block_contents([1, 2, 3, 4, 5, 6], 1, 2), block_contents([1, 2, 3, 9, 5, 6], 1, 2)
    assert one[0] == two[0] and one[1] != two[1] and one[2] != two[2]


def test_the_next_turn_of_a_chat_begins_with_the_whole_of_the_last_one():
    first = [{"role": "user", "content": "one two three"}]
    answer = answer_text(0, 20)
    assert text_ids(answer) == text_ids("".join(ANSWER_WORDS)) * 2 + text_ids("".join(ANSWER_WORDS[:4]))
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "four"}]
    before = block_contents(chat_ids(first), 20, 4)
    assert block_contents(chat_ids(second), 5, 4)[: len(before)] == before and len(before) == 6
