"""The state of a training run: all that changes while it runs, to and from a checkpoint."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairlead import rng
from fairlead.policy.network import RouterNetwork
from fairlead.train import ppo
from fairlead.train.checkpoint import load_weights
from fairlead.train.config import TrainConfig
from fairlead.train.imitation import Demonstrations
from fairlead.train.profiler import Profiler
from fairlead.train.returns import RewardScale
from fairlead.train.rollout import Env, Observation


@dataclass
class Best:
    """The best weights so far, by held-out evaluation."""

    objective: float
    """Lower is better."""
    iteration: int
    weights: dict[str, torch.Tensor]


@dataclass
class TrainState:
    """What a run is at the boundary between two iterations."""

    network: RouterNetwork
    optimiser: torch.optim.Optimizer
    random: np.random.Generator
    """Draws actions and the order of minibatches."""
    kl_coefficient: float
    scale: RewardScale = field(default_factory=RewardScale)
    imitation_round: int = 0
    """Rounds of imitation done."""
    demonstrations: Demonstrations = field(default_factory=Demonstrations)
    """Empty once imitation is over."""
    iteration: int = 0
    """Iterations of critic warm-up and PPO done."""
    decisions: int = 0
    """Routed for training so far, in imitation and PPO."""
    episode: list[npt.NDArray[np.int16]] = field(default_factory=list)
    """Actions (T, K) of each iteration since the clusters were last reset."""
    best: Best | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    """Held-out evaluations: iteration, decisions, seconds, objective."""
    seconds: float = 0.0
    """Of wall time, over all sessions of the run."""
    profiler: Profiler = field(default_factory=Profiler)


def fresh(config: TrainConfig, features: int) -> TrainState:
    """The state at the start of a run."""
    network = RouterNetwork(features, **config.network.model_dump(), seed=config.seed)
    torch.manual_seed(config.seed)
    return TrainState(
        network=network,
        optimiser=imitation_optimiser(network) if config.imitation else ppo.make_optimiser(network),
        random=rng.stream(config.seed, "train", "samples"),
        kl_coefficient=config.ppo.kl_coefficient,
    )


def imitation_optimiser(network: RouterNetwork) -> torch.optim.Optimizer:
    """Adam for the actor alone."""
    return torch.optim.Adam(network.actor_parameters())


def contents(state: TrainState) -> dict[str, Any]:
    """The state as plain data and tensors, for `checkpoint.save`."""
    best = state.best
    return {
        "iteration": state.iteration,
        "decisions": state.decisions,
        "network": state.network.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "numpy_random": state.random.bit_generator.state,
        "torch_random": torch.get_rng_state(),
        "reward_scale": state.scale.state(),
        "kl_coefficient": state.kl_coefficient,
        "episode": [torch.from_numpy(actions) for actions in state.episode],
        "imitation": {"round": state.imitation_round, **state.demonstrations.state()},
        "best": None if best is None else vars(best),
        "history": state.history,
        "seconds": state.seconds,
        "seconds_by_phase": state.profiler.seconds,
    }


def restore(saved: dict[str, Any], config: TrainConfig, features: int) -> TrainState:
    """The state that `contents` was made from."""
    state = fresh(config, features)
    load_weights(state.network, saved["network"])
    imitation = saved["imitation"]
    if config.imitation is None or imitation["round"] == config.imitation.rounds:
        state.optimiser = ppo.make_optimiser(state.network)
    state.optimiser.load_state_dict(saved["optimiser"])
    state.random.bit_generator.state = saved["numpy_random"]
    torch.set_rng_state(saved["torch_random"])
    state.scale.load(saved["reward_scale"])
    state.demonstrations.load(imitation)
    state.imitation_round = imitation["round"]
    state.episode = [actions.numpy() for actions in saved["episode"]]
    state.best = None if saved["best"] is None else Best(**saved["best"])
    state.profiler.seconds = dict(saved["seconds_by_phase"])
    for name in ("iteration", "decisions", "kl_coefficient", "history", "seconds"):
        setattr(state, name, saved[name])
    return state


def env_seed(seed: int, *names: str | int) -> int:
    """A seed for an environment's reset, from the named stream."""
    return int(rng.word(seed, "train", *names) >> np.uint64(33))


def episode_start(env: Env, config: TrainConfig, state: TrainState) -> Observation:
    """The observation at the start of the coming iteration's rollout, where episodes begin or in the middle.

    Environments need not be saved: an episode is a function of its seed, which comes from the iteration at
    which it began, and of the actions since, which are replayed.
    """
    began = state.iteration - state.iteration % config.ppo.reset_every
    if state.iteration == began:
        state.episode = []
        state.scale.restart()
    observation, _ = env.reset(seed=env_seed(config.seed, "episode", began))
    for actions in state.episode:
        for row in actions:
            observation, *_ = env.step(row.astype(np.int64))
    return observation
