"""Critic warm-up and PPO: iterations, each with a row in the log; evaluations and checkpoints in between."""

import time

from fairlead.errors import FairleadError
from fairlead.policy.network import RouterNetwork
from fairlead.train import checkpoint, imitation, logs, ppo
from fairlead.train.curriculum import Setting, setting_at
from fairlead.train.demonstrations import Examples
from fairlead.train.ppo import Part
from fairlead.train.rollout import Env, Rollout
from fairlead.train.state import TrainState, episode_start, new_network
from fairlead.train.surroundings import Judgement, Run
from fairlead.train.tracking import Progress, Tracker

LOAD_FEATURE = "in_flight"
"""What balance is about: requests in flight on each replica."""


def improve(run: Run, state: TrainState, envs: list[Env]) -> None:
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
