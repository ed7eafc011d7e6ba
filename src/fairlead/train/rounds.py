"""The warm start: rounds of DAgger, each with a row in the log and a checkpoint."""

import time

from fairlead.train import imitation, logs, ppo
from fairlead.train.config import ImitationConfig
from fairlead.train.rollout import Env
from fairlead.train.state import TrainState, env_seed
from fairlead.train.surroundings import Run
from fairlead.train.teachers import Teacher
from fairlead.train.tracking import Progress, Tracker


def imitate(run: Run, state: TrainState, config: ImitationConfig, envs: list[Env], teacher: Teacher) -> None:
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
