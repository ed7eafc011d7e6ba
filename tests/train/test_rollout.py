from typing import Any

import numpy as np
import pytest
import torch

from fairlead import FairleadError
from fairlead.policy.network import RouterNetwork
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import Rollout, collect


@pytest.fixture
def network() -> RouterNetwork:
    net = RouterNetwork(3, hidden=16, attention=8, seed=0)
    torch.nn.init.normal_(net.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    return net


def gather(network, env, steps, seed=0, **options):
    rollout = Rollout(steps, env.num_envs, (env.replicas, 3))
    observation, _ = env.reset(seed=seed)
    last = collect(network, env, rollout, observation, np.random.default_rng(seed), Profiler(), **options)
    return rollout, last


def test_pitfall_15_behaviour_log_prob_is_that_of_what_was_sampled(toy, network):
    rollout, _ = gather(network, toy.make(), 20, temperature=1.7, epsilon=0.1)
    logits = network.logits(torch.from_numpy(rollout.observations).flatten(0, 1)).detach()
    probabilities = 0.9 * torch.softmax(logits / 1.7, -1) + 0.1 / 3
    chosen = probabilities.gather(1, torch.from_numpy(rollout.actions).reshape(-1, 1)).log()
    np.testing.assert_allclose(rollout.log_probs.ravel(), chosen[:, 0], atol=1e-5)


def test_pitfall_09_truncation_bootstraps_from_the_final_observation(toy, network):
    finals: dict[int, Any] = {}

    class Watched(toy.make):  # type: ignore[misc, name-defined]
        def step(self, actions):
            result = super().step(actions)
            if "final_obs" in result[4]:
                finals[len(finals)] = result[4]["final_obs"]
            return result

    rollout, last = gather(network, Watched(episode=7), 10)
    assert rollout.ends[:, 0].tolist() == [t == 6 for t in range(10)]

    def value(x):
        return network.value(torch.from_numpy(x)).detach().numpy()

    np.testing.assert_allclose(rollout.next_values[6], value(finals[0]), atol=1e-5)
    assert not np.allclose(rollout.next_values[6], rollout.values[7], atol=1e-3)
    np.testing.assert_allclose(rollout.next_values[:6], rollout.values[1:7], atol=1e-6)
    np.testing.assert_allclose(rollout.next_values[9], value(last), atol=1e-5)  # and the rollout's last step


def test_termination_bootstraps_from_nothing(toy, network):
    class Ending(toy.make):  # type: ignore[misc, name-defined]
        def step(self, actions):
            *rest, truncated, info = super().step(actions)
            return rest[0], rest[1], truncated, np.zeros_like(truncated), info

    rollout, _ = gather(network, Ending(episode=4), 6)
    assert rollout.ends[3].all()
    assert not rollout.next_values[3].any()


def test_a_continued_rollout_is_one_long_rollout(toy, network):
    whole, _ = gather(network, toy.make(), 8)
    env, random = toy.make(), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for half in range(2):
        part = Rollout(4, env.num_envs, (3, 3))
        observation = collect(network, env, part, observation, random, Profiler())
        here = slice(4 * half, 4 * half + 4)
        np.testing.assert_array_equal(part.actions, whole.actions[here])
        np.testing.assert_array_equal(part.rewards, whole.rewards[here])
        np.testing.assert_allclose(part.next_values, whole.next_values[here], atol=1e-6)


@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_a_number_that_is_not_finite_is_named(toy, network, name):
    class Broken(toy.make):  # type: ignore[misc, name-defined]
        def step(self, actions):
            observation, reward, *rest = super().step(actions)
            if self.t == 3:
                (observation if name == "observations" else reward)[5] = np.nan
            return observation, reward, *rest

    with pytest.raises(FairleadError, match=rf"{name} is not finite at step [23] of the rollout, cluster 5"):
        gather(network, Broken(), 8)
