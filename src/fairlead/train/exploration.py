"""The distribution that actions are sampled from, and nothing else calls itself log-probability."""

import math

import torch
from torch import Tensor

from fairlead.policy.layers import MASKED


def behaviour_log_probs(logits: Tensor, temperature: float = 1.0, epsilon: float = 0.0) -> Tensor:
    """Log of (1 - epsilon) * softmax(logits / temperature) + epsilon / n; (B, A) -> (B, A).

    n is the number of actions that may be taken: those that the network has not masked. Rollout and
    update both use it, so the first ratio of an update is exactly one.
    """
    log_probs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
    if epsilon == 0.0:
        return log_probs
    allowed = logits > MASKED / 2
    uniform = torch.where(allowed, -torch.log(allowed.sum(-1, keepdim=True)), MASKED)
    if epsilon == 1.0:
        return uniform
    return torch.logaddexp(log_probs + math.log1p(-epsilon), uniform + math.log(epsilon))


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Actions (B,) by inversion of the distribution function at `uniforms` (B,) in [0, 1)."""
    shares = log_probs.exp()
    below = shares.cumsum(-1) <= uniforms[:, None]
    actions = below.sum(-1)
    # Rounding may leave the sum a little below one: the last action that is possible takes the rest.
    last = log_probs.shape[-1] - 1 - (shares.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(actions, last)
