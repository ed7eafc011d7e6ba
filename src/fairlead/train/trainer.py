"""The main path of training: imitation, critic warm-up, PPO; evaluation keeps the best; export.

A run lives in one directory: `config.json`, `checkpoint.pt` (written between iterations), `imitation.csv`,
`training.csv`, `tensorboard/`, and `policy.onnx`, the best policy so far by held-out evaluation, or the last
one evaluated (`keep`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fairlead.errors import FairleadError
from fairlead.train import checkpoint
from fairlead.train.config import TrainConfig
from fairlead.train.device import check_device
from fairlead.train.failure import NotFinite, dump
from fairlead.train.iterations import improve
from fairlead.train.rollout import Enough, Env
from fairlead.train.rounds import imitate
from fairlead.train.state import TrainState, fresh, restore
from fairlead.train.surroundings import Evaluate, MakeEnvs, OnProgress, Run
from fairlead.train.teachers import Teacher, lookahead
from fairlead.train.threads import torch_threads
from fairlead.view.features import FEATURES


class TrainingInterrupted(FairleadError):
    """Stopped by the user; the checkpoint continues the run."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves."""

    policy: Path
    """The exported policy: the best by evaluation, or the last if nothing was evaluated."""
    objective: float | None
    """Of that policy."""
    iteration: int
    """After which it was exported (0: before the first, during imitation or after it)."""
    decisions: int
    """Routed for training in all."""
    seconds: float
    seconds_by_phase: dict[str, float]
    history: list[dict[str, float]]
    """Held-out evaluations: iteration, decisions, seconds, objective."""
    ended_early: str = ""
    """Why training ended before all iterations were done, if it did."""


def train(
    config: TrainConfig,
    directory: Path,
    make_env: MakeEnvs,
    *,
    make_imitation_env: MakeEnvs | None = None,
    teacher: Teacher | None = None,
    evaluate: Evaluate | None = None,
    on_progress: OnProgress = lambda progress: None,
    resume: bool = False,
    features: tuple[str, ...] = FEATURES,
    extra_files: Mapping[str, str] | None = None,
    heuristics: tuple[str, ...] = (),
) -> TrainResult:
    """Train a policy.

    Args:
        config: all settings.
        directory: of the run; new or empty, or that of the run to resume.
        make_env: the clusters to train on: one vector environment, or one for each size of cluster.
        make_imitation_env: the clusters to imitate on, preferably few and each with its own arrivals; by
            default those of `make_env`.
        teacher: whom to imitate; by default lookahead at the environment's own weights.
        evaluate: held-out objective, called now and then; without it the last weights are exported.
        on_progress: called often with what has been done.
        resume: continue from the directory's checkpoint, bit for bit.
        features: names of the last axis of the observations.
        extra_files: further text files for a fresh directory, by name.
        heuristics: names that `evaluate` compares with, for the log.

    Raises:
        FairleadError: if the directory holds another run, there is nothing to resume, the device is not
            there, or a number is not finite (then `failure.pt` holds what it came from).
        TrainingInterrupted: on Ctrl-C; the checkpoint is complete.
    """
    check_device(config.device)
    run = Run(config, directory, evaluate, on_progress, features, extra_files or {}, heuristics)
    state: TrainState | None = None
    ended_early = ""
    with torch_threads(config.threads), torch.random.fork_rng(devices=[]):
        try:
            state = _begin(run, resume)
            if config.start_from is not None and state.best is None:
                run.judge(state)  # what it has to become better than
            imitating = config.imitation is not None and state.imitation_round < config.imitation.rounds
            if config.imitation is not None and imitating and not run.out_of_time(state):
                envs = _listed((make_imitation_env or make_env)())
                imitate(run, state, config.imitation, envs, teacher or lookahead())
            try:
                if not run.out_of_time(state):
                    improve(run, state, _listed(make_env()))
            except Enough as reason:
                ended_early = str(reason)
            if run.out_of_time(state) and state.iteration < config.ppo.total_iterations:
                ended_early = ended_early or f"its {config.minutes:g} minutes are over"
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                f"interrupted; the run can be resumed from {directory / 'checkpoint.pt'}"
            ) from None
        except NotFinite as error:
            raise _explained(error, run, state) from None
    best = state.best
    return TrainResult(
        policy=directory / "policy.onnx" if best else run.export(state),
        objective=best.objective if best else None,
        iteration=best.iteration if best else state.iteration,
        decisions=state.decisions,
        seconds=state.seconds,
        seconds_by_phase=dict(state.profiler.seconds),
        history=state.history,
        ended_early=ended_early,
    )


def _listed(envs: Env | Sequence[Env]) -> list[Env]:
    return list(envs) if isinstance(envs, Sequence) else [envs]


def _explained(error: NotFinite, run: Run, state: TrainState | None) -> FairleadError:
    """The error with the step at which it happened, and a file to reproduce it with."""
    assert state is not None
    path = dump(
        error,
        run.directory,
        iteration=state.iteration,
        imitation_round=state.imitation_round,
        decisions=state.decisions,
        network=state.network.state_dict(),
        config=run.config.model_dump_json(),
    )
    step = f"iteration {state.iteration}, after {state.decisions} decisions"
    return FairleadError(f"{error}; at {step}; what it was computed from is in {path}")


def check_free(directory: Path) -> None:
    """Refuse a directory that holds anything, or that cannot be.

    Raises:
        FairleadError: if it is not new or empty, or would lie below a file.
    """
    above = next(parent for parent in directory.absolute().parents if parent.exists())
    if not above.is_dir():
        raise FairleadError(
            f"{above} is a file, so that there can be no {directory}: choose another directory"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FairleadError(f"{directory} is not empty; resume the run in it or choose another directory")


def _begin(run: Run, resume: bool) -> TrainState:
    """A fresh state in a fresh directory, or that of the checkpoint."""
    if resume:
        saved = checkpoint.load(run.directory / "checkpoint.pt", run.config)
        return restore(saved, run.config, run.features)
    check_free(run.directory)
    state = fresh(run.config, run.features)
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FairleadError(f"cannot make the directory {run.directory}: {error.strerror}") from None
    (run.directory / "config.json").write_text(run.config.model_dump_json(indent=2) + "\n")
    for name, text in run.extra_files.items():
        (run.directory / name).write_text(text, encoding="utf-8")
    run.save(state)
    return state
