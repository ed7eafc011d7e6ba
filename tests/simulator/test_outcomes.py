"""Outcomes refuse what cannot have happened."""

from typing import Any

import numpy as np
import pytest

from fairlead.simulator.outcomes import Outcomes


def arguments(**changes: Any) -> dict[str, Any]:
    """Three valid requests on two replicas, with some columns replaced."""
    columns = {
        "arrival_s": [0.0, 1.0, 1.0],
        "prompt_tokens": [10, 20, 30],
        "output_tokens": [1, 2, 5],
        "replica": [0, 1, 1],
        "first_token_s": [0.5, 1.5, 2.0],
        "finish_s": [0.5, 2.0, 4.0],
        "preemptions": [0, 0, 1],
        "num_replicas": 2,
    }
    return columns | changes


def test_latencies_and_types() -> None:
    outcomes = Outcomes(**arguments())
    assert len(outcomes) == 3
    assert outcomes.arrival_s.dtype == np.float64 and outcomes.replica.dtype == np.int64
    np.testing.assert_array_equal(outcomes.ttft_s, [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(outcomes.e2e_s, [0.5, 1.0, 3.0])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"finish_s": [0.5, 2.0]}, r"finish_s has shape \(2,\)"),
        ({"arrival_s": [[0.0, 1.0, 1.0]]}, "one dimension"),
        ({"finish_s": [0.5, np.nan, 4.0]}, "request 1: finish_s is not finite"),
        ({"first_token_s": [0.5, 1.5, np.inf]}, "request 2: first_token_s is not finite"),
        ({"arrival_s": [0.0, 1.0, 0.9]}, "request 2: arrival_s decreases"),
        ({"first_token_s": [0.5, 0.9, 2.0]}, "request 1: the first token precedes"),
        ({"finish_s": [0.5, 2.0, 1.9]}, "request 2: the finish precedes"),
        ({"replica": [0, 2, 1]}, "request 1: replica is out of range"),
        ({"replica": [0, -1, 1]}, "request 1: replica is out of range"),
        ({"output_tokens": [1, 0, 5]}, "request 1: output_tokens"),
        ({"prompt_tokens": [0, 1, 5]}, "request 0: prompt_tokens"),
        ({"preemptions": [0, 0, -1]}, "request 2: preemptions"),
        ({"num_replicas": 0}, "num_replicas is 0"),
    ],
)
def test_impossible_outcomes_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Outcomes(**arguments(**changes))
