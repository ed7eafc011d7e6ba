"""A training run on named scenarios: builds environments, teacher and validation, then trains."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fairlead.env.vector import RouterVectorEnv
from fairlead.errors import FairleadError
from fairlead.policy.heuristics import HEURISTICS
from fairlead.policy.network import NetworkRouter
from fairlead.train import trainer
from fairlead.train.config import TrainConfig
from fairlead.train.surroundings import Judgement
from fairlead.train.teachers import Teacher, make_teacher
from fairlead.train.tracking import Progress
from fairlead.train.trainer import TrainResult
from fairlead.train.validation import Validations
from fairlead.workload.scenario import Scenario

OnProgress = Callable[[str, float, float], None]
"""Called with (what is being done, done, total)."""
Say = Callable[[str], None]

SCENARIOS_FILE = "scenarios.json"
CONFIG_FILE = "config.json"


class Judge:
    """The held-out evaluation of a run, and the milestones that it passed."""

    def __init__(self, validation: Validations, say: Say) -> None:
        """`say` is told when every heuristic is beaten for the first time."""
        self._validation = validation
        self._say = say
        self._started = time.monotonic()
        self.beat_heuristics_after_s: float | None = None

    def __call__(self, router: NetworkRouter) -> Judgement:
        """The mean ratio of the policy's objective to that of the best heuristic; below 1 it wins."""
        report = self._validation(router)
        if self.beat_heuristics_after_s is None and report.objective < 1.0:
            self.beat_heuristics_after_s = time.monotonic() - self._started
            self._say(
                f"after {self.beat_heuristics_after_s:.0f} s what the dial weighs is on average "
                f"{100 * (1 - report.objective):.1f} % below the best heuristic of each setting (below it in "
                f"{100 * report.beaten:.0f} % of them), on the validation requests"
            )
        return Judgement(report.objective, report.against)


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
        scenarios: of one or several sizes; empty when resuming.
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
    if config.live is not None:
        raise FairleadError("settings under `live` are for training on live servers: name them (--backend)")
    by_size: dict[int, list[Scenario]] = {}
    for scenario in sorted(scenarios, key=lambda each: each.num_replicas):
        by_size.setdefault(scenario.num_replicas, []).append(scenario)
    _check_curriculum(config, by_size)
    teacher = _teacher(config, scenarios)
    validation = Validations(scenarios, config.validation, config.validation_favors)
    judge = Judge(validation, say)

    # What is learnt from a cluster that still fills up does not hold for one in full swing: a round of
    # imitation is one episode, however long.
    length = config.ppo.rollout_steps * config.ppo.reset_every
    round_ = 0 if config.imitation is None else max(config.imitation.steps, config.imitation.teacher_steps)

    def environments(total: int, group: int, length: int, favor_power: float) -> list[RouterVectorEnv]:
        settings = config.environment
        counts = [len(each) for each in by_size.values()]
        return [
            RouterVectorEnv(
                those,
                num_envs=num_envs,
                group=group,
                episode_requests=length,
                load=settings.load,
                favor=settings.favor,
                favor_power=favor_power,
                reward=settings.reward,
                safety=settings.safety,
            )
            for those, num_envs in zip(by_size.values(), shares(total, counts, group), strict=True)
        ]

    result = trainer.train(
        config,
        out,
        lambda: environments(
            config.environment.num_envs,
            config.environment.group,
            length,
            config.environment.favor_power,
        ),
        make_imitation_env=lambda: environments(
            config.environment.imitation_envs, 1, max(length, round_), favor_power=1.0
        ),
        teacher=teacher,
        evaluate=judge,
        on_progress=lambda event: show(event, progress, say),
        resume=resume,
        extra_files={SCENARIOS_FILE: scenarios_text(scenarios)},
        heuristics=tuple(HEURISTICS),
    )
    if result.ended_early:
        say(f"training ended early: {result.ended_early}; --start-from {result.policy} goes on in a new run")
    if config.start_from is not None:
        say(_gained(result))
    elif judge.beat_heuristics_after_s is None and not resume:
        say("no policy of this run was better than the best heuristic on average")
    say(_time_by_phase(result))
    return result


def scenarios_text(scenarios: Sequence[Scenario]) -> str:
    """Scenarios in full, as a run keeps them."""
    return json.dumps([scenario.model_dump(mode="json") for scenario in scenarios], indent=1)


def _teacher(config: TrainConfig, scenarios: Sequence[Scenario]) -> Teacher | None:
    """Whom to imitate.

    Raises:
        FairleadError: for an unknown teacher, and one of a scenario that is not trained on.
    """
    names = {s.name for s in scenarios}
    for setting, named in (
        ("teachers", config.teachers),
        ("imitation.weights", {} if config.imitation is None else config.imitation.weights),
    ):
        unknown = sorted(set(named) - names)
        if unknown:
            raise FairleadError(f"{setting} names {unknown[0]}, which is not trained on")
    if config.imitation is None:
        return None
    return make_teacher(
        config.teacher,
        privileged=config.privileged,
        elsewhere=config.teachers,
        decisions=config.imitation.counterfactual_decisions,
    )


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


def shares(total: int, counts: Sequence[int], group: int) -> list[int]:
    """About `total` clusters dealt to sizes of which there are `counts` scenarios, in whole groups.

    Every scenario gets at least one group, even if that takes more clusters: groups are dealt the scenarios
    in turn, and with fewer the last ones would never be seen. The others follow in proportion.
    """
    given = list(counts)
    for _ in range(total // group - sum(counts)):
        behind = [sum(given) * n / sum(counts) - have for n, have in zip(counts, given, strict=True)]
        given[behind.index(max(behind))] += 1
    return [each * group for each in given]


def _check_curriculum(config: TrainConfig, by_size: dict[int, list[Scenario]]) -> None:
    """Every stage that names scenarios names known ones, and some of each size.

    Raises:
        FairleadError: if one does not.
    """
    for stage in config.environment.curriculum:
        if stage.scenarios is None:
            continue
        known = {s.name for those in by_size.values() for s in those}
        for name in sorted(set(stage.scenarios) - known):
            raise FairleadError(f"the stage at {stage.begins:g} names {name}, which is not trained on")
        for size, those in by_size.items():
            if not any(s.name in stage.scenarios for s in those):
                raise FairleadError(
                    f"the stage at {stage.begins:g} names no scenario with {size} replicas: name one"
                )


def show(event: Progress, progress: OnProgress, say: Say) -> None:
    """Pass on to a person how far training is."""
    if event.stage == "curriculum":
        low, high = event.metrics["load_low"], event.metrics["load_high"]
        loads = f"load {low:.2f} to {high:.2f}" if low == low else "at the scenarios' own loads"
        stage = f"stage {event.metrics['stage'] + 1:.0f}"
        say(f"iteration {event.done}: {stage} of the curriculum begins, {loads}")
    elif event.stage != "evaluation":
        progress(event.stage, event.done, event.total)


def _gained(result: TrainResult) -> str:
    before = result.history[0]["objective"]
    return (
        "what the dial weighs, on held-out requests, as a share of each setting's best heuristic: "
        f"{before:.4f} with the policy that it started from, {result.objective:.4f} with the one that is kept"
    )


def _time_by_phase(result: TrainResult) -> str:
    total = sum(result.seconds_by_phase.values()) or 1.0
    parts = sorted(result.seconds_by_phase.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{phase} {100 * s / total:.0f} %" for phase, s in parts if s > 0)
    return f"trained on {result.decisions:,} decisions in {result.seconds:.0f} s ({shares})"
