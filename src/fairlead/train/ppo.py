"""Proximal policy optimisation (Schulman et al. 2017), read from top to bottom; start at `iterate`.

Clusters of different sizes are different *parts*: each has its environment, rollout and scale, and every
minibatch takes its share of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairlead.train import losses, returns
from fairlead.train.batches import joint_minibatches
from fairlead.train.controllers import Knobs
from fairlead.train.demonstrations import Examples
from fairlead.train.device import learning_on
from fairlead.train.exploration import behaviour_log_probs
from fairlead.train.failure import NotFinite
from fairlead.train.ppo_config import PPOConfig
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import ActorCritic, Env, Observation, Rollout, collect

AT_ONCE = 4096
"""Replicas (of all decisions) that go through the network at once where it learns on the CPU: that takes
less time than all at once (docs/experiments.md). Gradients add up to those of the whole minibatch."""


@dataclass
class Part:
    """Clusters of one size."""

    env: Env
    rollout: Rollout
    scale: returns.RewardScale
    observation: Observation | None = None
    """At the decision at hand; None: an episode is to begin."""


class Batch(NamedTuple):
    """Decisions to learn from: first axis N, in no order but that groups to be compared stay together.

    For a network with a memory, N sequences of L decisions: all but `states` have a second axis L.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor
    """Of the value function."""
    reference: Tensor | None = None
    """(N, A) log-probabilities of the frozen reference policy."""
    states: Tensor | None = None
    """(N, R, S) what was remembered before each sequence's own first step."""
    starts: Tensor | None = None
    """(N, L) whether an episode begins at a step."""
    balance: Tensor | None = None
    """(N,) spread of load that came, where the network has a head for it."""
    spreads: Tensor | None = None
    """(N, 2) what errors of values are measured by, where clusters of a group are compared."""
    group: int = 1
    """With `spreads`: so many neighbours along N are of one group, at the same time."""

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        return self if device == "cpu" else self._each(lambda tensor: tensor.to(device))

    def take(self, indices: Tensor | slice) -> "Batch":
        """The decisions (or sequences) at `indices`: whole groups."""
        return self._each(lambda tensor: tensor[indices])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(change(field) if isinstance(field, Tensor) else field for field in self))  # type: ignore[arg-type]


class Terms(NamedTuple):
    """The loss of a minibatch and its parts."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor
    entropy_share: Tensor
    """Entropy as a share of the greatest possible."""
    reference_kl: Tensor
    cloning_loss: Tensor
    balance_loss: Tensor


def iterate(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    parts: Sequence[Part],
    config: PPOConfig,
    knobs: Knobs,
    random: np.random.Generator,
    profiler: Profiler,
    *,
    reference: ActorCritic | None = None,
    cloning: Sequence[Examples] = (),
    device: str = "cpu",
    load_column: int | None = None,
) -> dict[str, float]:
    """Rollouts, advantages, update. Leaves the next observations in the parts; returns the metrics.

    Args:
        network: acts on the CPU and learns on `device`.
        optimiser: of its parameters.
        parts: clusters of one size each.
        config: the settings.
        knobs: those that change, as they are now.
        random: draws actions and minibatches.
        profiler: told where the time goes.
        reference: the frozen policy to stay near, if any.
        cloning: demonstrations, if they are still to be imitated.
        device: where to learn.
        load_column: index of the feature whose spread is what balance means.
    """
    for part in parts:
        assert part.observation is not None
        part.observation = collect(
            network,
            part.env,
            part.rollout,
            part.observation,
            random,
            profiler,
            temperature=knobs.temperature,
            epsilon=knobs.epsilon,
            load_column=knobs.explore_by,
            sequence_length=config.sequence_length,
        )
    group: int = getattr(parts[0].env, "group", 1)
    with profiler.phase("learn"):
        batches = [make_batch(part.rollout, part.scale, config, group, load_column) for part in parts]
        if reference is not None and knobs.reference_kl > 0:
            batches = [b._replace(reference=log_probs_of(reference, b.observations)) for b in batches]
        with learning_on(device, network, optimiser):
            there = [batch.to(device) for batch in batches]
            shown = [each.to(device) for each in cloning] if knobs.cloning > 0 else []
            metrics = update(network, optimiser, there, config, knobs, random, shown)
    return metrics | describe(parts, batches, group)


def make_batch(
    rollout: Rollout,
    scale: returns.RewardScale,
    config: PPOConfig,
    group: int,
    load_column: int | None = None,
) -> Batch:
    """Scale the rewards, estimate advantages, compare within groups, normalise, flatten."""
    discounts = returns.time_discounts(rollout.elapsed_s, config.horizon_s)
    scale.update(rollout.rewards, discounts, rollout.ends)
    advantages, targets = returns.gae(
        rollout.rewards / (scale.scale if config.normalise_rewards else 1.0),
        rollout.values.astype(np.float64),
        rollout.next_values.astype(np.float64),
        discounts,
        rollout.ends,
        config.gae_lambda,
    )
    if config.group_baseline and group > 1:
        advantages = returns.subtract_group_mean(advantages, group)
    advantages = returns.normalise(advantages, config.advantage_normalisation, group)
    arrays = (
        rollout.observations,
        rollout.actions,
        rollout.log_probs,
        rollout.values,
        advantages.astype(np.float32),
        targets.astype(np.float32),
    )

    def arranged(steps: Tensor) -> Tensor:
        return as_sequences(steps, rollout.sequence_length) if rollout.states else steps.flatten(0, 1)

    batch = Batch(*(arranged(torch.from_numpy(array)) for array in arrays))  # type: ignore[arg-type]
    if config.compare_values and group > 1:
        spreads = torch.from_numpy(returns.spreads(targets, group).astype(np.float32))
        batch = batch._replace(spreads=arranged(spreads), group=group)
    if rollout.states:
        starts = torch.zeros(rollout.actions.shape, dtype=torch.bool)
        starts[1:] = torch.from_numpy(rollout.ends[:-1])
        return batch._replace(states=torch.stack(rollout.states).flatten(0, 1), starts=arranged(starts))
    if config.balance_coefficient > 0:
        assert load_column is not None
        spread = rollout.observations[..., load_column].std(-1).astype(np.float64)
        coming = returns.balance_to_go(spread, discounts, rollout.ends)
        batch = batch._replace(balance=torch.from_numpy(coming.astype(np.float32)).flatten())
    return batch


def as_sequences(steps: Tensor, length: int) -> Tensor:
    """(T, K, ...) -> (T/length * K, length, ...): consecutive steps of one cluster each."""
    sequences: Tensor = steps.view(-1, length, *steps.shape[1:]).transpose(1, 2).flatten(0, 1)
    return sequences


def log_probs_of(network: ActorCritic, observations: Tensor) -> Tensor:
    """(N, A) log-probabilities of a policy without temperature or epsilon, a few thousand at a time."""
    with torch.no_grad():
        parts = [torch.log_softmax(network.logits(part), -1) for part in torch.split(observations, 8192)]
    return torch.cat(parts)


def update(
    network: ActorCritic,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[Batch],
    config: PPOConfig,
    knobs: Knobs,
    random: np.random.Generator,
    cloning: Sequence[Examples] = (),
) -> dict[str, float]:
    """Several epochs of minibatch descent; returns the means of the loss's parts.

    Raises:
        NotFinite: if the loss or its gradient is not finite.
    """
    actor, critic = list(network.actor_parameters()), list(network.critic_parameters())
    set_learning_rates(optimiser, knobs.actor_learning_rate, knobs.critic_learning_rate)
    for parameter in actor:
        parameter.requires_grad_(knobs.train_actor)
    trained = actor + critic if knobs.train_actor else critic
    length = batches[0].actions.shape[1] if batches[0].actions.ndim == 2 else 1
    counts, size = [len(batch.actions) for batch in batches], max(1, config.minibatch // length)
    history: list[list[float]] = []
    for epoch in range(config.epochs):
        for indices in joint_minibatches(counts, size, random, batches[0].group):
            minibatch = [b.take(i) for b, i in zip(batches, indices, strict=True) if len(i)]
            optimiser.zero_grad(set_to_none=True)
            terms = joint_gradient(network, minibatch, config, knobs)
            if cloning and knobs.train_actor:
                terms = _add_cloning(network, terms, cloning, config, knobs, random)
            norm = nn.utils.clip_grad_norm_(trained, config.max_gradient_norm)
            history.append([each.item() for each in (*terms, norm)])
            _check_finite(history[-1], epoch, len(history), network, minibatch)
            if config.early_stop_kl is not None and terms.kl.item() > config.early_stop_kl:
                return _means(history)
            optimiser.step()
    return _means(history)


def joint_gradient(network: ActorCritic, batches: Sequence[Batch], config: PPOConfig, knobs: Knobs) -> Terms:
    """Add the gradient of the mean loss over the decisions of all parts to the network's.

    Returns:
        The means of the loss and its parts, without gradients.
    """
    total = sum(len(batch.actions) for batch in batches)
    means = torch.zeros(len(Terms._fields))
    for batch in batches:
        for piece in pieces(batch, config):
            share = len(piece.actions) / total
            terms = minibatch_loss(network, piece, config, knobs)
            torch.autograd.backward(terms.loss * share)
            means += share * torch.stack([term.detach().cpu() for term in terms])
    return Terms(*means)


def pieces(batch: Batch, config: PPOConfig) -> list[Batch]:
    """A minibatch in pieces of about `AT_ONCE` replicas: whole groups, the mean of whose losses is its loss.

    It stays whole where that would not be so, as an entropy floor is one of the whole minibatch, and on a
    device that is the faster the more it is given.
    """
    if config.entropy_floor is not None or batch.actions.device.type != "cpu":
        return [batch]
    rows = batch.observations[0, ..., 0].numel()
    size = max(1, AT_ONCE // rows // batch.group) * batch.group
    return [batch.take(slice(start, start + size)) for start in range(0, len(batch.actions), size)]


def minibatch_loss(network: ActorCritic, batch: Batch, config: PPOConfig, knobs: Knobs) -> Terms:
    """Clipped surrogate + value loss - entropy bonus + entropy floor + KL terms + balance loss."""
    zero = torch.zeros(())
    balance_loss = zero
    steps = 1 if batch.states is None else batch.actions.shape[1] - config.burn_in
    if batch.balance is not None:
        expected: Any = network
        balance_loss = losses.value_loss(expected.balance(batch.observations), batch.balance)
    if not knobs.train_actor:
        values, _, batch = _evaluate(network, batch, config.burn_in, actor=False)
        value_loss = _value_loss(values, batch, config, steps)
        loss = config.value_coefficient * value_loss + config.balance_coefficient * balance_loss
        parts = (zero, value_loss, zero, zero, zero, zero, zero, zero, balance_loss)
        return Terms(loss, *parts)
    values, logits, batch = _evaluate(network, batch, config.burn_in, actor=True)
    load = None if knobs.explore_by is None else batch.observations[..., knobs.explore_by]
    log_probs = behaviour_log_probs(logits, knobs.temperature, knobs.epsilon, load)
    log_prob = losses.chosen(log_probs, batch.actions)
    policy_loss, clip_fraction = losses.clipped_surrogate(
        log_prob, batch.log_probs, batch.advantages, knobs.clip
    )
    value_loss = _value_loss(values, batch, config, steps)
    entropy = losses.entropy(log_probs)
    kl = losses.kl_k3(log_prob, batch.log_probs)
    loss = policy_loss + config.value_coefficient * value_loss - knobs.entropy_coefficient * entropy
    loss = loss + config.balance_coefficient * balance_loss
    if config.kl_control != "none":
        loss = loss + knobs.kl_coefficient * kl
    if config.entropy_floor is not None:
        loss = loss + config.entropy_floor_coefficient * losses.entropy_shortfall(
            entropy, config.entropy_floor
        )
    reference_kl = zero
    if batch.reference is not None:
        reference_kl = losses.kl_exact(torch.log_softmax(logits, -1), batch.reference)
        loss = loss + knobs.reference_kl * reference_kl
    share = losses.entropy_share(log_probs.detach())
    parts = (policy_loss, value_loss, entropy, kl, clip_fraction, share, reference_kl, zero, balance_loss)
    return Terms(loss, *parts)


def _value_loss(values: Tensor, batch: Batch, config: PPOConfig, steps: int) -> Tensor:
    """Of single decisions: `steps` of one sequence after the other."""
    if batch.spreads is None:
        return losses.value_loss(values, batch.targets, batch.values, config.value_clip)
    if config.value_clip is not None:
        values = losses.within(values, batch.values, config.value_clip)
    errors = (values - batch.targets).view(-1, batch.group, steps)
    return losses.compared_value_loss(errors, batch.spreads.view(-1, batch.group, steps, 2))


def _evaluate(
    network: ActorCritic, batch: Batch, burn_in: int, *, actor: bool
) -> tuple[Tensor, Tensor, Batch]:
    """Values and logits of a batch, and the batch as single decisions; logits are empty if not needed."""
    if batch.states is None:
        if actor:
            logits, values = network(batch.observations)
            return values, logits, batch
        return network.value(batch.observations), torch.empty(0), batch
    assert batch.starts is not None
    recurrent: Any = network
    logits, values = recurrent.sequence(batch.observations, batch.states, batch.starts)
    fields = [
        None if tensor is None else tensor[:, burn_in:].flatten(0, 1)
        for tensor in (*batch[:6], batch.reference, batch.spreads)
    ]
    flat = Batch(*fields[:7])._replace(spreads=fields[7], group=batch.group)  # type: ignore[arg-type]
    return values[:, burn_in:].flatten(), logits[:, burn_in:].flatten(0, 1), flat


def _add_cloning(
    network: ActorCritic,
    terms: Terms,
    cloning: Sequence[Examples],
    config: PPOConfig,
    knobs: Knobs,
    random: np.random.Generator,
) -> Terms:
    """Add the imitation loss of some demonstrations of each part, by its fading weight, and its gradient."""
    found = []
    for examples in cloning:
        count = min(examples.size, max(1, config.cloning_minibatch // len(cloning)))
        chosen = examples.take(torch.from_numpy(random.integers(0, examples.size, count)))
        log_probs = torch.log_softmax(network.logits(chosen.observations), -1)
        found.append(losses.imitation(log_probs, chosen.labels, chosen.weights))
    loss = torch.stack(found).mean()
    torch.autograd.backward(knobs.cloning * loss)
    loss = loss.detach()
    return terms._replace(loss=terms.loss + knobs.cloning * loss, cloning_loss=loss)


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


LOSSES = (*Terms._fields, "gradient_norm")
ROLLOUTS = (
    "reward_mean",
    "reward_std",
    "reward_scale",
    "explained_variance",
    "explained_differences",
    "largest_action_share",
)


def _means(history: list[list[float]]) -> dict[str, float]:
    return dict(zip(LOSSES, np.mean(history, 0).tolist(), strict=True))


def _check_finite(
    row: list[float], epoch: int, minibatch: int, network: ActorCritic, batches: Sequence[Batch]
) -> None:
    for name, number in zip(LOSSES, row, strict=True):
        if not np.isfinite(number):
            inputs: dict[str, Any] = {
                f"part {p}: {field_}": tensor
                for p, batch in enumerate(batches)
                for field_, tensor in batch._asdict().items()
                if isinstance(tensor, torch.Tensor)
            }
            wrong = [key for key, tensor in inputs.items() if not torch.isfinite(tensor).all()]
            blamed = f" (already not finite in the batch: {', '.join(wrong)})" if wrong else ""
            raise NotFinite(
                f"{name} is not finite in epoch {epoch + 1}, minibatch {minibatch} of the update{blamed}; "
                "a lower learning rate may help",
                wrong[0] if wrong else name,
                inputs,
            )


def describe(parts: Sequence[Part], batches: Sequence[Batch], group: int) -> dict[str, float]:
    """Metrics of the rollouts; rewards as the environments gave them. Means over parts, by decisions.

    `explained_differences` is the share of the variance of targets within groups that the critic explains
    (below 0: a critic without any opinion would be better); 0 where groups are single clusters.
    """
    rows, sizes = [], []
    for part, batch in zip(parts, batches, strict=True):
        targets = batch.targets.numpy()
        errors = targets - batch.values.numpy()
        within = [returns.subtract_group_mean(np.atleast_2d(x.T), group) for x in (errors, targets)]
        shares = np.bincount(part.rollout.actions.ravel()) / part.rollout.actions.size
        rows.append(
            (
                float(part.rollout.rewards.mean()),
                float(part.rollout.rewards.std()),
                part.scale.scale,
                _explained(errors, targets),
                _explained(within[0], within[1]),
                float(shares.max()),
            )
        )
        sizes.append(part.rollout.actions.size)
    numbers = rows[0] if len(rows) == 1 else np.average(rows, 0, sizes).tolist()
    return dict(zip(ROLLOUTS, numbers, strict=True))


def _explained(errors: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    variance = float(np.var(targets))
    return 1.0 - float(np.var(errors)) / variance if variance > 1e-12 else 0.0
