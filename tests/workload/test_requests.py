import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.workload.content import Content
from fairlead.workload.requests import Requests, repeated


def test_lists_become_contiguous_arrays_of_the_stated_types():
    requests = Requests([0, 1, 1], [5, 6.0, 7], np.array([1, 2, 3], dtype=np.int32))  # type: ignore[arg-type]
    assert len(requests) == 3
    assert requests.arrival_s.dtype == np.float64
    for tokens in (requests.prompt_tokens, requests.output_tokens):
        assert tokens.dtype == np.int64
        assert tokens.flags.c_contiguous


def test_a_slice_keeps_arrival_times():
    requests = Requests(np.arange(5.0), np.arange(1, 6), np.arange(2, 7))
    part = requests[1:4]
    np.testing.assert_array_equal(part.arrival_s, [1, 2, 3])
    np.testing.assert_array_equal(part.prompt_tokens, [2, 3, 4])
    np.testing.assert_array_equal(part.output_tokens, [3, 4, 5])


def test_no_requests_are_requests_too():
    assert len(Requests(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))) == 0


@pytest.mark.parametrize(
    ("arrival", "prompt", "output", "message"),
    [
        ([0, np.nan, 2], [1, 1, 1], [1, 1, 1], "request 1: arrival_s = nan must be finite"),
        ([0, 1, np.inf], [1, 1, 1], [1, 1, 1], "request 2: arrival_s = inf must be finite"),
        ([-1, 1, 2], [1, 1, 1], [1, 1, 1], "request 0: arrival_s = -1.0 must not be negative"),
        ([0, 3, 2], [1, 1, 1], [1, 1, 1], "request 2: arrival_s = 2.0 is earlier than the row before it"),
        ([0, 1, 2], [1, 0, 1], [1, 1, 1], "request 1: prompt_tokens = 0 must be at least 1 token"),
        ([0, 1, 2], [1, 1, 1], [1, 1, -4], "request 2: output_tokens = -4 must be at least 1 token"),
        ([0, 1, 2], [1, 1.5, 1], [1, 1, 1], "request 1: prompt_tokens = 1.5 must be a whole number"),
        ([0, 1, 2], [1, 1, np.nan], [1, 1, 1], "request 2: prompt_tokens = nan must be a whole number"),
        ([0, 1, 2], [1, 1, np.inf], [1, 1, 1], "request 2: prompt_tokens = inf must be finite"),
        ([0, 1, 2], [1, 1], [1, 1, 1], "prompt_tokens has shape (2,), but there are 3 arrival times"),
        ([[0, 1]], [1, 1], [1, 1], "arrival_s must be one-dimensional"),
    ],
)
def test_a_bad_row_is_named(arrival: list[float], prompt: list[float], output: list[float], message: str):
    with pytest.raises(FairleadError) as error:
        Requests(np.array(arrival, dtype=float), np.array(prompt), np.array(output))
    assert message in str(error.value)


def content() -> Content:
    return Content(np.array([0, 1, 0, 2, 3]), np.array([0, 2, 5]), 16)


def test_content_follows_the_requests():
    requests = Requests(np.zeros(2), [30, 60], [4, 4], session=[0, 3], content=content())  # type: ignore[arg-type]
    second = requests[1:]
    assert second.session is not None
    assert second.content is not None
    assert second.session.tolist() == [3]
    assert second.content.ids.tolist() == [0, 2, 3]
    assert second.content.offsets.tolist() == [0, 3]


def test_content_may_include_the_block_that_the_last_token_fills():
    times, prompts, outputs = np.zeros(2), np.array([30, 60]), np.array([4, 4])
    whole = Content(np.array([0, 1, 0, 2, 3, 4]), np.array([0, 2, 6]), 16)
    requests = Requests(times, prompts, outputs, content=whole)
    assert requests.content_of_blocks(16, last_token=True) is whole
    assert requests.content_of_blocks(16) is whole
    short = Requests(times, prompts, outputs, content=content())
    assert short.content_of_blocks(16).ids.tolist() == [0, 1, 0, 2, 3]
    with pytest.raises(FairleadError, match="request 1: the content of its last block is missing"):
        short.content_of_blocks(16, last_token=True)
    nothing = Requests(times, prompts, outputs).content_of_blocks(16, last_token=True)
    assert nothing.offsets.tolist() == [0, 2, 6]


def test_repeated_requests_share_nothing_with_their_earlier_selves():
    requests = Requests(np.zeros(2), [30, 60], [4, 4], session=[0, 3], content=content())  # type: ignore[arg-type]
    twice = repeated(requests, 3)
    assert twice.prompt_tokens.tolist() == [30, 60, 30]
    assert twice.session is not None
    assert twice.content is not None
    assert twice.session.tolist() == [0, 3, 0]
    assert twice.content.ids.tolist() == [0, 1, 0, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session": [1]}, "session has shape (1,), but there are 2 arrival times"),
        ({"session": [0, -1]}, "session = -1 must be at least 0"),
        ({"content": Content(np.array([0, 1]), np.array([0, 2]), 16)}, "content of 1 requests, but 2"),
        (
            {"content": Content(np.array([0, 1]), np.array([0, 1, 2]), 16)},
            "request 0: content has 1 blocks of 16 tokens, but 30 prompt and 4 output tokens fill 2",
        ),
    ],
)
def test_content_that_does_not_fit(change: dict[str, object], message: str):
    with pytest.raises(FairleadError) as error:
        Requests(np.zeros(2), [30, 60], [4, 4], **change)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("ids", "offsets", "size", "message"),
    [
        ([0, 1], [0, 3], 16, "offsets must rise from 0 to the number of ids, 2"),
        ([0, 1], [0, 2, 1, 2], 16, "offsets must rise"),
        ([0, -2], [0, 2], 16, "content id -2 is negative"),
        ([0], [0, 1], 0, "block_size is 0"),
    ],
)
def test_content_that_makes_no_sense(ids: list[int], offsets: list[int], size: int, message: str):
    with pytest.raises(FairleadError) as error:
        Content(np.array(ids), np.array(offsets), size)
    assert message in str(error.value)
