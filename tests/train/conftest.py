"""A vector environment small enough to know its optimum: queues fed by one dispatcher."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from fairlead.train.config import ImitationConfig, NetworkConfig, PPOConfig, TrainConfig

FEATURES = ("work", "above_least", "size")


class Queues:
    """K dispatchers, R queues each that work off one second of work per second.

    STATE: (R, 3) float32 per dispatcher: work in the queue, work above the least, size of the job at hand.
    ACTIONS: a queue. REWARD: minus the integral of the squared work in all queues until the next job.
    The interface is that of `fairlead.train.rollout.Env`, autoreset mode SAME_STEP.
    """

    def __init__(self, num_envs: int = 16, replicas: int = 3, group: int = 4, episode: int = 100) -> None:
        self.num_envs, self.replicas, self.group, self.episode = num_envs, replicas, group, episode
        self.single_observation_space = SimpleNamespace(shape=(replicas, len(FEATURES)))
        self.random = np.random.default_rng(0)
        self.closed = False

    def _jobs(self) -> None:
        groups = self.num_envs // self.group
        draw = self.random.exponential(1.0, (2, groups)).repeat(self.group, 1)
        self.gap, self.size = draw[0] / (0.8 * self.replicas), draw[1]

    def _observe(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        above = self.work - self.work.min(1, keepdims=True)
        size = np.broadcast_to(self.size[:, None], self.work.shape)
        return (np.stack([self.work, above, size], -1) / 4).astype(np.float32)

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.work, self.t = np.zeros((self.num_envs, self.replicas)), 0
        self._jobs()
        return self._observe(), {}

    def teacher_costs(self) -> Any:
        return self.size[:, None] * self.work + 0.5 * self.size[:, None] ** 2

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.work[np.arange(self.num_envs), actions] += self.size
        left = np.maximum(self.work - self.gap[:, None], 0.0)
        reward = -((self.work**3 - left**3) / 3).sum(1)
        self.work, gap = left, self.gap
        self._jobs()
        self.t += 1
        observation, info = self._observe(), {"elapsed_s": gap}
        ended = self.t == self.episode
        if ended:
            info["final_obs"] = observation
            observation, _ = self.reset()
        flags = np.full(self.num_envs, ended)
        return observation, reward, np.zeros_like(flags), flags, info


def mean_cost(choose: Callable[[Any], Any], steps: int = 200, seed: int = 12345) -> float:
    """Cost per decision of a policy (K, R, F) -> (K,) on episodes that training never sees."""
    env = Queues(64, group=1, episode=10**9)
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for _ in range(steps):
        observation, reward, *_ = env.step(choose(observation))
        total -= float(reward.mean())
    return total / steps


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The queues, how to judge a policy on them, the costs of random and of optimal routing."""
    random = np.random.default_rng(0)
    return SimpleNamespace(
        make=Queues,
        features=FEATURES,
        mean_cost=mean_cost,
        random_cost=mean_cost(lambda x: random.integers(0, x.shape[1], len(x))),
        optimal_cost=mean_cost(lambda x: x[..., 0].argmin(1)),
        evaluate=lambda router: mean_cost(lambda x: router.logits(x).argmax(1)),
        config=toy_config,
    )


def toy_config(critic: Literal["shared", "decoupled"] = "shared", **ppo: Any) -> TrainConfig:
    """A run on the queues that takes a second or two."""
    settings: dict[str, Any] = {
        "iterations": 4,
        "critic_warmup_iterations": 1,
        "rollout_steps": 32,
        "reset_every": 2,
        "horizon_s": 3.0,
        "gae_lambda": 0.9,
        "minibatch": 128,
        "epochs": 2,
    }
    return TrainConfig(
        seed=1,
        threads=1,
        network=NetworkConfig(hidden=16, attention=8, critic=critic),
        ppo=PPOConfig(**(settings | ppo)),
        imitation=ImitationConfig(rounds=2, steps=20, teacher_steps=20, epochs=3, minibatch=64),
        evaluate_every=2,
    )
