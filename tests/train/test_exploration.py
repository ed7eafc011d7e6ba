import numpy as np
import pytest
import torch

from fairlead.policy.layers import MASKED
from fairlead.train.exploration import behaviour_log_probs, sample

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


def test_the_ends_of_the_unit_interval_give_actions_of_positive_probability():
    log_probs = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    assert sample(log_probs, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 1]
