"""The main path of training: imitation, critic warm-up, PPO; evaluation keeps the best; export.

A run lives in one directory: `config.json`, `checkpoint.pt` (written between iterations), `imitation.csv`,
`training.csv`, `tensorboard/`, and `policy.onnx`, the best policy so far by held-out evaluation.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fairlead.errors import FairleadError
from fairlead.policy.artefact import export_onnx
from fairlead.policy.network import NetworkRouter
from fairlead.train import checkpoint, imitation, ppo
from fairlead.train.config import ImitationConfig, TrainConfig
from fairlead.train.imitation import Teacher
from fairlead.train.rollout import Env, Rollout
from fairlead.train.state import (
    Best,
    TrainState,
    contents,
    env_seed,
    episode_start,
    fresh,
    restore,
)
from fairlead.train.threads import ACTING, torch_threads
from fairlead.train.tracking import Progress, Tracker
from fairlead.view.features import FEATURES

Evaluate = Callable[[NetworkRouter], float]
"""Held-out objective of a router; lower is better."""
OnProgress = Callable[[Progress], None]

SETTINGS = ("actor_learning_rate", "critic_learning_rate", "entropy_coefficient", "kl_coefficient")
TRAINING_COLUMNS = (
    "iteration",
    "charts/decisions",
    "charts/seconds",
    "charts/decisions_per_s",
    *(f"charts/{name}" for name in (*SETTINGS, "temperature", "epsilon", *ppo.ROLLOUTS)),
    *(f"losses/{name}" for name in ppo.LOSSES),
    "evaluation/objective",
)
IMITATION_COLUMNS = (
    "round",
    "imitation/decisions",
    "imitation/seconds",
    "imitation/loss",
    *(f"imitation/{name}" for name in imitation.SCORES),
    "imitation/driving_agreement",
)


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
    """After which it was exported (0: right after imitation)."""
    decisions: int
    """Routed for training in all."""
    seconds: float
    seconds_by_phase: dict[str, float]
    history: list[dict[str, float]]
    """Held-out evaluations: iteration, decisions, seconds, objective."""


@dataclass
class Run:
    """The fixed surroundings of a run."""

    config: TrainConfig
    directory: Path
    evaluate: Evaluate | None
    on_progress: OnProgress
    features: tuple[str, ...]
    extra_files: Mapping[str, str]

    def save(self, state: TrainState) -> None:
        """Write the checkpoint."""
        with state.profiler.phase("checkpoint"):
            checkpoint.save(self.directory / "checkpoint.pt", contents(state), self.config)

    def judge(self, state: TrainState) -> float:
        """Evaluate the network as it is and keep it if it is the best; NaN without an evaluation."""
        if self.evaluate is None:
            return float("nan")
        self.on_progress(Progress("evaluation", state.iteration, self.config.ppo.total_iterations, {}))
        with state.profiler.phase("evaluate"), torch_threads(ACTING):
            objective = float(self.evaluate(NetworkRouter(state.network)))
        if objective != objective:
            raise FairleadError(f"the evaluation after iteration {state.iteration} gave NaN")
        state.history.append(
            {
                "iteration": state.iteration,
                "decisions": state.decisions,
                "seconds": state.seconds,
                "objective": objective,
            }
        )
        if state.best is None or objective < state.best.objective:
            weights = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
            state.best = Best(objective, state.iteration, weights)
            self.export(state)
        return objective

    def export(self, state: TrainState) -> Path:
        """Write the network as it is to `policy.onnx`."""
        path = self.directory / "policy.onnx"
        training = {
            "seed": self.config.seed,
            "iteration": state.iteration,
            "decisions": state.decisions,
            "objective": state.best.objective if state.best else None,
        }
        config = self.config.model_dump(mode="json")
        export_onnx(state.network, path, config=config, training=training, features=self.features)
        return path


def train(
    config: TrainConfig,
    directory: Path,
    make_env: Callable[[], Env],
    *,
    make_imitation_env: Callable[[], Env] | None = None,
    teacher: Teacher | None = None,
    evaluate: Evaluate | None = None,
    on_progress: OnProgress = lambda progress: None,
    resume: bool = False,
    features: tuple[str, ...] = FEATURES,
    extra_files: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train a policy.

    Args:
        config: all settings.
        directory: of the run; new or empty, or that of the run to resume.
        make_env: the clusters to train on.
        make_imitation_env: the clusters to imitate on, preferably few and each with its own arrivals; by
            default those of `make_env`.
        teacher: whom to imitate; by default lookahead at the environment's own weights.
        evaluate: held-out objective, called now and then; without it the last weights are exported.
        on_progress: called often with what has been done.
        resume: continue from the directory's checkpoint, bit for bit.
        features: names of the last axis of the observations.
        extra_files: further text files for a fresh directory, by name.

    Raises:
        FairleadError: if the directory holds another run, there is nothing to resume, or a number is not
            finite.
        TrainingInterrupted: on Ctrl-C; the checkpoint is complete.
    """
    run = Run(config, directory, evaluate, on_progress, features, extra_files or {})
    state: TrainState | None = None
    with torch_threads(config.threads), torch.random.fork_rng(devices=[]):
        try:
            state = _begin(run, resume)
            if config.imitation is not None and state.imitation_round < config.imitation.rounds:
                _imitate(run, state, config.imitation, (make_imitation_env or make_env)(), teacher)
            _improve(run, state, make_env())
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                f"interrupted; the run can be resumed from {directory / 'checkpoint.pt'}"
            ) from None
    best = state.best
    return TrainResult(
        policy=directory / "policy.onnx" if best else run.export(state),
        objective=best.objective if best else None,
        iteration=best.iteration if best else state.iteration,
        decisions=state.decisions,
        seconds=state.seconds,
        seconds_by_phase=dict(state.profiler.seconds),
        history=state.history,
    )


def check_free(directory: Path) -> None:
    """Refuse a directory that holds anything.

    Raises:
        FairleadError: if it is not new or empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FairleadError(f"{directory} is not empty; resume the run in it or choose another directory")


def _begin(run: Run, resume: bool) -> TrainState:
    """A fresh state in a fresh directory, or that of the checkpoint."""
    if resume:
        saved = checkpoint.load(run.directory / "checkpoint.pt", run.config)
        return restore(saved, run.config, len(run.features))
    check_free(run.directory)
    run.directory.mkdir(parents=True, exist_ok=True)
    (run.directory / "config.json").write_text(run.config.model_dump_json(indent=2) + "\n")
    for name, text in run.extra_files.items():
        (run.directory / name).write_text(text, encoding="utf-8")
    state = fresh(run.config, len(run.features))
    run.save(state)
    return state


def _imitate(run: Run, state: TrainState, config: ImitationConfig, env: Env, teacher: Teacher | None) -> None:
    """The rounds of DAgger still to do; a checkpoint after each."""
    teacher = teacher or imitation.lookahead()
    while state.imitation_round < config.rounds:
        round_, first = state.imitation_round, state.imitation_round == 0
        with Tracker(run.directory, "imitation", IMITATION_COLUMNS, keep_below=round_) as tracker:
            started, seconds = time.perf_counter(), state.seconds
            collected = len(state.demonstrations)

            def tell(done: int, total: int, share: float, round_: int = round_) -> None:
                thousandths = round(1000 * (round_ + share * done / total))
                run.on_progress(Progress("imitation", thousandths, 1000 * config.rounds, {}))

            imitation.collect(
                state.network,
                env,
                teacher,
                state.demonstrations,
                config,
                first=first,
                seed=env_seed(run.config.seed, "imitation", round_),
                profiler=state.profiler,
                progress=lambda done, total: tell(done, 2 * total, 1.0),
            )
            steps = config.teacher_steps if first else config.steps
            state.decisions += steps * env.num_envs
            with state.profiler.phase("learn"):
                # On states it has just driven into and not learnt from: what the student is really like.
                driving = imitation.score(state.network, state.demonstrations.since(collected))
                fit, holdout = state.demonstrations.split(config.holdout_every)
                loss = imitation.fit(
                    state.network,
                    state.optimiser,
                    fit,
                    config,
                    round_,
                    state.random,
                    progress=lambda done, total: tell(total + done, 2 * total, 1.0),
                )
                scores = imitation.score(state.network, holdout)
            state.imitation_round += 1
            state.seconds = seconds + time.perf_counter() - started
            row = {
                "round": round_,
                "imitation/decisions": state.decisions,
                "imitation/seconds": state.seconds,
                "imitation/loss": loss,
                **{f"imitation/{name}": score for name, score in scores.items()},
                "imitation/driving_agreement": driving["agreement"],
            }
            tracker.write(row)
            run.on_progress(Progress("imitation", 1000 * state.imitation_round, 1000 * config.rounds, row))
        if state.imitation_round == config.rounds:
            state.demonstrations = imitation.Demonstrations()
            state.optimiser = ppo.make_optimiser(state.network)
            run.judge(state)
        run.save(state)


def _improve(run: Run, state: TrainState, env: Env) -> None:
    """The iterations of critic warm-up and PPO still to do."""
    config = run.config
    total = config.ppo.total_iterations
    rollout = Rollout(config.ppo.rollout_steps, env.num_envs, env.single_observation_space.shape)
    observation = None
    with Tracker(run.directory, "training", TRAINING_COLUMNS, keep_below=state.iteration) as tracker:
        while state.iteration < total:
            started, seconds = time.perf_counter(), state.seconds
            if observation is None or state.iteration % config.ppo.reset_every == 0:
                with state.profiler.phase("simulate"):
                    observation = episode_start(env, config, state)
            knobs = ppo.knobs_at(config.ppo, state.iteration, state.kl_coefficient)
            observation, metrics = ppo.iterate(
                state.network,
                state.optimiser,
                env,
                rollout,
                observation,
                state.scale,
                config.ppo,
                knobs,
                state.random,
                state.profiler,
            )
            if knobs.train_actor:
                state.kl_coefficient = ppo.next_kl_coefficient(
                    knobs.kl_coefficient, metrics["kl"], config.ppo
                )
            state.episode.append(rollout.actions.astype("int16"))
            state.iteration += 1
            state.decisions += rollout.actions.size
            elapsed = time.perf_counter() - started
            state.seconds = seconds + elapsed
            out_of_time = config.minutes is not None and state.seconds > 60 * config.minutes
            last = state.iteration == total or out_of_time
            due = state.iteration % config.evaluate_every == 0 or last
            objective = run.judge(state) if due and knobs.train_actor else float("nan")
            settings = {name: value for name, value in knobs._asdict().items() if name != "train_actor"}
            row = {
                "iteration": state.iteration - 1,
                "charts/decisions": state.decisions,
                "charts/seconds": state.seconds,
                "charts/decisions_per_s": rollout.actions.size / elapsed,
                **{f"charts/{name}": value for name, value in settings.items()},
                **{f"charts/{name}": metrics[name] for name in ppo.ROLLOUTS},
                **{f"losses/{name}": metrics[name] for name in ppo.LOSSES},
                "evaluation/objective": objective,
            }
            state.seconds = seconds + time.perf_counter() - started
            tracker.write(row)
            if state.iteration % config.checkpoint_every == 0 or last:
                run.save(state)
            stage = "ppo" if knobs.train_actor else "critic warm-up"
            run.on_progress(Progress(stage, state.iteration, total, row))
            if out_of_time:
                return
