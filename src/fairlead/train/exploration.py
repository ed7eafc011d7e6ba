"""The distribution that actions are sampled from, and nothing else calls itself log-probability."""

import math

import torch
from torch import Tensor

from fairlead.policy.layers import MASKED


def behaviour_log_probs(
    logits: Tensor, temperature: float = 1.0, epsilon: float = 0.0, load: Tensor | None = None
) -> Tensor:
    """Log of (1 - epsilon) * softmax(logits / temperature) + epsilon * exploration; (B, A) -> (B, A).

    Exploration is uniform over the actions that may be taken, those that the network has not masked, or,
    with the `load` (B, A) of the replicas, hierarchical. Rollout and update both use it, so the first ratio
    of an update is exactly one.
    """
    log_probs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
    if epsilon == 0.0:
        return log_probs
    allowed = logits > MASKED / 2
    shares = uniform(allowed) if load is None else hierarchical(allowed, load)
    explored = torch.where(allowed, torch.log(shares), MASKED)
    if epsilon == 1.0:
        return explored
    return torch.logaddexp(log_probs + math.log1p(-epsilon), explored + math.log(epsilon))


def uniform(allowed: Tensor) -> Tensor:
    """The same probability for all that are `allowed` (B, A)."""
    return allowed / allowed.sum(-1, keepdim=True)


def hierarchical(allowed: Tensor, load: Tensor) -> Tensor:
    """First a class of replicas, each with the same probability, then uniformly within it: (B, A).

    The classes are the replicas whose `load` (B, A) is at most the median of those `allowed`, and the
    rest; where there is no rest, the one class takes all. So in a large cluster in which most replicas
    are crowded, the quiet ones are tried as often as all others together.
    """
    there = load.masked_fill(~allowed, torch.nan)
    quiet = allowed & (there <= there.nanmedian(-1, keepdim=True).values)
    crowded = allowed & ~quiet
    both = crowded.any(-1, keepdim=True)
    within_quiet = quiet / quiet.sum(-1, keepdim=True)
    within_crowded = crowded / crowded.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(both, 0.5 * (within_quiet + within_crowded), within_quiet)


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Actions (B,) by inversion of the distribution function at `uniforms` (B,) in [0, 1)."""
    shares = log_probs.exp()
    below = shares.cumsum(-1) <= uniforms[:, None]
    actions = below.sum(-1)
    # Rounding may leave the sum a little below one: the last action that is possible takes the rest.
    last = log_probs.shape[-1] - 1 - (shares.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(actions, last)
