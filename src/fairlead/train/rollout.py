"""Collect decisions: step a vector environment under the current policy into preallocated buffers."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairlead.errors import FairleadError
from fairlead.train.exploration import behaviour_log_probs, sample
from fairlead.train.losses import chosen
from fairlead.train.profiler import Profiler
from fairlead.train.threads import ACTING, torch_threads

VALUES_AT_ONCE = 4096
"""Decisions per call of the critic: enough to be efficient, few enough to stay in the cache."""

Observation = npt.NDArray[np.float32]


class Enough(Exception):
    """An environment gives no more: training ends with what it has learned. Says why."""


class Env(Protocol):
    """What training needs of a vector environment: `fairlead.env.vector.RouterVectorEnv` has it.

    `step` returns observation (K, ...), reward (K,), terminated (K,), truncated (K,) and `info`, which has
    `elapsed_s` (K,), the seconds from this decision to the next, and, when an episode ended, `final_obs`
    (K, ...), the last observation of the old episode (autoreset mode SAME_STEP). An attribute `group` says
    how many neighbouring clusters share their arrivals (1 if absent). The same seed and actions must give
    the same episode.
    """

    num_envs: int
    single_observation_space: Any
    """Its `shape` is that of one cluster's observation."""

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Start episodes that `seed` determines."""
        ...

    def step(self, actions: npt.NDArray[np.int64]) -> tuple[Observation, Any, Any, Any, dict[str, Any]]:
        """Take one decision in each cluster."""
        ...


class ActorCritic(Protocol):
    """What training needs of a network: `fairlead.policy.network.RouterNetwork` has it.

    One with a memory also has `state_size` > 0, `initial_state`, `step` and `sequence`, and is used through
    those.
    """

    def __call__(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A) and values (B,) of observations (B, ...)."""
        ...

    def logits(self, observation: Tensor) -> Tensor:
        """The logits alone."""
        ...

    def value(self, observation: Tensor) -> Tensor:
        """The values alone."""
        ...

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """Whatever the decision depends on."""
        ...

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What only the value depends on."""
        ...


class Rollout:
    """T decisions of K clusters. Arrays are (T, K, ...)."""

    def __init__(self, steps: int, clusters: int, observation_shape: tuple[int, ...]) -> None:
        """Room for `steps` decisions of `clusters` clusters."""
        shape = (steps, clusters)
        self.observations = np.empty((*shape, *observation_shape), np.float32)
        self.actions = np.empty(shape, np.int64)
        self.log_probs = np.empty(shape, np.float32)
        """Of the actions, under the distribution that they were sampled from."""
        self.values = np.empty(shape, np.float32)
        self.next_values = np.empty(shape, np.float32)
        """Of what each decision led to: the final observation's value at a truncation, 0 at a termination."""
        self.rewards = np.empty(shape, np.float64)
        self.elapsed_s = np.empty(shape, np.float64)
        self.ends = np.empty(shape, np.bool_)
        """Whether the episode ended after the decision, one way or the other."""
        self.memory: Tensor | None = None
        """(K, R, S) what the network remembers before the coming decision; None: nothing."""
        self.states: list[Tensor] = []
        """With a memory: (K, R, S) before every `sequence_length`-th decision of the rollout."""
        self.sequence_length = 1

    def __len__(self) -> int:
        """Decisions per cluster."""
        return len(self.actions)


def collect(
    network: ActorCritic,
    env: Env,
    rollout: Rollout,
    observation: Observation,
    random: np.random.Generator,
    profiler: Profiler,
    *,
    temperature: float = 1.0,
    epsilon: float = 0.0,
    load_column: int | None = None,
    sequence_length: int = 1,
) -> Observation:
    """Fill `rollout` from `observation` on; returns the observation that comes next.

    A network with a memory goes on from `rollout.memory` and leaves its last state there. With a
    `load_column`, the feature of that index tells quiet replicas from crowded ones in exploration.

    Raises:
        FairleadError: if an observation, a reward or a logit is not finite.
    """
    if has_memory(network):
        return _collect_with_memory(
            network,
            env,
            rollout,
            observation,
            random,
            profiler,
            temperature,
            epsilon,
            load_column,
            sequence_length,
        )
    clusters = env.num_envs
    uniforms = torch.from_numpy(random.random((len(rollout), clusters), np.float32))
    with torch.inference_mode(), torch_threads(ACTING):
        for t in range(len(rollout)):
            with profiler.phase("copy"):
                rollout.observations[t] = observation
            with profiler.phase("forward"):
                logits = network.logits(torch.from_numpy(rollout.observations[t]))
                log_probs = behaviour_log_probs(logits, temperature, epsilon, _load(rollout, t, load_column))
                actions = sample(log_probs, uniforms[t])
                rollout.actions[t] = actions.numpy()
                rollout.log_probs[t] = chosen(log_probs, actions).numpy()
            with profiler.phase("simulate"):
                observation, rewards, terminated, truncated, info = env.step(rollout.actions[t])
            with profiler.phase("copy"):
                rollout.rewards[t] = rewards
                rollout.elapsed_s[t] = info["elapsed_s"]
                np.logical_or(terminated, truncated, out=rollout.ends[t])
            if rollout.ends[t].any():
                # Bootstrapping from the observation after the reset would credit one episode with another's.
                with profiler.phase("forward"):
                    final = network.value(torch.from_numpy(np.asarray(info["final_obs"], np.float32)))
                    rollout.next_values[t] = np.where(terminated, 0.0, final.numpy())
    with torch.inference_mode(), profiler.phase("forward"):
        # Nobody needs values during the rollout; many at once cost half as much as few at a time.
        observed = torch.from_numpy(rollout.observations)
        for start in range(0, len(rollout), rows := max(1, VALUES_AT_ONCE // clusters)):
            part = observed[start : start + rows]
            rollout.values[start : start + rows] = network.value(part.flatten(0, 1)).view(-1, clusters)
        last = network.value(torch.from_numpy(np.asarray(observation, np.float32))).numpy()
    following = np.concatenate([rollout.values[1:], last[None]])
    rollout.next_values = np.where(rollout.ends, rollout.next_values, following)
    _check_finite(rollout)
    return observation


def has_memory(network: object) -> bool:
    """Whether decisions depend on earlier ones."""
    return getattr(network, "state_size", 0) > 0


def _collect_with_memory(
    network: Any,
    env: Env,
    rollout: Rollout,
    observation: Observation,
    random: np.random.Generator,
    profiler: Profiler,
    temperature: float,
    epsilon: float,
    load_column: int | None,
    sequence_length: int,
) -> Observation:
    """The same for a network that remembers: acting and judging are one, step by step."""
    clusters = env.num_envs
    state = rollout.memory
    if state is None:
        state = network.initial_state(clusters, observation.shape[1])
    rollout.states, rollout.sequence_length = [], sequence_length
    uniforms = torch.from_numpy(random.random((len(rollout), clusters), np.float32))
    with torch.inference_mode(), torch_threads(ACTING):
        for t in range(len(rollout)):
            rollout.observations[t] = observation
            with profiler.phase("forward"):
                if t % sequence_length == 0:
                    rollout.states.append(state.clone())
                logits, values, state = network.step(torch.from_numpy(rollout.observations[t]), state)
                log_probs = behaviour_log_probs(logits, temperature, epsilon, _load(rollout, t, load_column))
                actions = sample(log_probs, uniforms[t])
                rollout.actions[t] = actions.numpy()
                rollout.log_probs[t] = chosen(log_probs, actions).numpy()
                rollout.values[t] = values.numpy()
            with profiler.phase("simulate"):
                observation, rewards, terminated, truncated, info = env.step(rollout.actions[t])
            rollout.rewards[t] = rewards
            rollout.elapsed_s[t] = info["elapsed_s"]
            np.logical_or(terminated, truncated, out=rollout.ends[t])
            ended = rollout.ends[t]
            if ended.any():
                last = torch.from_numpy(np.asarray(info["final_obs"], np.float32))
                final = network.step(last, state)[1].numpy()
                rollout.next_values[t] = np.where(terminated, 0.0, final)
                state = state * torch.from_numpy(~ended)[:, None, None]
        following = network.step(torch.from_numpy(np.asarray(observation, np.float32)), state)[1]
    values_after = np.concatenate([rollout.values[1:], following.numpy()[None]])
    rollout.next_values = np.where(rollout.ends, rollout.next_values, values_after)
    rollout.memory = state.clone()
    _check_finite(rollout)
    return observation


def _load(rollout: Rollout, t: int, column: int | None) -> Tensor | None:
    """(K, R) how much is on each replica at step t, if anyone asks."""
    return None if column is None else torch.from_numpy(rollout.observations[t][..., column])


def _check_finite(rollout: Rollout) -> None:
    for name in ("observations", "rewards", "elapsed_s", "log_probs", "values"):
        array = getattr(rollout, name)
        # A sum is finite only if all terms are; it is much cheaper than looking at each.
        if not np.isfinite(array.sum(dtype=np.float64)):
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise FairleadError(
                f"{name} is not finite at step {where[0]} of the rollout, cluster {where[1]}"
                f"{f', index {where[2:]}' if where[2:] else ''}"
            )
