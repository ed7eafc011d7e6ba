"""The state of a training run: all that changes while it runs, to and from a checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter, actor_weights
from fairlead.policy.network import RouterNetwork
from fairlead.policy.packaged import policy_path
from fairlead.train import ppo
from fairlead.train.checkpoint import load_weights
from fairlead.train.config import TrainConfig
from fairlead.train.controllers import Controllers
from fairlead.train.curriculum import Setting, setting_at
from fairlead.train.demonstrations import Demonstrations
from fairlead.train.profiler import Profiler
from fairlead.train.returns import RewardScale
from fairlead.train.rollout import Observation
from fairlead.view.schema import schema_hash


@dataclass
class Best:
    """The weights that are kept: the best so far by held-out evaluation, or the last ones."""

    objective: float
    """Lower is better."""
    iteration: int
    weights: dict[str, torch.Tensor]


@dataclass
class TrainState:
    """What a run is at the boundary between two iterations. Lists have one entry for each size of cluster."""

    network: RouterNetwork
    optimiser: torch.optim.Optimizer
    random: np.random.Generator
    """Draws actions and the order of minibatches."""
    controllers: Controllers
    scales: list[RewardScale] = field(default_factory=list)
    imitation_round: int = 0
    """Rounds of imitation done."""
    demonstrations: list[Demonstrations] = field(default_factory=list)
    """Empty once imitation is over, unless PPO goes on cloning."""
    iteration: int = 0
    """Iterations of critic warm-up and PPO done."""
    decisions: int = 0
    """Routed for training so far, in imitation and PPO."""
    episodes: list[list[npt.NDArray[np.int16]]] = field(default_factory=list)
    """Actions (T, K) of each iteration since the clusters were last reset."""
    memories: list[torch.Tensor | None] = field(default_factory=list)
    """What a network with a memory remembers at the decision at hand."""
    reference: dict[str, torch.Tensor] | None = None
    """Weights of the frozen policy that PPO stays near, if it does."""
    best: Best | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    """Held-out evaluations: iteration, decisions, seconds, objective."""
    seconds: float = 0.0
    """Of wall time, over all sessions of the run."""
    profiler: Profiler = field(default_factory=Profiler)

    def make_room(self, parts: int, demonstrations: int) -> None:
        """Entries for each part, where there are none yet."""
        self.scales += [RewardScale() for _ in range(parts - len(self.scales))]
        self.episodes += [[] for _ in range(parts - len(self.episodes))]
        self.memories += [None for _ in range(parts - len(self.memories))]
        self.demonstrations += [Demonstrations() for _ in range(demonstrations - len(self.demonstrations))]


def fresh(config: TrainConfig, features: tuple[str, ...]) -> TrainState:
    """The state at the start of a run."""
    network = new_network(config, features)
    torch.manual_seed(config.seed)
    state = TrainState(
        network=network,
        optimiser=imitation_optimiser(network) if config.imitation else ppo.make_optimiser(network),
        random=rng.stream(config.seed, "train", "samples"),
        controllers=Controllers(config.ppo.kl_coefficient),
    )
    if config.start_from is not None:
        _start_from(state, policy_path(config.start_from), features)
    return state


def new_network(config: TrainConfig, features: tuple[str, ...]) -> RouterNetwork:
    """Fresh weights of the configured architecture."""
    options: Any = config.network_options(features)
    return RouterNetwork(len(features), **options, seed=config.seed)


def _start_from(state: TrainState, path: Path, features: tuple[str, ...]) -> None:
    """Take over the actor of an exported policy.

    Raises:
        FairleadError: if it is missing, made for another schema, or of another architecture.
    """
    OnnxRouter(path, features=features)  # refuses what does not fit
    weights = {name: torch.from_numpy(value) for name, value in actor_weights(path).items()}
    own = state.network.state_dict()
    theirs = {name for name in own if name.startswith(("trunk.", "score_head."))}
    if {n: v.shape for n, v in weights.items()} != {n: own[n].shape for n in theirs}:
        raise FairleadError(
            f"{path} holds a network of another architecture than `network` describes: set its sizes to "
            "those that it was trained with"
        )
    load_weights(state.network, own | weights)


def imitation_optimiser(network: RouterNetwork) -> torch.optim.Optimizer:
    """Adam for the actor alone."""
    return torch.optim.Adam(network.actor_parameters())


def contents(state: TrainState, features: tuple[str, ...]) -> dict[str, Any]:
    """The state as plain data and tensors, for `checkpoint.save`."""
    best = state.best
    return {
        "schema_hash": schema_hash(features),
        "iteration": state.iteration,
        "decisions": state.decisions,
        "network": state.network.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "numpy_random": state.random.bit_generator.state,
        "torch_random": torch.get_rng_state(),
        "reward_scale": [scale.state() for scale in state.scales],
        "controllers": state.controllers.state(),
        "episode": [[torch.from_numpy(actions) for actions in episode] for episode in state.episodes],
        "memory": state.memories,
        "reference": state.reference,
        "imitation": {
            "round": state.imitation_round,
            "demonstrations": [each.state() for each in state.demonstrations],
        },
        "best": None if best is None else vars(best),
        "history": state.history,
        "seconds": state.seconds,
        "seconds_by_phase": state.profiler.seconds,
    }


def restore(saved: dict[str, Any], config: TrainConfig, features: tuple[str, ...]) -> TrainState:
    """The state that `contents` was made from.

    Raises:
        FairleadError: if it learnt from other features, or from a dial that meant something else.
    """
    state = fresh(config.model_copy(update={"start_from": None}), features)
    load_weights(state.network, saved["network"])
    if saved["schema_hash"] != schema_hash(features):
        raise FairleadError(
            "the checkpoint belongs to another view schema or dial (schema hash "
            f"{saved['schema_hash']}, here {schema_hash(features)}); start a new run"
        )
    imitation = saved["imitation"]
    if config.imitation is None or imitation["round"] == config.imitation.rounds:
        state.optimiser = ppo.make_optimiser(state.network)
    state.optimiser.load_state_dict(saved["optimiser"])
    state.random.bit_generator.state = saved["numpy_random"]
    torch.set_rng_state(saved["torch_random"])
    state.controllers = Controllers.load(saved["controllers"])
    for kept in saved["reward_scale"]:
        state.scales.append(scale := RewardScale())
        scale.load(kept)
    for kept in imitation["demonstrations"]:
        state.demonstrations.append(demonstrations := Demonstrations())
        demonstrations.load(kept)
    state.imitation_round = imitation["round"]
    state.episodes = [[actions.numpy() for actions in episode] for episode in saved["episode"]]
    state.memories = saved["memory"]
    state.best = None if saved["best"] is None else Best(**saved["best"])
    state.profiler.seconds = dict(saved["seconds_by_phase"])
    for name in ("iteration", "decisions", "reference", "history", "seconds"):
        setattr(state, name, saved[name])
    return state


def env_seed(seed: int, *names: str | int) -> int:
    """A seed for an environment's reset, from the named stream."""
    return int(rng.word(seed, "train", *names) >> np.uint64(33))


def episode_start(env: Any, config: TrainConfig, state: TrainState, part: int) -> Observation:
    """The observation at the start of the coming iteration's rollout, where episodes begin or in the middle.

    Environments need not be saved: an episode is a function of its seed, which comes from the iteration at
    which it began, and of the actions since, which are replayed.
    """
    began = state.iteration - state.iteration % config.ppo.reset_every
    if state.iteration == began:
        state.episodes[part], state.memories[part] = [], None
        state.scales[part].restart()
    apply_curriculum(env, config, began)
    names = ("episode", began) if part == 0 else ("episode", began, part)
    observation: Observation
    observation, _ = env.reset(seed=env_seed(config.seed, *names))
    for actions in state.episodes[part]:
        for row in actions:
            observation, *_ = env.step(row.astype(np.int64))
    if hasattr(env, "take_statistics"):
        env.take_statistics()  # what was replayed has been counted before
    return observation


def apply_curriculum(env: Any, config: TrainConfig, began: int) -> Setting:
    """Give an environment what the curriculum says about the episode that begins at iteration `began`."""
    settings = config.environment
    setting = setting_at(settings.curriculum, config.ppo.progress(began), settings.load, settings.reward)
    if settings.curriculum:
        shares = setting.scenarios
        if shares is not None:
            here = {scenario.name for scenario in env.scenarios}
            shares = {name: share for name, share in shares.items() if name in here}
        env.configure(load=setting.load, scenarios=shares, reward=setting.reward)
    return setting
