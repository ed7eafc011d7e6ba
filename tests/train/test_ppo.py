import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from fairlead import FairleadError
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.train import ppo, returns
from fairlead.train.config import PPOConfig
from fairlead.train.controllers import Controllers, Knobs, next_kl_coefficient
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import Rollout, collect
from fairlead.train.schedule import Constant

KNOBS = Knobs(1e-3, 1e-3, 0.01, 0.2, 1.0, 0.0, True)


def random_batch(n: int = 64, replicas: int = 3, seed: int = 0) -> ppo.Batch:
    g = torch.Generator().manual_seed(seed)
    return ppo.Batch(
        torch.randn(n, replicas, 3, generator=g),
        torch.randint(replicas, (n,), generator=g),
        torch.log(torch.rand(n, generator=g) * 0.5 + 0.2),
        torch.randn(n, generator=g),
        torch.randn(n, generator=g),
        torch.randn(n, generator=g),
    )


def learn(
    network: Any,
    env: Any,
    config: PPOConfig,
    *,
    iterations: int,
    shape: tuple[int, ...],
    learning_rate: float,
    sign: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """PPO as the trainer does it, without files; `sign` -1 breaks the learner on purpose."""
    rollout = Rollout(config.rollout_steps, env.num_envs, shape)
    optimiser, scale = ppo.make_optimiser(network), returns.RewardScale()
    random = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    metrics: dict[str, float] = {}
    for i in range(iterations):
        rate = learning_rate * (1 - i / iterations)
        knobs = Knobs(rate, rate, config.entropy_coefficient.at(0), 0.0, 1.0, 0.0, True)
        observation = collect(network, env, rollout, observation, random, Profiler())
        batch = ppo.make_batch(rollout, scale, config, getattr(env, "group", 1))
        batch = batch._replace(advantages=sign * batch.advantages)
        metrics = ppo.update(network, optimiser, [batch], config, knobs, random)
    return metrics


# ---- the update itself


def test_before_the_first_step_the_ratio_is_one(toy):
    """Rollout and update see one distribution: temperature and epsilon included."""
    network, env = RouterNetwork(3, hidden=16, attention=8), toy.make()
    nn.init.normal_(network.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    rollout = Rollout(16, env.num_envs, (3, 3))
    observation, _ = env.reset(seed=0)
    random, config = np.random.default_rng(0), PPOConfig()
    collect(network, env, rollout, observation, random, Profiler(), temperature=1.5, epsilon=0.1)
    batch = ppo.make_batch(rollout, returns.RewardScale(), config, env.group)
    terms = ppo.minibatch_loss(network, batch, config, KNOBS._replace(temperature=1.5, epsilon=0.1))
    assert terms.kl.item() == pytest.approx(0, abs=1e-6)
    assert terms.clip_fraction.item() == 0
    assert ppo.minibatch_loss(network, batch, config, KNOBS).kl.item() > 1e-3


def test_the_loss_is_the_sum_of_its_terms():
    network, batch = RouterNetwork(3, hidden=16, attention=8), random_batch()
    for kl_control, weight in (("none", 0.0), ("penalty", 0.2), ("adaptive", 0.2)):
        config = PPOConfig(kl_control=kl_control)  # type: ignore[arg-type]
        t = ppo.minibatch_loss(network, batch, config, KNOBS)
        expected = t.policy_loss + 0.1 * t.value_loss - 0.01 * t.entropy + weight * t.kl
        torch.testing.assert_close(t.loss, expected)


def test_the_adaptive_coefficient_follows_its_target():
    config = PPOConfig(kl_control="adaptive", kl_target=0.01)
    assert next_kl_coefficient(0.2, 0.05, config) == 0.4
    assert next_kl_coefficient(0.2, 0.001, config) == 0.1
    assert next_kl_coefficient(0.2, 0.01, config) == 0.2
    assert next_kl_coefficient(0.2, 0.05, PPOConfig()) == 0.2


def test_early_stopping_is_off_by_default_and_stops_when_asked():
    batch = random_batch()
    changed = {}
    for stop in (None, 1e-9):
        network = RouterNetwork(3, hidden=16, attention=8)
        before = copy.deepcopy(network.state_dict())
        config = PPOConfig(early_stop_kl=stop)
        ppo.update(network, ppo.make_optimiser(network), [batch], config, KNOBS, np.random.default_rng(0))
        changed[stop] = any(not torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert changed == {None: True, 1e-9: False}
    assert PPOConfig().early_stop_kl is None


@pytest.mark.parametrize(("field", "name"), [("advantages", "loss"), ("targets", "loss")])
def test_a_loss_that_is_not_finite_is_an_error(field, name):
    batch = random_batch()
    getattr(batch, field)[7] = float("nan")
    network = RouterNetwork(3, hidden=16, attention=8)
    with pytest.raises(FairleadError, match=rf"{name} is not finite in epoch 1, minibatch 1"):
        ppo.update(
            network, ppo.make_optimiser(network), [batch], PPOConfig(), KNOBS, np.random.default_rng(0)
        )


def test_settings_follow_their_schedules_after_the_warm_up():
    config = PPOConfig(iterations=11, critic_warmup_iterations=3, temperature=[[0, 2], [1, 1]])  # type: ignore[arg-type]
    assert [Controllers(0.0).knobs(config, i).train_actor for i in (0, 2, 3)] == [False, False, True]
    assert [Controllers(0.0).knobs(config, i).temperature for i in (0, 3, 8, 13)] == pytest.approx(
        [2, 2, 1.5, 1]
    )


# ---- learning: a broken learner fails here


QUEUES = PPOConfig(
    rollout_steps=64,
    horizon_s=2.0,
    gae_lambda=0.9,
    minibatch=512,
    epochs=4,
    entropy_coefficient=Constant(value=0.003),
)


def learn_queues(toy, sign: float = 1.0, config: PPOConfig = QUEUES, seed: int = 0) -> float:
    """Share of the way from random to optimal routing that training covers."""
    network = RouterNetwork(3, hidden=32, attention=8, seed=seed)
    env = toy.make(num_envs=32, group=8)
    learn(network, env, config, iterations=20, shape=(3, 3), learning_rate=3e-3, sign=sign, seed=seed)
    cost = toy.evaluate(NetworkRouter(network))
    return float((toy.random_cost - cost) / (toy.random_cost - toy.optimal_cost))


def test_the_shortest_queue_is_learnt(toy):
    assert learn_queues(toy) > 0.95


def test_a_learner_with_the_wrong_sign_fails(toy):
    assert learn_queues(toy, sign=-1.0) < 0.0


def test_the_decoupled_critic_learns_too(toy):
    network = RouterNetwork(3, hidden=32, attention=8, critic="decoupled")
    env = toy.make(num_envs=32, group=8)
    learn(network, env, QUEUES, iterations=20, shape=(3, 3), learning_rate=3e-3)
    assert toy.evaluate(NetworkRouter(network)) < 0.5 * toy.random_cost


@pytest.mark.parametrize("compared", [True, False])
def test_the_critic_learns_what_choices_change_under_what_they_do_not(compared):
    """Arrivals move the returns of a whole group by ten times what tells its clusters apart."""
    random, (steps, clusters, group) = np.random.default_rng(0), (64, 32, 8)
    network = RouterNetwork(3, hidden=32, attention=8, critic="decoupled")
    optimiser = ppo.make_optimiser(network)
    config = PPOConfig(compare_values=compared, minibatch=512, epochs=4)
    knobs = KNOBS._replace(train_actor=False, critic_learning_rate=2e-3)
    explained = []
    for _ in range(12):
        rollout = Rollout(steps, clusters, (3, 3))
        rollout.observations[:] = random.normal(size=(steps, clusters, 3, 3))
        rollout.actions[:], rollout.log_probs[:], rollout.ends[:] = 0, -1.0, True
        rollout.elapsed_s[:], rollout.next_values[:] = 0.1, 0.0
        luck = np.repeat(10.0 * random.normal(size=(steps, clusters // group)), group, 1)
        rollout.rewards[:] = luck + rollout.observations[..., 0].sum(-1) / 3**0.5
        with torch.no_grad():
            values = network.value(torch.from_numpy(rollout.observations).flatten(0, 1))
        rollout.values[:] = values.view(steps, clusters).numpy()
        batch = ppo.make_batch(rollout, returns.RewardScale(), config, group)
        part = ppo.Part(None, rollout, returns.RewardScale())  # type: ignore[arg-type]
        explained.append(ppo.describe([part], [batch], group)["explained_differences"])
        ppo.update(network, optimiser, [batch], config, knobs, random)
    assert (explained[-1] > 0.9) == compared, explained


def test_with_a_memory_the_clusters_of_a_group_are_compared_at_the_same_steps(toy):
    """The loss of sequences is that of their decisions, each beside those of its group at that time."""
    network = RouterNetwork(3, hidden=16, attention=8, critic="decoupled", gru_layers=1)
    env, config = toy.make(num_envs=8, group=4), PPOConfig(sequence_length=8, burn_in=2)
    rollout = Rollout(32, 8, (3, 3))
    observation, _ = env.reset(seed=0)
    collect(network, env, rollout, observation, np.random.default_rng(0), Profiler(), sequence_length=8)
    batch = ppo.make_batch(rollout, returns.RewardScale(), config, 4)
    assert batch.group == 4 and batch.spreads is not None
    targets = np.empty((32, 8), np.float32)
    for sequence, values in enumerate(batch.targets.numpy()):
        start, cluster = sequence // 8 * 8, sequence % 8
        targets[start : start + 8, cluster] = values
    errors = (rollout.values - targets).reshape(4, 8, 2, 4)[:, 2:]  # without what only warms up
    spreads = returns.spreads(targets.astype(np.float64), 4)[0].reshape(2, 4, 2)
    common = errors.mean(-1, keepdims=True)
    expected = (common**2).mean() / spreads[0, 0, 0] + ((errors - common) ** 2 / spreads[..., 1]).mean()
    found = ppo.minibatch_loss(network, batch, config, KNOBS).value_loss
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-4)


# ---- Stable-Baselines3 as the reference


class Borrowed:
    """The network of a Stable-Baselines3 policy, so that both learners train the same function."""

    state_size = 0

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits(observation), self.value(observation)

    def logits(self, observation: torch.Tensor) -> torch.Tensor:
        return self.policy.get_distribution(observation).distribution.logits  # type: ignore[no-any-return]

    def value(self, observation: torch.Tensor) -> torch.Tensor:
        return self.policy.predict_values(observation).squeeze(-1)  # type: ignore[no-any-return]

    def actor_parameters(self):
        return (p for name, p in self.policy.named_parameters() if "value" not in name)

    def critic_parameters(self):
        return (p for name, p in self.policy.named_parameters() if "value" in name)


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_pitfall_16_a_batch_gives_the_losses_and_the_step_of_stable_baselines(value_clip):
    from stable_baselines3 import PPO

    n = 256
    settings: dict[str, Any] = {"n_steps": n, "batch_size": n, "n_epochs": 2, "seed": 0, "device": "cpu"}
    model, other = (
        PPO("MlpPolicy", "CartPole-v1", ent_coef=0.01, clip_range_vf=value_clip, **settings) for _ in range(2)
    )
    model.learn(n)  # fills the buffer and moves the weights: the ratios are no longer one
    other.policy.load_state_dict(model.policy.state_dict())
    ours = Borrowed(other.policy)
    raw = model.rollout_buffer.advantages.flatten()  # (a single environment: no order to mind)
    buffer = model.rollout_buffer
    batch = ppo.Batch(
        torch.from_numpy(buffer.observations.reshape(n, 4)),
        torch.from_numpy(buffer.actions.flatten()).long(),
        torch.from_numpy(buffer.log_probs.flatten()),
        torch.from_numpy(buffer.values.flatten()),
        torch.from_numpy((raw - raw.mean()) / (raw.std(ddof=1) + 1e-8)),
        torch.from_numpy(buffer.returns.flatten()),
    )
    config = PPOConfig(epochs=1, minibatch=n, value_clip=value_clip, value_coefficient=0.5)
    knobs = KNOBS._replace(actor_learning_rate=3e-4, critic_learning_rate=3e-4)
    model.n_epochs = 1
    model.policy.optimizer = torch.optim.Adam(model.policy.parameters(), 3e-4, eps=1e-5)
    model.train()
    theirs = model.logger.name_to_value
    metrics = ppo.update(ours, ppo.make_optimiser(ours), [batch], config, knobs, np.random.default_rng(0))
    for name, reference in (
        ("policy_loss", "policy_gradient_loss"),
        ("value_loss", "value_loss"),
        ("kl", "approx_kl"),
        ("clip_fraction", "clip_fraction"),
        ("loss", "loss"),
    ):
        assert metrics[name] == pytest.approx(theirs[f"train/{reference}"], rel=1e-4, abs=1e-6), name
    assert metrics["entropy"] == pytest.approx(-theirs["train/entropy_loss"], rel=1e-5)
    assert metrics["kl"] > 1e-5
    for name, parameter in model.policy.named_parameters():
        torch.testing.assert_close(
            dict(ours.policy.named_parameters())[name], parameter, atol=1e-5, rtol=1e-4, msg=name
        )


class Perceptrons(nn.Module):
    """Actor and critic for CartPole, as in Stable-Baselines3's MlpPolicy."""

    state_size = 0

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
            for outputs in (2, 1)
        )
        for net, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            for layer, scale in zip(list(net)[::2], (2**0.5, 2**0.5, gain), strict=True):
                assert isinstance(layer, nn.Linear)
                nn.init.orthogonal_(layer.weight, scale, generator)
                nn.init.zeros_(layer.bias)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits(observation), self.value(observation)

    def logits(self, observation: torch.Tensor) -> torch.Tensor:
        return self.actor(observation)  # type: ignore[no-any-return]

    def value(self, observation: torch.Tensor) -> torch.Tensor:
        return self.critic(observation).squeeze(-1)  # type: ignore[no-any-return]

    def actor_parameters(self):
        return self.actor.parameters()

    def critic_parameters(self):
        return self.critic.parameters()


class CartPole:
    """Gymnasium's vector CartPole behind our interface: a second passes with every step."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.single_observation_space = num_envs, None
        makers = [lambda: gymnasium.make("CartPole-v1")] * num_envs
        self.envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self, *, seed):
        return self.envs.reset(seed=seed)

    def step(self, actions):
        observation, reward, terminated, truncated, info = self.envs.step(actions)
        new = {"elapsed_s": np.ones(self.num_envs), "final_obs": observation.copy()}
        for i in np.flatnonzero(terminated | truncated):
            new["final_obs"][i] = info["final_obs"][i]
        return observation, reward, terminated, truncated, new


def cartpole_return(act: Any, episodes: int = 10) -> float:
    env = gymnasium.make("CartPole-v1")
    total = 0.0
    for seed in range(episodes):
        observation, _ = env.reset(seed=1000 + seed)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total += float(reward)
            ended = terminated or truncated
    return total / episodes


@pytest.mark.slow
def test_pitfall_16_cartpole_is_learnt_as_well_as_by_stable_baselines():
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    # The settings of RL Baselines3 Zoo; a third of its budget.
    envs, steps, iterations, rate = 8, 32, 130, 1e-3
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", envs, seed=0),
        n_steps=steps,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=lambda left: rate * left,
        seed=0,
        device="cpu",
    )
    model.learn(envs * steps * iterations)
    theirs = cartpole_return(lambda x: int(model.predict(x, deterministic=True)[0]))

    network = Perceptrons(seed=0)
    config = PPOConfig(
        rollout_steps=steps,
        minibatch=256,
        epochs=20,
        horizon_s=-1 / np.log(0.98),
        gae_lambda=0.8,
        entropy_coefficient=Constant(value=0.0),
    )
    learn(network, CartPole(envs), config, iterations=iterations, shape=(4,), learning_rate=rate)

    def act(x: Any) -> int:
        with torch.no_grad():
            return int(network.actor(torch.from_numpy(x)).argmax())

    assert cartpole_return(act) > min(400.0, 0.9 * theirs)
