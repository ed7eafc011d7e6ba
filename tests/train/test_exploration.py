import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fairlead.policy.layers import MASKED
from fairlead.policy.network import RouterNetwork
from fairlead.train import ppo
from fairlead.train.controllers import Controllers
from fairlead.train.exploration import behaviour_log_probs, sample
from fairlead.train.profiler import Profiler
from fairlead.train.returns import RewardScale
from fairlead.train.rollout import Rollout, collect

LOGITS = torch.tensor([[0.0, 1.0, -1.0, 3.0]])


@pytest.mark.parametrize(("temperature", "epsilon"), [(1.0, 0.0), (1.5, 0.0), (0.5, 0.1), (1.0, 1.0)])
def test_pitfall_15_the_log_probability_is_that_of_the_distribution_sampled(temperature, epsilon):
    log_probs = behaviour_log_probs(LOGITS, temperature, epsilon)
    expected = (1 - epsilon) * torch.softmax(LOGITS / temperature, -1) + epsilon / 4
    torch.testing.assert_close(log_probs.exp(), expected)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(100_000, np.float32))
    actions = sample(log_probs.expand(100_000, 4), uniforms)
    observed = torch.bincount(actions, minlength=4) / 100_000
    torch.testing.assert_close(observed, expected[0], atol=0.006, rtol=0)


@pytest.mark.parametrize(("temperature", "epsilon"), [(1.0, 0.0), (4.0, 0.3), (1.0, 1.0)])
def test_an_action_that_the_network_masks_is_never_taken(temperature, epsilon):
    masked = torch.tensor([True, False, True, False, True])
    logits = torch.tensor([5.0, 1.0, -1.0, 3.0, 0.0]) + masked * MASKED
    log_probs = behaviour_log_probs(logits[None], temperature, epsilon)
    assert log_probs.exp().sum().item() == pytest.approx(1.0)
    uniforms = torch.from_numpy(np.append(np.random.default_rng(0).random(20_000, np.float32), 1 - 2**-24))
    actions = sample(log_probs.expand(20_001, 5), uniforms.float())
    assert set(actions.tolist()) == {1, 3}
    least = epsilon / 2
    assert log_probs.exp()[0, 1] >= least and torch.isfinite(log_probs).all()


def test_hierarchical_exploration_tries_the_quiet_half_as_often_as_the_rest():
    load = torch.tensor([[5.0, 1.0, 9.0, 8.0, 7.0, 2.0]])
    log_probs = behaviour_log_probs(torch.zeros(1, 6), 1.0, 1.0, load)
    quiet, crowded = 0.5 / 3, 0.5 / 3
    torch.testing.assert_close(
        log_probs.exp(), torch.tensor([[quiet, quiet, crowded, crowded, crowded, quiet]])
    )
    # One that stands out gets half of the exploration for itself; replicas that are all alike share it.
    alone = behaviour_log_probs(torch.zeros(1, 4), 1.0, 1.0, torch.tensor([[0.0, 0.0, 0.0, 6.0]])).exp()
    torch.testing.assert_close(alone, torch.tensor([[1 / 6, 1 / 6, 1 / 6, 1 / 2]]))
    alike = behaviour_log_probs(torch.zeros(1, 4), 1.0, 1.0, torch.full((1, 4), 2.0)).exp()
    torch.testing.assert_close(alike, torch.full((1, 4), 0.25))


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_hierarchical_exploration_is_part_of_the_behaviour_probabilities(epsilon):
    masked = torch.tensor([[False, True, False, False]])
    logits = LOGITS + masked * MASKED
    load = torch.tensor([[1.0, 0.0, 2.0, 3.0]])
    log_probs = behaviour_log_probs(logits, 1.0, epsilon, load)
    explored = torch.tensor([[0.25, 0.0, 0.25, 0.5]])  # of those that may be chosen, 1 and 2 are quiet
    expected = (1 - epsilon) * torch.softmax(logits, -1) + epsilon * explored
    torch.testing.assert_close(log_probs.exp(), expected)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(100_000, np.float32))
    observed = torch.bincount(sample(log_probs.expand(100_000, 4), uniforms), minlength=4) / 100_000
    torch.testing.assert_close(observed, expected[0], atol=0.006, rtol=0)


def test_with_hierarchical_exploration_the_first_ratio_is_one(toy):
    config = toy.config(epsilon=0.3, exploration="hierarchical").ppo
    env = toy.make()
    network = RouterNetwork(3, hidden=16, attention=8)
    rollout = Rollout(16, env.num_envs, env.single_observation_space.shape)
    observation, _ = env.reset(seed=0)
    collect(
        *(network, env, rollout, observation, np.random.default_rng(0), Profiler()),
        epsilon=0.3,
        load_column=0,
    )
    batch = ppo.make_batch(rollout, RewardScale(), config, env.group)
    knobs = Controllers(0.2).knobs(config, 10)._replace(explore_by=0)
    terms = ppo.minibatch_loss(network, batch, config, knobs)
    assert abs(terms.kl.item()) < 1e-6 and terms.clip_fraction.item() == 0.0


def test_hierarchical_exploration_without_epsilon_is_a_contradiction(toy):
    with pytest.raises(ValidationError, match=r"epsilon is 0: set ppo\.epsilon"):
        toy.config(exploration="hierarchical")


def test_the_ends_of_the_unit_interval_give_actions_of_positive_probability():
    log_probs = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    assert sample(log_probs, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 1]
