"""A training run on named scenarios: builds environments, teacher and validation, then trains."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.env.vector import RouterVectorEnv
from fairlead.errors import FairleadError
from fairlead.policy.heuristics import Heuristic
from fairlead.policy.network import NetworkRouter
from fairlead.train import imitation, trainer
from fairlead.train.config import TrainConfig
from fairlead.train.imitation import Teacher
from fairlead.train.tracking import Progress
from fairlead.train.trainer import TrainResult
from fairlead.train.validation import Validation
from fairlead.workload.scenario import Scenario

OnProgress = Callable[[str, float, float], None]
"""Called with (what is being done, done, total)."""
Say = Callable[[str], None]

SCENARIOS_FILE = "scenarios.json"
CONFIG_FILE = "config.json"


class Judge:
    """The held-out evaluation of a run, and the milestones that it passed."""

    def __init__(self, validation: Validation, say: Say) -> None:
        """`say` is told when every heuristic is beaten for the first time."""
        self._validation = validation
        self._say = say
        self._started = time.monotonic()
        self.beat_heuristics_after_s: float | None = None

    def __call__(self, router: NetworkRouter) -> float:
        """The mean ratio of the policy's objective to that of the best heuristic; below 1 it wins."""
        report = self._validation(router)
        if self.beat_heuristics_after_s is None and report.objective < 1.0:
            self.beat_heuristics_after_s = time.monotonic() - self._started
            self._say(
                f"after {self.beat_heuristics_after_s:.0f} s the policy beats each setting's best heuristic "
                f"by {100 * (1 - report.objective):.1f} % on average, in {100 * report.beaten:.0f} % of them"
            )
        return report.objective


def train(
    config: TrainConfig,
    scenarios: Sequence[Scenario],
    out: Path,
    resume: bool = False,
    progress: OnProgress = lambda what, done, total: None,
    say: Say = lambda message: None,
) -> TrainResult:
    """Train a policy on `scenarios`, or go on with the run in `out`.

    Args:
        config: all settings (of a run that is resumed: those it began with, whatever is given here).
        scenarios: with one number of replicas; empty when resuming.
        out: directory of the run.
        resume: go on from its checkpoint.
        progress: told how far each phase is.
        say: told what a person may want to read.

    Raises:
        FairleadError: for settings that contradict each other, a directory that holds another run, or
            nothing to resume.
    """
    if resume:
        config, scenarios = saved_run(out)
    else:
        trainer.check_free(out)
    sizes = sorted({scenario.num_replicas for scenario in scenarios})
    if len(sizes) > 1:
        raise FairleadError(
            f"scenarios with {' and '.join(map(str, sizes))} replicas cannot be trained on together: name "
            "those of one size (the policy runs on any)"
        )
    teacher = None if config.imitation is None else make_teacher(config.teacher)
    validation = Validation(scenarios, config.validation.loads, config.validation_favors)
    judge = Judge(validation, say)

    def environment(num_envs: int, group: int) -> RouterVectorEnv:
        settings = config.environment
        length = config.ppo.rollout_steps * config.ppo.reset_every
        return RouterVectorEnv(
            scenarios,
            # Groups are dealt the scenarios in turn: with fewer groups, the last ones would never be seen.
            num_envs=max(num_envs, group * len(scenarios)),
            group=group,
            episode_requests=length,
            load=settings.load,
            favor=settings.favor,
        )

    kept = json.dumps([s.model_dump(mode="json") for s in scenarios], indent=1)
    result = trainer.train(
        config,
        out,
        lambda: environment(config.environment.num_envs, config.environment.group),
        make_imitation_env=lambda: environment(config.environment.imitation_envs, 1),
        teacher=teacher,
        evaluate=judge,
        on_progress=lambda event: _show(event, progress),
        resume=resume,
        extra_files={SCENARIOS_FILE: kept},
    )
    if judge.beat_heuristics_after_s is None and not resume:
        say("no policy of this run was better than the best heuristic on average")
    say(_time_by_phase(result))
    return result


def saved_run(out: Path) -> tuple[TrainConfig, list[Scenario]]:
    """Configuration and scenarios of the run in `out`.

    Raises:
        FairleadError: if there is none.
    """
    try:
        config = TrainConfig.model_validate_json((out / CONFIG_FILE).read_text(encoding="utf-8"))
        scenarios = json.loads((out / SCENARIOS_FILE).read_text(encoding="utf-8"))
        return config, [Scenario.model_validate(each) for each in scenarios]
    except (OSError, ValueError) as error:
        raise FairleadError(f"{out} holds no training run that can be resumed ({error})") from None


def make_teacher(name: str) -> Teacher:
    """The teacher called `name`: lookahead, or a heuristic whose choices follow from the view.

    Raises:
        FairleadError: for an unknown router, and for one that cannot be imitated.
    """
    if name == "lookahead":
        return imitation.lookahead()
    if name in ("random", "round_robin", "p2c"):
        raise FairleadError(
            f"{name} cannot be imitated: its choices do not follow from what a router sees; "
            "take another teacher, for example lookahead or least_work"
        )
    router = Heuristic(name)

    def label(env: Any) -> npt.NDArray[np.int64]:
        if env.num_envs != len(router.states):
            router.reset(env.num_envs, env.clusters.R, 0)
        return router.route(env.clusters.view)

    return Teacher(name, label)


def _show(event: Progress, progress: OnProgress) -> None:
    if event.stage != "evaluation":
        progress(event.stage, event.done, event.total)


def _time_by_phase(result: TrainResult) -> str:
    total = sum(result.seconds_by_phase.values()) or 1.0
    parts = sorted(result.seconds_by_phase.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{phase} {100 * s / total:.0f} %" for phase, s in parts if s > 0)
    return f"trained on {result.decisions:,} decisions in {result.seconds:.0f} s ({shares})"
