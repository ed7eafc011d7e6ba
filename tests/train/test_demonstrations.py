"""What teachers have labelled."""

import numpy as np
import pytest

from fairlead.train.demonstrations import Demonstrations


def demonstrations(costs: list[list[list[float]]]) -> Demonstrations:
    found = Demonstrations()
    for step in costs:
        found.add(np.zeros((len(step), len(step[0]), 1), np.float32), np.array(step))
    return found


def test_clusters_weigh_alike_whatever_a_second_is_worth_in_them() -> None:
    found = demonstrations([[[1.0, 3.0], [100.0, 300.0]], [[5.0, 1.0], [900.0, 500.0]]])
    found.weigh_alike(0)
    regrets = np.stack(found.labels)
    np.testing.assert_allclose(regrets.mean((0, 2)), [1.0, 1.0])
    np.testing.assert_allclose(regrets[0, 0], regrets[0, 1])
    assert regrets[0, 0, 0] == 0.0 and regrets[1, 0, 1] == 0.0


def test_weights_are_kept_beside_the_labels() -> None:
    """Through splits, sequences and checkpoints; steps of which nothing was said count 1."""
    found = demonstrations([[[1.0, 3.0], [2.0, 4.0]]] * 4)
    assert found.examples().weights is None
    found.weigh(2, np.array([1.0, 4.0]))
    examples = found.examples().weights
    assert examples is not None and examples.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 1.0, 4.0]
    np.testing.assert_array_equal(np.stack(found.labels), [[[1.0, 3.0], [2.0, 4.0]]] * 4)
    again = Demonstrations()
    again.load(found.state())
    kept, held = again.split(2)
    assert [len(each) for each in kept.weights] == [0, 2] and [len(each) for each in held.weights] == [0, 2]
    for i in range(4):
        found.states[i] = np.zeros((2, 2, 1), np.float32) if i % 2 == 0 else np.empty(0, np.float32)
    sequences = found.examples(length=2).weights
    assert sequences is not None and sequences.tolist() == [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [4.0, 4.0]]


def test_only_the_newest_steps_are_scaled_and_ties_and_actions_stay() -> None:
    found = demonstrations([[[7.0, 9.0]], [[2.0, 2.0]]])
    found.weigh_alike(1)
    np.testing.assert_array_equal(found.labels[0], [[7.0, 9.0]])
    np.testing.assert_array_equal(found.labels[1], [[0.0, 0.0]])
    acted = Demonstrations()
    acted.add(np.zeros((2, 2, 1), np.float32), np.array([1, 0]))
    acted.weigh_alike(0)
    np.testing.assert_array_equal(acted.labels[0], [1, 0])


def test_scaling_does_not_change_what_is_best() -> None:
    random = np.random.default_rng(0)
    costs = random.exponential(1.0, (5, 4, 3)) * np.array([1e-3, 1.0, 10.0, 1e4])[:, None]
    found = demonstrations(costs.tolist())
    found.weigh_alike(0)
    np.testing.assert_array_equal(np.stack(found.labels).argmin(-1), costs.argmin(-1))
    assert np.stack(found.labels).mean() == pytest.approx(1.0)
