"""Training with a memory: sequences start from the stored state of their own first step."""

from typing import Any

import numpy as np
import pytest
import torch

from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.network import RouterNetwork
from fairlead.train import imitation, ppo, returns
from fairlead.train.config import ImitationConfig, PPOConfig, TrainConfig
from fairlead.train.controllers import Knobs
from fairlead.train.demonstrations import Demonstrations
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import Rollout, collect
from fairlead.train.teachers import lookahead
from fairlead.train.trainer import train

KNOBS = Knobs(1e-3, 1e-3, 0.01, 0.2, 1.0, 0.0, True)


@pytest.fixture
def network() -> RouterNetwork:
    found = RouterNetwork(
        3, hidden=16, attention=8, gru_layers=1, critic="decoupled", critic_gru_layers=1, available=None
    )
    torch.nn.init.normal_(found.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    return found


def rollout(network: RouterNetwork, toy: Any, episode: int = 13, length: int = 8) -> Rollout:
    """Two rollouts of 32 decisions in episodes of 13; the second goes on from the first."""
    env, found = toy.make(episode=episode), Rollout(32, 16, (3, 3))
    observation, _ = env.reset(seed=0)
    random = np.random.default_rng(0)
    for _ in range(2):
        observation = collect(
            network, env, found, observation, random, Profiler(), temperature=1.3, sequence_length=length
        )
    return found


def test_pitfall_17_sequences_start_from_the_stored_state_of_their_own_first_step(network, toy) -> None:
    """Before the first step of an update, every ratio is one, also across the ends of episodes."""
    found = rollout(network, toy)
    assert found.ends.any()
    assert found.states[0].abs().max() > 0  # the second rollout begins in the middle of an episode
    config = PPOConfig(sequence_length=8, rollout_steps=32)
    batch = ppo.make_batch(found, returns.RewardScale(), config, 4)
    assert batch.actions.shape == (4 * 16, 8)
    knobs = KNOBS._replace(temperature=1.3)
    terms = ppo.minibatch_loss(network, batch, config, knobs)
    assert terms.kl.item() == pytest.approx(0, abs=1e-6)
    assert terms.clip_fraction.item() == 0
    assert batch.states is not None and batch.starts is not None
    _, values = network.sequence(batch.observations, batch.states, batch.starts)
    torch.testing.assert_close(values, batch.values, atol=1e-5, rtol=1e-5)
    # With the state of the end of the rollout everywhere, as in the pitfall, they are not.
    assert found.memory is not None
    last = found.memory.repeat(4, 1, 1)
    wrong = ppo.minibatch_loss(network, batch._replace(states=last), config, knobs)
    assert wrong.kl.item() > 1e-6 > terms.kl.item()


def test_burn_in_steps_warm_up_and_do_not_count(network, toy) -> None:
    found = rollout(network, toy)
    config = PPOConfig(sequence_length=8, burn_in=3, rollout_steps=32)
    batch = ppo.make_batch(found, returns.RewardScale(), config, 4)
    before = ppo.minibatch_loss(network, batch, config, KNOBS)
    targets = batch.targets.clone()
    targets[:, :3] += 100.0
    assert torch.equal(
        ppo.minibatch_loss(network, batch._replace(targets=targets), config, KNOBS).loss, before.loss
    )
    targets[:, 3] += 100.0
    assert not torch.equal(
        ppo.minibatch_loss(network, batch._replace(targets=targets), config, KNOBS).loss, before.loss
    )


def test_values_at_truncation_are_those_of_the_final_observation_in_its_own_context(network, toy) -> None:
    found = rollout(network, toy)
    t, k = np.argwhere(found.ends)[0]
    assert found.next_values[t, k] != found.values[min(t + 1, 31), k]
    steady = ~found.ends[:-1]
    np.testing.assert_allclose(found.next_values[:-1][steady], found.values[1:][steady])


def test_demonstrations_keep_the_states_of_their_sequences(network, toy) -> None:
    config = ImitationConfig(rounds=1, steps=16, teacher_steps=16, sequence_length=8, holdout_every=2)
    demonstrations = Demonstrations()
    env = toy.make(group=1, episode=11)
    imitation.collect(
        network, env, lookahead(), demonstrations, config, first=False, seed=0, profiler=Profiler()
    )
    examples = demonstrations.examples(length=8)
    assert examples.observations.shape == (2 * 16, 8, 3, 3)
    assert examples.starts is not None and examples.starts[16:, 3].all() and examples.starts.sum() == 16
    fit, holdout = demonstrations.split(2, 8)
    assert len(fit) == len(holdout) == 8
    with pytest.raises(ValueError, match="not whole sequences"):
        demonstrations.since(3).examples(length=8)


def test_a_policy_with_a_memory_is_trained_exported_and_resumed(toy, tmp_path) -> None:
    base = toy.config().model_dump()
    base["network"] |= {"gru_layers": 1, "critic": "decoupled"}
    base["ppo"] |= {"sequence_length": 8, "iterations": 3}
    base["imitation"] |= {"sequence_length": 10, "holdout_every": 2}
    config = TrainConfig.model_validate(base)
    options: dict[str, Any] = {"features": toy.features, "evaluate": toy.evaluate}
    result = train(config, tmp_path / "whole", toy.make, **options)
    assert result.objective is not None and result.objective < toy.random_cost
    assert OnnxRouter(result.policy, features=toy.features).has_memory

    class Interrupted(toy.make):  # type: ignore[misc]
        steps = 0

        def step(self, actions):
            type(self).steps += 1
            if type(self).steps == 40 + 32 * 2 + 5:
                raise KeyboardInterrupt
            return super().step(actions)

    with pytest.raises(Exception, match="can be resumed"):
        train(config, tmp_path / "cut", Interrupted, **options)
    train(config, tmp_path / "cut", toy.make, resume=True, **options)
    assert (tmp_path / "cut" / "policy.onnx").read_bytes() == result.policy.read_bytes()
