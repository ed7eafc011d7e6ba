"""The terms of the loss: small pure functions of tensors, each checking its shapes."""

import torch
from torch import Tensor

from fairlead.policy.layers import MASKED


def _check(dimensions: int, **tensors: Tensor) -> None:
    """All tensors have one shape with that many dimensions: broadcasting never hides a mistake."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != dimensions for shape in shapes.values()):
        raise ValueError(f"expected {dimensions}-dimensional tensors of one shape, got {shapes}")


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's policy loss (Schulman et al. 2017, eq. 7), negated for descent.

    Args:
        log_prob: (B,) of the actions taken, under the policy being trained.
        old_log_prob: (B,) of the same under the distribution they were sampled from.
        advantages: (B,).
        clip: half width of the trusted ratios.

    Returns:
        The loss, and the share of ratios outside the clip range.
    """
    _check(1, log_prob=log_prob, old_log_prob=old_log_prob, advantages=advantages)
    ratio = torch.exp(log_prob - old_log_prob)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped = ((ratio.detach() - 1).abs() > clip).float().mean()
    return -surrogate.mean(), clipped


def value_loss(
    values: Tensor, targets: Tensor, old_values: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Mean squared error of (B,) values; with `clip`, of values within `clip` of the old ones."""
    _check(1, values=values, targets=targets)
    if clip is not None:
        if old_values is None:
            raise ValueError("clipping values needs the old ones")
        _check(1, values=values, old_values=old_values)
        values = within(values, old_values, clip)
    return (values - targets).square().mean()


def within(values: Tensor, old_values: Tensor, clip: float) -> Tensor:
    """The values, at most `clip` away from the old ones."""
    return old_values + (values - old_values).clamp(-clip, clip)


def compared_value_loss(errors: Tensor, spreads: Tensor) -> Tensor:
    """Squared errors of values, those in what tells a group's clusters apart beside those common to it.

    What a group shares is mostly the luck of its arrivals and nothing that a choice changes; `make_batch`
    subtracts it from advantages. A plain squared error consists of little else, so the critic would hardly
    learn what is left.

    Args:
        errors: (B, G, L) value - target of L decisions in each of the G clusters of a group.
        spreads: (B, G, L, 2) what the two kinds of errors are measured by: the variance over the rollout
            of group means of the targets, and of the group's own differences from them.
    """
    _check(3, errors=errors, spread=spreads[..., 0])
    common = errors.mean(1, keepdim=True)
    level = (common.square() / spreads[:, :1, :, 0]).mean()
    return 0.5 * level + 0.5 * ((errors - common).square() / spreads[..., 1]).mean()


def entropy(log_probs: Tensor) -> Tensor:
    """Mean entropy in nats of distributions given as log-probabilities (B, A)."""
    _check(2, log_probs=log_probs)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def entropy_share(log_probs: Tensor) -> Tensor:
    """Mean entropy of (B, A) as a share of the greatest possible, log of the actions that are not masked."""
    _check(2, log_probs=log_probs)
    shares = log_probs.exp()
    possible = (log_probs > 1e-3 * MASKED).sum(-1).clamp(min=2)
    return (-(shares * log_probs).sum(-1) / possible.log()).mean()


def entropy_shortfall(entropy: Tensor, floor: float) -> Tensor:
    """How far a mean entropy is below its floor, in nats; its gradient pushes the entropy up."""
    return torch.relu(floor - entropy)


def kl_exact(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Mean KL(policy || reference) in nats, over whole distributions given as (B, A) log-probabilities."""
    _check(2, log_probs=log_probs, reference=reference)
    return (log_probs.exp() * (log_probs - reference)).sum(-1).mean()


def kl_k3(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """KL(old || new) in nats from (B,) actions sampled from the old policy.

    The estimator k3 = (ratio - 1) - log ratio is unbiased and never negative
    (Schulman, http://joschu.net/blog/kl-approx.html).
    """
    _check(1, log_prob=log_prob, old_log_prob=old_log_prob)
    log_ratio = log_prob - old_log_prob
    return (torch.expm1(log_ratio) - log_ratio).mean()


def _mean(each: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of (B,) losses, each times its weight; weights have a mean of 1 over all that is learnt."""
    if weights is None:
        return each.mean()
    _check(1, each=each, weights=weights)
    return (each * weights).mean()


def expected_regret(log_probs: Tensor, regrets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over decisions of sum_a pi(a) * (cost(a) - least cost); both (B, A), weights (B,)."""
    _check(2, log_probs=log_probs, regrets=regrets)
    return _mean((log_probs.exp() * regrets).sum(-1), weights)


def soft_labels(
    log_probs: Tensor, regrets: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy to softmax(-regret / temperature); both (B, A), weights (B,).

    The labels of distillation (Hinton et al. 2015, arXiv:1503.02531), over the actions that are not masked.
    Unlike the expected regret it has a gradient where the policy is sure of the wrong choice. Like that it
    learns nothing from decisions without any regret.
    """
    _check(2, log_probs=log_probs, regrets=regrets)
    scores = (-regrets / temperature).where(log_probs > 1e-3 * MASKED, -torch.inf)
    each = -(torch.softmax(scores, -1) * log_probs).sum(-1)
    return _mean(each * (regrets > 0).any(-1), weights)


def cross_entropy(log_probs: Tensor, actions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean negative log-probability of a teacher's actions: (B, A), (B,) and weights (B,)."""
    _check(2, log_probs=log_probs)
    return -_mean(chosen(log_probs, actions), weights)


def imitation(log_probs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Expected regret where `labels` are regrets (B, A), cross-entropy where they are actions (B,)."""
    if labels.ndim == 2:
        return expected_regret(log_probs, labels, weights)
    return cross_entropy(log_probs, labels, weights)


def chosen(log_probs: Tensor, actions: Tensor) -> Tensor:
    """The log-probabilities (B,) of the actions (B,) among (B, A)."""
    _check(1, actions=actions, first_column=log_probs[:, 0])
    return log_probs.gather(1, actions[:, None]).squeeze(1)
