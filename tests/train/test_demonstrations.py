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


def test_clusters_weigh_what_they_are_given() -> None:
    found = demonstrations([[[1.0, 3.0], [100.0, 300.0]], [[5.0, 1.0], [900.0, 500.0]]])
    found.weigh_alike(0, np.array([1.0, 4.0]))
    np.testing.assert_allclose(np.stack(found.labels).mean((0, 2)), [1.0, 4.0])


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
