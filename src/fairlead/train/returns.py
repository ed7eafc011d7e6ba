"""From rewards to advantages: discount by elapsed time, GAE, group baseline, scales. Arrays are (T, K)."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def time_discounts(elapsed_s: Floats, horizon_s: float) -> Floats:
    """Weight of the future after each decision: exp(-elapsed / horizon).

    Decisions are not equally spaced, so a constant factor per decision would make the horizon in seconds
    depend on the load.
    """
    return np.exp(-elapsed_s / horizon_s)


def gae(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    discounts: Floats,
    ends: Bools,
    gae_lambda: float,
) -> tuple[Floats, Floats]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438), eq. 16, discount per step.

    Args:
        rewards: (T, K) between decision t and the next.
        values: (T, K) of the observation at decision t.
        next_values: (T, K) of the observation that decision t led to: of the final observation where the
            episode was cut off there, 0 where it terminated.
        discounts: (T, K) of `next_values`.
        ends: (T, K) whether the episode ended after decision t; nothing flows back across an end.
        gae_lambda: in [0, 1]: 0 trusts the critic after one step, 1 only at the end.

    Returns:
        Advantages (T, K), and the value targets `advantages + values`.
    """
    shapes = {a.shape for a in (rewards, values, next_values, discounts, ends)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"all arrays must have one shape (T, K), not {sorted(shapes)}")
    errors = rewards + discounts * next_values - values
    carry = discounts * gae_lambda * ~ends
    advantages = np.empty_like(errors)
    ahead = np.zeros(errors.shape[1])
    for t in range(len(errors) - 1, -1, -1):
        ahead = errors[t] + carry[t] * ahead
        advantages[t] = ahead
    return advantages, advantages + values


def balance_to_go(spread: Floats, discounts: Floats, ends: Bools) -> Floats:
    """The spread of load over the replicas that is still to come: (T, K).

    An average with the discount's weights. What comes after the last step, or after the end of an episode,
    counts as the spread found there.
    """
    averages = np.empty_like(spread)
    ahead = spread[-1]
    for t in range(len(spread) - 1, -1, -1):
        ahead = np.where(ends[t], spread[t], ahead)
        averages[t] = ahead = (1.0 - discounts[t]) * spread[t] + discounts[t] * ahead
    return averages


def subtract_group_mean(advantages: Floats, group: int) -> Floats:
    """Compare each cluster with those that saw the same arrivals: (T, K) minus its group's mean per step.

    Arrival noise is common to the group and cancels (an input-dependent baseline, Mao et al. 2019,
    arXiv:1807.02264). The mean includes the cluster itself, which only scales the result.
    """
    steps, clusters = advantages.shape
    if clusters % group:
        raise ValueError(f"{clusters} clusters are no multiple of the group size {group}")
    grouped = advantages.reshape(steps, clusters // group, group)
    centred: Floats = grouped - grouped.mean(2, keepdims=True)
    return centred.reshape(steps, clusters)


def spreads(targets: Floats, group: int) -> Floats:
    """How targets (T, K) vary: (T, K, 2) variance of group means, and of the own group's differences.

    The first is that of the whole rollout, the second never less than a hundredth of the median group's.
    """
    apart = subtract_group_mean(targets, group)
    within = np.mean(apart.reshape(len(apart), -1, group) ** 2, (0, 2))
    within = np.maximum(within, 0.01 * np.median(within))
    found = np.empty((*targets.shape, 2))
    found[..., 0] = (targets - apart).var()
    found[..., 1] = np.repeat(within, group)
    least: Floats = np.maximum(found, 1e-8)
    return least


def normalise(advantages: Floats, kind: Literal["batch", "group", "none"], group: int) -> Floats:
    """Zero mean and unit deviation over everything (`batch`), or over each group's columns (`group`)."""
    if kind == "none":
        return advantages
    steps, clusters = advantages.shape
    width = clusters if kind == "batch" else group
    blocks = advantages.reshape(steps, clusters // width, width)
    centred = blocks - blocks.mean((0, 2), keepdims=True)
    scaled: Floats = centred / (blocks.std((0, 2), keepdims=True) + 1e-8)
    return scaled.reshape(steps, clusters)


class RewardScale:
    """Running standard deviation of discounted returns; rewards divided by it have a steady scale.

    Nothing is shifted or clipped. The variance is Welford's, over all decisions so far.
    """

    def __init__(self) -> None:
        """No rewards seen: the scale is 1."""
        self._returns: Floats | None = None
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def update(self, rewards: Floats, discounts: Floats, ends: Bools) -> None:
        """Take in a rollout: all (T, K)."""
        returns = np.empty_like(rewards)
        running = self._returns if self._returns is not None else np.zeros(rewards.shape[1])
        for t in range(len(rewards)):
            running = running + rewards[t]
            returns[t] = running
            running = running * discounts[t] * ~ends[t]
        self._returns = running
        count, mean = returns.size, float(returns.mean())
        total, shift = self._count + count, mean - self._mean
        self._squares += float(((returns - mean) ** 2).sum()) + shift**2 * self._count * count / total
        self._mean += shift * count / total
        self._count = total

    def restart(self) -> None:
        """New episodes begin."""
        self._returns = None

    @property
    def scale(self) -> float:
        """Standard deviation of discounted returns so far; 1 before there is any spread."""
        deviation = (self._squares / self._count) ** 0.5 if self._count else 0.0
        return float(deviation) if deviation > 1e-8 else 1.0

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        returns = None if self._returns is None else self._returns.tolist()
        return {"returns": returns, "count": self._count, "mean": self._mean, "squares": self._squares}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a `state()`."""
        returns = state["returns"]
        self._returns = None if returns is None else np.array(returns, np.float64)
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]
