"""The main path of training: imitation, critic warm-up, PPO; evaluation keeps the best; export.

A run lives in one directory: `config.json`, `checkpoint.pt` (written between iterations), `imitation.csv`,
`training.csv`, `tensorboard/`, and `policy.onnx`, the best policy so far by held-out evaluation, or the last
one evaluated (`keep`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from fairlead.errors import FairleadError
from fairlead.policy.export import export_onnx
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.train import checkpoint, imitation, logs, ppo
from fairlead.train.config import ImitationConfig, TrainConfig
from fairlead.train.curriculum import Setting, setting_at
from fairlead.train.demonstrations import Examples
from fairlead.train.device import check_device
from fairlead.train.failure import NotFinite, dump
from fairlead.train.ppo import Part
from fairlead.train.rollout import Enough, Env, Rollout
from fairlead.train.state import (
    Best,
    TrainState,
    contents,
    env_seed,
    episode_start,
    fresh,
    new_network,
    restore,
)
from fairlead.train.teachers import Teacher, lookahead
from fairlead.train.threads import ACTING, torch_threads
from fairlead.train.tracking import Progress, Tracker
from fairlead.view.features import FEATURES

LOAD_FEATURE = "in_flight"
"""What balance is about: requests in flight on each replica."""


class Judgement(NamedTuple):
    """What a held-out evaluation found."""

    objective: float
    """Lower is better."""
    against: Mapping[str, float] = {}
    """The policy's objective divided by that of each heuristic."""


Evaluate = Callable[[NetworkRouter], float | Judgement]
"""Held-out evaluation of a router."""
MakeEnvs = Callable[[], Env | Sequence[Env]]
"""One vector environment, or one for each size of cluster."""
OnProgress = Callable[[Progress], None]


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


@dataclass
class Run:
    """The fixed surroundings of a run."""

    config: TrainConfig
    directory: Path
    evaluate: Evaluate | None
    on_progress: OnProgress
    features: tuple[str, ...]
    extra_files: Mapping[str, str]
    heuristics: tuple[str, ...]

    def save(self, state: TrainState) -> None:
        """Write the checkpoint."""
        with state.profiler.phase("checkpoint"):
            checkpoint.save(self.directory / "checkpoint.pt", contents(state, self.features), self.config)

    def out_of_time(self, state: TrainState) -> bool:
        """Whether `minutes` are over, those of earlier sessions included."""
        return self.config.minutes is not None and state.seconds > 60 * self.config.minutes

    def judge(self, state: TrainState) -> Judgement:
        """Evaluate the network as it is and keep it if that is wanted; NaN without an evaluation."""
        if self.evaluate is None:
            return Judgement(float("nan"))
        self.on_progress(Progress("evaluation", state.iteration, self.config.ppo.total_iterations, {}))
        with state.profiler.phase("evaluate"), torch_threads(ACTING):
            found = self.evaluate(NetworkRouter(state.network))
        judgement = found if isinstance(found, Judgement) else Judgement(float(found))
        objective = float(judgement.objective)
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
        if self.config.keep == "last" or state.best is None or objective < state.best.objective:
            weights = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
            state.best = Best(objective, state.iteration, weights)
            self.export(state)
        state.controllers.after_evaluation(self.config.ppo.pulses, objective, dict(judgement.against))
        return judgement

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
                _imitate(run, state, config.imitation, envs, teacher or lookahead())
            try:
                if not run.out_of_time(state):
                    _improve(run, state, _listed(make_env()))
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


def _imitate(run: Run, state: TrainState, config: ImitationConfig, envs: list[Env], teacher: Teacher) -> None:
    """The rounds of DAgger still to do; a checkpoint after each."""
    length = config.sequence_length if run.config.network.recurrent else 1
    while state.imitation_round < config.rounds:
        state.make_room(0, len(envs))
        round_, first = state.imitation_round, state.imitation_round == 0
        with Tracker(run.directory, "imitation", logs.IMITATION_COLUMNS, keep_below=round_) as tracker:
            started, seconds = time.perf_counter(), state.seconds
            collected = [len(each) for each in state.demonstrations]

            def tell(done: int, total: int, round_: int = round_) -> None:
                thousandths = round(1000 * (round_ + done / total))
                run.on_progress(Progress("imitation", thousandths, 1000 * config.rounds, {}))

            steps = config.teacher_steps if first else config.steps
            reachable, weights = 0.0, 0
            for part, env in enumerate(envs):
                names = ("imitation", round_) if part == 0 else ("imitation", round_, part)

                def driven(done: int, total: int, part: int = part) -> None:
                    tell(part * total + done, 2 * len(envs) * total)

                reachable += env.num_envs * imitation.collect(
                    state.network,
                    env,
                    teacher,
                    state.demonstrations[part],
                    config,
                    first=first,
                    seed=env_seed(run.config.seed, *names),
                    profiler=state.profiler,
                    progress=driven,
                )
                weights += env.num_envs
                state.decisions += steps * env.num_envs
            with state.profiler.phase("learn"):
                # On states it has just driven into and not learnt from: what the student is really like.
                new = [d.since(n) for d, n in zip(state.demonstrations, collected, strict=True)]
                driving = imitation.score(state.network, new, config)
                pairs = [each.split(config.holdout_every, length) for each in state.demonstrations]
                loss = imitation.fit(
                    state.network,
                    state.optimiser,
                    [fit for fit, _ in pairs],
                    config,
                    round_,
                    state.random,
                    progress=lambda done, total: tell(total + done, 2 * total),
                    device=run.config.device,
                )
                scores = imitation.score(state.network, [holdout for _, holdout in pairs], config)
            state.imitation_round += 1
            state.seconds = seconds + time.perf_counter() - started
            row = {
                "round": round_,
                "imitation/decisions": state.decisions,
                "imitation/seconds": state.seconds,
                "imitation/loss": loss,
                **{f"imitation/{name}": score for name, score in scores.items()},
                "imitation/achievable_agreement": reachable / weights,
                "imitation/driving_agreement": driving["agreement"],
            }
            tracker.write(row)
            run.on_progress(Progress("imitation", 1000 * state.imitation_round, 1000 * config.rounds, row))
        last, out_of_time = state.imitation_round == config.rounds, run.out_of_time(state)
        if last or out_of_time or state.imitation_round % config.evaluate_every == 0:
            run.judge(state)
            state.seconds = seconds + time.perf_counter() - started  # an evaluation takes time too
        if last:
            if run.config.ppo.cloning.range[1] == 0:
                state.demonstrations = []
            state.optimiser = ppo.make_optimiser(state.network)
        run.save(state)
        if out_of_time:
            return


def _improve(run: Run, state: TrainState, envs: list[Env]) -> None:
    """The iterations of critic warm-up and PPO still to do."""
    config = run.config
    total = config.ppo.total_iterations
    state.make_room(len(envs), 0)
    parts = [
        Part(
            env,
            Rollout(config.ppo.rollout_steps, env.num_envs, env.single_observation_space.shape),
            state.scales[i],
        )
        for i, env in enumerate(envs)
    ]
    reference, cloning = _reference(run, state), _cloning(run, state)
    load_column = _load_column(run)
    columns = logs.training_columns(envs, run.heuristics)
    features = logs.feature_columns(run.features)
    keep = state.iteration
    with (
        Tracker(run.directory, "training", columns, keep_below=keep) as tracker,
        Tracker(run.directory, "features", features, keep_below=keep) as feature_tracker,
    ):
        while state.iteration < total:
            started, seconds = time.perf_counter(), state.seconds
            began = state.iteration - state.iteration % config.ppo.reset_every
            setting = current_setting(run, state, began)
            if parts[0].observation is None or state.iteration == began:
                with state.profiler.phase("simulate"):
                    for i, part in enumerate(parts):
                        part.observation = episode_start(part.env, config, state, i)
                        part.rollout.memory = state.memories[i]
            knobs = state.controllers.knobs(config.ppo, state.iteration)
            if config.ppo.exploration == "hierarchical":
                knobs = knobs._replace(explore_by=load_column)
            metrics = ppo.iterate(
                state.network,
                state.optimiser,
                parts,
                config.ppo,
                knobs,
                state.random,
                state.profiler,
                reference=reference,
                cloning=cloning,
                device=config.device,
                load_column=load_column,
            )
            if knobs.train_actor:
                state.controllers.after_update(config.ppo, metrics["kl"], metrics["entropy_share"])
            for i, part in enumerate(parts):
                state.episodes[i].append(part.rollout.actions.astype("int16"))
                state.memories[i] = part.rollout.memory
            routed = sum(part.rollout.actions.size for part in parts)
            state.iteration += 1
            state.decisions += routed
            elapsed = time.perf_counter() - started
            state.seconds = seconds + elapsed
            out_of_time = run.out_of_time(state)
            last = state.iteration == total or out_of_time
            due = state.iteration % config.evaluate_every == 0 or last
            judgement = run.judge(state) if due and knobs.train_actor else Judgement(float("nan"))
            number = state.iteration - 1
            own, histograms = logs.part_row(parts)
            stability = logs.stability_row(metrics, config.stability, acting=knobs.train_actor)
            row = {
                "iteration": number,
                "charts/decisions": state.decisions,
                "charts/seconds": state.seconds,
                "charts/decisions_per_s": routed / elapsed,
                **logs.settings_row(knobs, setting, state.controllers.stagnations),
                **{f"charts/{name}": metrics[name] for name in ppo.ROLLOUTS},
                **{f"losses/{name}": metrics[name] for name in ppo.LOSSES},
                **stability,
                **own,
                "evaluation/objective": judgement.objective,
                **{
                    f"evaluation/vs_{name}": judgement.against.get(name, float("nan"))
                    for name in run.heuristics
                },
            }
            state.seconds = seconds + time.perf_counter() - started
            tracker.write(row)
            if due:
                for name, values in histograms.items():
                    tracker.histogram(name, values, number)
                feature_tracker.write({"iteration": number, **logs.feature_row(parts, run.features)})
                if config.debug:
                    logs.debug_histograms(tracker, state.network, parts, number)
            if state.iteration % config.checkpoint_every == 0 or last:
                run.save(state)
            stage = "ppo" if knobs.train_actor else "critic warm-up"
            run.on_progress(Progress(stage, state.iteration, total, row))
            if config.stability.stop and any(stability.values()):
                signs = ", ".join(name.removeprefix("stability/") for name, bad in stability.items() if bad)
                raise FairleadError(
                    f"training became unstable in iteration {number} ({signs}); the last checkpoint is in "
                    f"{run.directory}"
                )
            if run.out_of_time(state):  # an evaluation takes time too
                return


def current_setting(run: Run, state: TrainState, began: int) -> Setting:
    """What the curriculum says about the episode that began at iteration `began`; a switch is announced."""
    settings = run.config.environment
    now = setting_at(settings.curriculum, run.config.ppo.progress(began), settings.load, settings.reward)
    if began == state.iteration and settings.curriculum:
        before = setting_at(
            settings.curriculum,
            run.config.ppo.progress(max(0, began - run.config.ppo.reset_every)),
            settings.load,
            settings.reward,
        )
        if now.stage != before.stage:
            low, high = now.bounds
            metrics = {"stage": float(now.stage), "load_low": low, "load_high": high}
            run.on_progress(Progress("curriculum", state.iteration, run.config.ppo.total_iterations, metrics))
    return now


def _load_column(run: Run) -> int | None:
    """The feature that balance and hierarchical exploration go by, where one of them is asked for."""
    if run.config.ppo.exploration == "uniform" and run.config.ppo.balance_coefficient == 0:
        return None
    if LOAD_FEATURE not in run.features:
        raise FairleadError(
            f"ppo.exploration hierarchical and ppo.balance_coefficient go by the feature {LOAD_FEATURE}, "
            "which is not among the observations"
        )
    return run.features.index(LOAD_FEATURE)


def _reference(run: Run, state: TrainState) -> RouterNetwork | None:
    """The frozen policy that PPO stays near: the one that PPO started from."""
    if run.config.ppo.reference_kl.range[1] == 0:
        return None
    if state.reference is None:
        state.reference = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    network = new_network(run.config, run.features)
    checkpoint.load_weights(network, state.reference)
    return network.requires_grad_(False)


def _cloning(run: Run, state: TrainState) -> list[Examples]:
    """The demonstrations that PPO goes on imitating."""
    if run.config.ppo.cloning.range[1] == 0 or run.config.imitation is None:
        return []
    return imitation.examples_of(state.demonstrations, run.config.imitation, recurrent=False)
