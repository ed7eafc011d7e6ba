import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.train import returns
from fairlead.train.config import PPOConfig
from fairlead.train.returns import RewardScale, gae, normalise, subtract_group_mean, time_discounts


def naive_gae(rewards, values, next_values, discounts, ends, lam):
    """The definition: every later TD error, weighted by the product of what lies between. O(T^2)."""
    steps, clusters = rewards.shape
    result = np.zeros_like(rewards)
    for k in range(clusters):
        for t in range(steps):
            weight = 1.0
            for s in range(t, steps):
                error = rewards[s, k] + discounts[s, k] * next_values[s, k] - values[s, k]
                result[t, k] += weight * error
                if ends[s, k]:
                    break
                weight *= discounts[s, k] * lam
    return result


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.floats(0, 1), st.integers(0, 10**6))
def test_gae_is_its_definition_at_unequal_elapsed_times(steps, clusters, lam, seed):
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, steps, clusters))
    discounts = time_discounts(rng.exponential(2.0, (steps, clusters)), 5.0)
    ends = rng.random((steps, clusters)) < 0.2
    advantages, targets = gae(rewards, values, next_values, discounts, ends, lam)
    expected = naive_gae(rewards, values, next_values, discounts, ends, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(targets, advantages + values)


def test_with_lambda_one_the_target_is_the_discounted_return():
    rewards, discounts = np.array([[1.0], [2.0], [4.0]]), np.array([[0.5], [0.25], [0.5]])
    values = np.array([[7.0], [-3.0], [5.0]])
    next_values = np.array([[-3.0], [5.0], [10.0]])
    _, targets = gae(rewards, values, next_values, discounts, np.zeros((3, 1), bool), 1.0)
    np.testing.assert_allclose(targets[:, 0], [1 + 0.5 * (2 + 0.25 * 9), 2 + 0.25 * 9, 4 + 0.5 * 10])


def test_nothing_flows_back_across_the_end_of_an_episode():
    rewards = np.zeros((4, 1))
    ends = np.array([[False], [True], [False], [False]])
    zeros, ones = np.zeros((4, 1)), np.ones((4, 1))
    rewards[3] = 100.0
    advantages, _ = gae(rewards, zeros, zeros, ones, ends, 1.0)
    assert advantages[:, 0].tolist() == [0, 0, 100, 100]


def test_shapes_are_checked():
    a, b = np.zeros((3, 2)), np.zeros((3, 1))
    with pytest.raises(ValueError, match="one shape"):
        gae(a, a, b, a, a.astype(bool), 0.9)


def test_pitfall_08_the_discount_counts_seconds_and_outlives_a_request():
    # One second is one second, in one step or in ten.
    assert time_discounts(np.full(10, 0.1), 7.0).prod() == pytest.approx(math.exp(-1 / 7))
    # The effect of a choice 28 arrivals later, at 4 requests/s, still counts (the pitfall's .012 does not).
    config = PPOConfig()
    rewards = np.zeros((29, 1))
    rewards[28] = 1.0
    discounts = time_discounts(np.full((29, 1), 0.25), config.horizon_s)
    zeros = np.zeros((29, 1))
    advantages, _ = gae(rewards, zeros, zeros, discounts, zeros.astype(bool), config.gae_lambda)
    assert advantages[0, 0] > 0.3


def test_the_group_mean_removes_what_a_group_shares():
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(5, 6)), 100 * rng.normal(size=(5, 2))
    result = subtract_group_mean(own + shared.repeat(3, 1), 3)
    np.testing.assert_allclose(result, subtract_group_mean(own, 3), atol=1e-12)
    np.testing.assert_allclose(result.reshape(5, 2, 3).sum(2), 0, atol=1e-12)
    with pytest.raises(ValueError, match="multiple"):
        subtract_group_mean(own, 4)


def test_spreads_are_those_of_group_means_and_of_each_group():
    random = np.random.default_rng(0)
    means, scales = random.normal(0, 3, (50, 3)), np.array([0.1, 2.0, 0.0])
    apart = random.normal(size=(50, 3, 4))
    apart -= apart.mean(2, keepdims=True)
    spreads = returns.spreads((means[:, :, None] + scales[:, None] * apart).reshape(50, 12), 4)
    assert spreads.shape == (50, 12, 2)
    assert spreads[..., 0] == pytest.approx(means.var())
    within = (scales**2 * (apart**2).mean((0, 2)))[:2]
    assert spreads[0, ::4, 1] == pytest.approx([*within, 0.01 * within[0]])  # never nothing
    assert (spreads == spreads[0]).all() and (spreads[0].reshape(3, 4, 2) == spreads[0, ::4][:, None]).all()
    assert (returns.spreads(np.ones((5, 8)), 4) == 1e-8).all()


def test_normalisation():
    rng = np.random.default_rng(0)
    advantages = rng.normal(size=(50, 4)) * np.array([1.0, 1.0, 30.0, 30.0]) + 5
    whole = normalise(advantages, "batch", 2)
    assert (whole.mean(), whole.std()) == pytest.approx((0, 1))
    by_group = normalise(advantages, "group", 2).reshape(50, 2, 2)
    np.testing.assert_allclose(by_group.std((0, 2)), 1, rtol=1e-6)
    assert normalise(advantages, "none", 2) is advantages


def test_the_reward_scale_is_the_deviation_of_discounted_returns():
    rng = np.random.default_rng(0)
    rewards, discounts = rng.normal(size=(40, 3)), rng.uniform(0.5, 1, (40, 3))
    ends = rng.random((40, 3)) < 0.1
    returns = np.zeros((40, 3))
    for k in range(3):
        running = 0.0
        for t in range(40):
            running += rewards[t, k]
            returns[t, k] = running
            running *= discounts[t, k] * (not ends[t, k])
    scale = RewardScale()
    assert scale.scale == 1.0
    for part in (slice(0, 15), slice(15, 40)):
        scale.update(rewards[part], discounts[part], ends[part])
    assert scale.scale == pytest.approx(returns.std())
    copy = RewardScale()
    copy.load(scale.state())
    copy.update(rewards, discounts, ends)
    scale.update(rewards, discounts, ends)
    assert copy.scale == scale.scale


def test_constant_rewards_of_zero_leave_the_scale_alone():
    scale = RewardScale()
    scale.update(np.zeros((4, 2)), np.ones((4, 2)), np.zeros((4, 2), bool))
    assert scale.scale == 1.0
