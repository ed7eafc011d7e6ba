"""Proximal policy optimisation (Schulman et al. 2017), read from top to bottom; start at `iterate`."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairlead.errors import FairleadError
from fairlead.train import losses, returns
from fairlead.train.batches import minibatches
from fairlead.train.config import PPOConfig
from fairlead.train.exploration import behaviour_log_probs
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import ActorCritic, Env, Observation, Rollout, collect


class Knobs(NamedTuple):
    """The scheduled settings, as they are in one iteration."""

    actor_learning_rate: float
    critic_learning_rate: float
    entropy_coefficient: float
    kl_coefficient: float
    temperature: float
    epsilon: float
    train_actor: bool
    """False while the critic warms up."""


class Batch(NamedTuple):
    """Decisions to learn from, with no order left: first axis N."""

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor
    """Of the value function."""


class Terms(NamedTuple):
    """The loss of a minibatch and its parts."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor


def iterate(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    env: Env,
    rollout: Rollout,
    observation: Observation,
    scale: returns.RewardScale,
    config: PPOConfig,
    knobs: Knobs,
    random: np.random.Generator,
    profiler: Profiler,
) -> tuple[Observation, dict[str, float]]:
    """Rollout, advantages, update. Returns the next observation and the metrics."""
    observation = collect(
        network,
        env,
        rollout,
        observation,
        random,
        profiler,
        temperature=knobs.temperature,
        epsilon=knobs.epsilon,
    )
    with profiler.phase("learn"):
        batch = make_batch(rollout, scale, config, getattr(env, "group", 1))
        metrics = update(network, optimiser, batch, config, knobs, random)
    return observation, metrics | describe(rollout, batch, scale)


def make_batch(rollout: Rollout, scale: returns.RewardScale, config: PPOConfig, group: int) -> Batch:
    """Scale the rewards, estimate advantages, compare within groups, normalise, flatten."""
    discounts = returns.time_discounts(rollout.elapsed_s, config.horizon_s)
    scale.update(rollout.rewards, discounts, rollout.ends)
    advantages, targets = returns.gae(
        rollout.rewards / scale.scale,
        rollout.values.astype(np.float64),
        rollout.next_values.astype(np.float64),
        discounts,
        rollout.ends,
        config.gae_lambda,
    )
    if config.group_baseline and group > 1:
        advantages = returns.subtract_group_mean(advantages, group)
    advantages = returns.normalise(advantages, config.advantage_normalisation, group)
    return Batch(
        torch.from_numpy(rollout.observations).flatten(0, 1),
        torch.from_numpy(rollout.actions).flatten(),
        torch.from_numpy(rollout.log_probs).flatten(),
        torch.from_numpy(rollout.values).flatten(),
        torch.from_numpy(advantages.astype(np.float32)).flatten(),
        torch.from_numpy(targets.astype(np.float32)).flatten(),
    )


def update(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    config: PPOConfig,
    knobs: Knobs,
    random: np.random.Generator,
) -> dict[str, float]:
    """Several epochs of minibatch descent; returns the means of the loss's parts.

    Raises:
        FairleadError: if the loss or its gradient is not finite.
    """
    actor, critic = list(network.actor_parameters()), list(network.critic_parameters())
    set_learning_rates(optimiser, knobs.actor_learning_rate, knobs.critic_learning_rate)
    for parameter in actor:
        parameter.requires_grad_(knobs.train_actor)
    trained = actor + critic if knobs.train_actor else critic
    history: list[list[float]] = []
    for epoch in range(config.epochs):
        for indices in minibatches(len(batch.actions), config.minibatch, random):
            minibatch = Batch(*(tensor[indices] for tensor in batch))
            terms = minibatch_loss(network, minibatch, config, knobs)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(terms.loss)
            norm = nn.utils.clip_grad_norm_(trained, config.max_gradient_norm)
            history.append([each.item() for each in (*terms, norm)])
            _check_finite(history[-1], epoch, len(history))
            if config.early_stop_kl is not None and terms.kl.item() > config.early_stop_kl:
                return _means(history)
            optimiser.step()
    return _means(history)


def minibatch_loss(network: ActorCritic, batch: Batch, config: PPOConfig, knobs: Knobs) -> Terms:
    """Clipped surrogate + value loss - entropy bonus + KL penalty."""
    zero = torch.zeros(())
    if not knobs.train_actor:
        value_loss = losses.value_loss(
            network.value(batch.observations), batch.targets, batch.values, config.value_clip
        )
        return Terms(config.value_coefficient * value_loss, zero, value_loss, zero, zero, zero)
    logits, values = network(batch.observations)
    log_probs = behaviour_log_probs(logits, knobs.temperature, knobs.epsilon)
    log_prob = losses.chosen(log_probs, batch.actions)
    policy_loss, clip_fraction = losses.clipped_surrogate(
        log_prob, batch.log_probs, batch.advantages, config.clip
    )
    value_loss = losses.value_loss(values, batch.targets, batch.values, config.value_clip)
    entropy = losses.entropy(log_probs)
    kl = losses.kl_k3(log_prob, batch.log_probs)
    loss = policy_loss + config.value_coefficient * value_loss - knobs.entropy_coefficient * entropy
    if config.kl_control != "none":
        loss = loss + knobs.kl_coefficient * kl
    return Terms(loss, policy_loss, value_loss, entropy, kl, clip_fraction)


def make_optimiser(network: ActorCritic) -> torch.optim.Adam:
    """Adam with one group for the actor (first) and one for the critic (second)."""
    groups = [
        {"params": list(network.actor_parameters())},
        {"params": list(network.critic_parameters())},
    ]
    return torch.optim.Adam(groups, lr=1e-3, eps=1e-5)


def set_learning_rates(optimiser: torch.optim.Optimizer, actor: float, critic: float) -> None:
    """Set the step sizes of the two groups."""
    for group, rate in zip(optimiser.param_groups, (actor, critic), strict=True):
        group["lr"] = rate


def next_kl_coefficient(coefficient: float, kl: float, config: PPOConfig) -> float:
    """The penalty's weight for the next iteration (section 4 of the PPO paper, with `adaptive`)."""
    if config.kl_control != "adaptive":
        return coefficient
    if kl > 1.5 * config.kl_target:
        return min(2 * coefficient, 100.0)
    return max(coefficient / 2, 1e-4) if kl < config.kl_target / 1.5 else coefficient


def knobs_at(config: PPOConfig, iteration: int, kl_coefficient: float) -> Knobs:
    """The settings of iteration 0, 1, ...; progress starts after the critic's warm-up."""
    done = max(0, iteration - config.critic_warmup_iterations)
    progress = min(1.0, done / max(1, config.iterations - 1))
    return Knobs(
        config.actor_learning_rate.at(progress),
        config.critic_learning_rate.at(progress),
        config.entropy_coefficient.at(progress),
        kl_coefficient,
        config.temperature.at(progress),
        config.epsilon.at(progress),
        iteration >= config.critic_warmup_iterations,
    )


LOSSES = ("loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "gradient_norm")
ROLLOUTS = ("reward_mean", "reward_std", "reward_scale", "explained_variance", "largest_action_share")


def _means(history: list[list[float]]) -> dict[str, float]:
    return dict(zip(LOSSES, np.mean(history, 0).tolist(), strict=True))


def _check_finite(row: list[float], epoch: int, minibatch: int) -> None:
    for name, number in zip(LOSSES, row, strict=True):
        if not np.isfinite(number):
            raise FairleadError(
                f"{name} is not finite in epoch {epoch + 1}, minibatch {minibatch} of the update; "
                "a lower learning rate may help"
            )


def describe(rollout: Rollout, batch: Batch, scale: returns.RewardScale) -> dict[str, float]:
    """Metrics of a rollout; rewards as the environment gave them."""
    targets = batch.targets.numpy()
    residual = float(np.var(targets - batch.values.numpy()))
    shares = np.bincount(rollout.actions.ravel()) / rollout.actions.size
    numbers = (
        float(rollout.rewards.mean()),
        float(rollout.rewards.std()),
        scale.scale,
        1.0 - residual / max(float(np.var(targets)), 1e-12),
        float(shares.max()),
    )
    return dict(zip(ROLLOUTS, numbers, strict=True))
