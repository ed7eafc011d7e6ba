"""Prompts of the wanted length."""

from dataclasses import replace

import numpy as np

from fairlead.evaluate.prompts import TokenIds, Words
from fairlead.workload.content import Content
from fairlead.workload.requests import Requests

CONTENT = Content(np.array([0, 1, 0, 1, 2, 3]), np.array([0, 2, 4, 6]), block_size=4)
REQUESTS = Requests(np.array([0.0, 0.01, 0.02]), np.array([9, 8, 5]), np.array([1, 1, 4]), content=CONTENT)


def test_lengths_are_those_of_the_workload():
    ids, words = TokenIds(REQUESTS, "a"), Words(REQUESTS)
    for i, tokens in enumerate(REQUESTS.prompt_tokens):
        assert len(ids.prompt(i)) == tokens == len(words.prompt(i).split())


def test_words_are_of_several_lengths_and_no_part_of_a_prompt_is_denser_than_another():
    """As with a real tokenizer: so a router's estimate from the size is good, and never exact."""
    long = Requests(np.zeros(1), np.array([4000]), np.array([1]))
    text = Words(long).prompt(0)
    assert {len(word) for word in text.split()[1:]} == {2, 3, 4, 5, 6}
    assert 4.8 < len(text) / 4000 < 5.2
    shared = Content(np.arange(250, dtype=np.int32), np.array([0, 250]), block_size=16)
    assert 4.8 < len(Words(replace(long, content=shared)).prompt(0)) / 4000 < 5.2


def test_equal_blocks_are_equal_ids_within_a_run_only():
    ids, other = TokenIds(REQUESTS, "a"), TokenIds(REQUESTS, "b")
    assert ids.prompt(0)[:8] == ids.prompt(1) and ids.prompt(2)[:4] != ids.prompt(1)[:4]
    assert ids.prompt(0) == TokenIds(REQUESTS, "a").prompt(0)
    assert all(ids.prompt(i)[:4] != other.prompt(i)[:4] for i in range(3))


def test_requests_without_shared_blocks_begin_differently():
    plain = Requests(np.zeros(3), np.array([9, 9, 9]), np.array([1, 1, 1]))
    assert len({tuple(TokenIds(plain, "a").prompt(i)[:8]) for i in range(3)}) == 3
