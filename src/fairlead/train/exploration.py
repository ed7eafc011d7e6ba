"""The distribution that actions are sampled from, and nothing else calls itself log-probability."""

import math

import torch
from torch import Tensor


def behaviour_log_probs(logits: Tensor, temperature: float = 1.0, epsilon: float = 0.0) -> Tensor:
    """Log of (1 - epsilon) * softmax(logits / temperature) + epsilon / A; (B, A) -> (B, A).

    Rollout and update both use it, so the first ratio of an update is exactly one.
    """
    log_probs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)
    if epsilon == 0.0:
        return log_probs
    if epsilon == 1.0:
        return torch.full_like(log_probs, -math.log(logits.shape[-1]))
    uniform = torch.full_like(log_probs, math.log(epsilon / logits.shape[-1]))
    return torch.logaddexp(log_probs + math.log1p(-epsilon), uniform)


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Actions (B,) by inversion of the distribution function at `uniforms` (B,) in [0, 1)."""
    below = log_probs.exp().cumsum(-1) <= uniforms[:, None]
    return below.sum(-1).clamp_(max=log_probs.shape[-1] - 1)
