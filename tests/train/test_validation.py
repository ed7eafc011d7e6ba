"""What a run costs in a validation, against the definition of the conditional value at risk."""

import numpy as np
import pytest

from fairlead.train.validation import objective
from fairlead.view.preference import weights_of
from fairlead.view.tail import TAIL_SHARE

FAVORS = (0.0, 0.3, 0.5, 1.0)
WEIGHTS = np.array([weights_of(favor) for favor in FAVORS])
DRAW = np.random.default_rng(0)
TTFT = DRAW.lognormal(-1.0, 1.0, (len(FAVORS), 1000))
E2E = TTFT + DRAW.exponential(5.0, TTFT.shape)


def test_it_is_the_weighted_sum_with_the_conditional_value_at_risk() -> None:
    """By Rockafellar and Uryasev: the least value over q of a q + E[(T - q)+], a the share of the tail."""
    for row, cost in enumerate(objective(TTFT, E2E, WEIGHTS)):
        ttft, weights = TTFT[row], weights_of(FAVORS[row])
        beginnings = [TAIL_SHARE * q + np.maximum(ttft - q, 0.0).mean() for q in ttft]
        expected = weights.ttft * ttft.mean() + weights.e2e * E2E[row].mean() + weights.tail * min(beginnings)
        assert cost == pytest.approx(expected, rel=1e-12)


def test_a_constant_added_to_every_ttft_costs_its_weights() -> None:
    """A tail that only begins later is no gain: it counts in the share of the tail."""
    moved = objective(TTFT + 0.25, E2E, WEIGHTS) - objective(TTFT, E2E, WEIGHTS)
    np.testing.assert_allclose(moved, 0.25 * (WEIGHTS[:, 0] + TAIL_SHARE * WEIGHTS[:, 2]))


def test_only_the_worst_are_the_tail() -> None:
    alone = np.array([[0.0, 0.0, 1.0]])
    ttft = np.append(np.full(98, 0.1), [5.0, 7.0])[None]
    assert objective(ttft, ttft, alone)[0] == pytest.approx(TAIL_SHARE * 6.0)
    better = ttft.copy()
    better[0, :98] = 0.01
    assert objective(better, ttft, alone)[0] == pytest.approx(TAIL_SHARE * 6.0)


def test_shorter_first_tokens_never_cost_more() -> None:
    assert (objective(0.9 * TTFT, E2E, WEIGHTS) < objective(TTFT, E2E, WEIGHTS)).all()
