import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.workload.requests import Requests


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
