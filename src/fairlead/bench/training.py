"""Decisions per second of PPO, end to end: simulation, inference, learning and checkpoints."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fairlead.bench import Progress
from fairlead.env.vector import RouterVectorEnv
from fairlead.train import tracking
from fairlead.train.config import TrainConfig
from fairlead.train.trainer import TrainResult, train
from fairlead.workload.scenario import load_scenario

SCENARIOS = ("chat-equal", "chat-unequal")
"""Those of the demo."""
SETTINGS = TrainConfig(imitation=None)
LEAST_ITERATIONS = 4
"""A whole cycle of `reset_every`."""


def measure(seconds: float, progress: Progress) -> dict[str, Any]:
    """Train with the default settings for about `seconds`, after two iterations of warming up.

    Returns:
        `decisions_per_s`, `seconds_by_phase` of that time, and what was measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        warm = _train(2, Path(folder) / "warm", partial(_tell, progress, "warming up"))
        # The first iterations are slower than the rest: a shortfall in time is better than none.
        iterations = max(LEAST_ITERATIONS, round(seconds * 2 / warm.seconds))
        result = _train(iterations, Path(folder) / "timed", partial(_tell, progress, "training"))
    return {
        "decisions_per_s": result.decisions / result.seconds,
        "seconds_by_phase": {phase: s for phase, s in result.seconds_by_phase.items() if s > 0},
        "seconds": result.seconds,
        "decisions": result.decisions,
        "scenarios": ", ".join(SCENARIOS),
        "clusters": SETTINGS.environment.num_envs,
        "threads": SETTINGS.threads,
        "torch": torch.__version__,
    }


def _train(iterations: int, folder: Path, on_progress: Any) -> TrainResult:
    ppo = SETTINGS.ppo.model_copy(update={"iterations": iterations, "critic_warmup_iterations": 0})
    config = SETTINGS.model_copy(update={"ppo": ppo})
    scenarios = [load_scenario(name) for name in SCENARIOS]

    def environment() -> RouterVectorEnv:
        # One episode lasts from one fresh start to the next.
        length = config.ppo.rollout_steps * config.ppo.reset_every
        return RouterVectorEnv(
            scenarios,
            num_envs=config.environment.num_envs,
            group=config.environment.group,
            episode_requests=length,
            load=config.environment.load,
            favor=config.environment.favor,
        )

    return train(config, folder, environment, on_progress=on_progress)


def _tell(progress: Progress, what: str, event: tracking.Progress) -> None:
    progress(what, event.done, event.total)
