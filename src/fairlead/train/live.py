"""A training run on live servers: a given policy is fine-tuned there, then compared with what it was.

The same trainer as in simulation. What differs: one cluster in real time, no teacher, no held-out evaluation
on the way (it would cost requests), and so no best policy of the run but the last one, which the comparison
at the end judges: the same arrivals for both policies, paired differences with an interval.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from fairlead.errors import FairleadError
from fairlead.evaluate.contest import NEEDED, OBJECTIVE, value
from fairlead.evaluate.files import RESULTS_FILE
from fairlead.evaluate.live_gateway import Bounds, check_lengths, shared_model
from fairlead.evaluate.live_tournament import Plan, run_live_tournament
from fairlead.evaluate.report import render_report
from fairlead.evaluate.results import Results
from fairlead.evaluate.statistics import Comparison, compare_ratios
from fairlead.policy.packaged import policy_path
from fairlead.serve.probe import Finding, probe
from fairlead.serve.settings import GatewaySettings
from fairlead.simulator.capacity import capacity_rps
from fairlead.train import trainer
from fairlead.train.config import TrainConfig
from fairlead.train.live_config import LiveConfig
from fairlead.train.live_env import LiveEnv, LivePlan
from fairlead.train.run import SCENARIOS_FILE, OnProgress, Say, saved_run, scenarios_text, show
from fairlead.train.trainer import TrainResult
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, generate

LIVE_FILE = "live.json"
START_FILE = "start.onnx"
POLICY_FILE = "policy.onnx"
COMPARISON = "comparison"
YARDSTICK = "least_work"
"""A heuristic that everybody can run, compared too."""

DEFAULT_MINUTES = 60.0
_SPARE = 1.5  # the comparison's arrivals last so much longer at most, waiting for idle servers included


class LiveRun(BaseModel):
    """What a live run needs to go on, besides its settings: `live.json`."""

    rate: float
    """Requests per second."""
    servers: list[str]
    """Their addresses when it began."""


@dataclass(frozen=True)
class LiveResult:
    """What a finished live run leaves."""

    training: TrainResult
    comparison: Comparison | None
    """Of what the dial weighs, the trained policy against the one that it began as."""


def train_live(
    config: TrainConfig,
    scenario: Scenario | None,
    settings: GatewaySettings,
    rate: float,
    out: Path,
    resume: bool = False,
    progress: OnProgress = lambda what, done, total: None,
    say: Say = lambda message: None,
    *,
    command: str = "",
    speed: float = 1.0,
) -> LiveResult:
    """Fine-tune `config.start_from` on the backends of `settings`.

    Args:
        config: all settings, `live` among them (of a run that is resumed: those it began with).
        scenario: whose requests are sent; None when resuming.
        settings: of the gateway, its backends included; policy, port, admin API and logs are set here.
        rate: requests per second (of a run that is resumed: that it began with).
        out: directory of the run.
        resume: go on from its checkpoint.
        progress: told how far each phase is.
        say: told what a person may want to read.
        command: what was typed, for the record.
        speed: of the servers' time (an emulator's).

    Raises:
        FairleadError: if servers cannot be used or are busy, bounds are too narrow to learn anything, a
            recorded trace is too short for the comparison, a request fails, or there is nothing to resume.
            The checkpoint of the last iteration is in `out`.
        TrainingInterrupted: on Ctrl-C, likewise.
    """
    if resume:
        config, scenario, rate = _saved(out, settings)
    else:
        trainer.check_free(out)
    live = config.live
    assert live is not None and scenario is not None and config.start_from is not None
    began = time.monotonic()
    minutes = config.minutes or DEFAULT_MINUTES
    findings = asyncio.run(probe(settings.backends))
    model = shared_model(findings, scenario.model)
    if not resume:
        config = fitted(config, rate, speed)
    plan = _plan(config, live, scenario, findings, model, rate, speed)
    if live.comparison_requests:
        _comparison(live, scenario, rate).check_runs()
    say(_intent(config, live, len(findings), rate))
    kept = {
        SCENARIOS_FILE: scenarios_text([scenario]),
        LIVE_FILE: LiveRun(rate=rate, servers=[each.url for each in settings.backends]).model_dump_json(),
    }
    with LiveEnv(settings, model, plan) as env:
        training = trainer.train(
            config,
            out,
            lambda: env,
            on_progress=lambda event: show(event, progress, say),
            resume=resume,
            extra_files=kept,
        )
    if training.ended_early:
        say(
            f"training ended in iteration {training.iteration} of {config.ppo.total_iterations}: "
            f"{training.ended_early}"
        )
    say(f"trained on {training.decisions:,} live decisions in {training.seconds:.0f} s")
    left = minutes - (time.monotonic() - began) / 60.0
    return LiveResult(
        training, _compared(config, live, scenario, settings, rate, out, left, progress, say, command, speed)
    )


def fitted(config: TrainConfig, rate: float, speed: float = 1.0) -> TrainConfig:
    """The same with as many iterations as the requests and the time allow, so that schedules come to an end.

    Raises:
        FairleadError: if they do not allow one iteration that changes the policy.
    """
    live, ppo = config.live, config.ppo
    assert live is not None
    episode = ppo.rollout_steps + 1
    minutes = config.minutes or DEFAULT_MINUTES
    requests = live.requests - _comparison_requests(live)
    seconds = 60.0 * minutes - _reserve_s(live, rate, speed)
    by_requests, by_time = requests // episode, int(seconds * rate * speed / episode)
    possible = min(by_requests, by_time, ppo.total_iterations)
    if possible <= ppo.critic_warmup_iterations:
        scarce = (
            f"live.requests {live.requests}"
            if by_requests <= by_time
            else f"{minutes:g} minutes at {rate:g} requests/s"
        )
        raise FairleadError(
            f"{scarce}: enough for {max(0, possible)} iterations of {episode} requests beside the "
            f"comparison's {_comparison_requests(live)}, and the first {ppo.critic_warmup_iterations} only "
            "fit the critic; allow more requests, minutes or a higher rate, or set ppo.rollout_steps or "
            "live.comparison_requests"
        )
    changed = ppo.model_copy(update={"iterations": possible - ppo.critic_warmup_iterations})
    return config.model_copy(update={"ppo": changed})


def _comparison_requests(live: LiveConfig) -> int:
    """Of all policies and seeds together: trained, as it began, and the yardstick."""
    return 3 * live.comparison_seeds * live.comparison_requests


def _reserve_s(live: LiveConfig, rate: float, speed: float) -> float:
    return _SPARE * _comparison_requests(live) / rate / speed


def _plan(
    config: TrainConfig,
    live: LiveConfig,
    scenario: Scenario,
    findings: Sequence[Finding],
    model: str,
    rate: float,
    speed: float,
) -> LivePlan:
    def requests(count: int, seed: int) -> Requests:
        drawn = generate(scenario, requests=count, rate=rate, seed=seed, split="train")
        check_lengths(findings, model, drawn, scenario.name)
        return drawn

    requests(config.ppo.rollout_steps, 0)  # what does not fit is told before anything is sent
    return LivePlan(
        requests,
        config.ppo.rollout_steps,
        config.environment.favor,
        config.environment.favor_power,
        Bounds(config.minutes or DEFAULT_MINUTES, live.request_s, live.drain_s),
        _reserve_s(live, rate, speed),
        speed,
    )


def _intent(config: TrainConfig, live: LiveConfig, servers: int, rate: float) -> str:
    iterations, steps = config.ppo.total_iterations, config.ppo.rollout_steps
    sent = iterations * (steps + 1)
    return (
        f"{iterations} iterations of {steps} decisions on {servers} live servers at {rate:g} requests/s: "
        f"{sent:,} requests, which take {sent / rate / 60:.1f} minutes to come (the last answers of each "
        f"iteration are waited for); then {_comparison_requests(live):,} to compare"
    )


def _saved(out: Path, settings: GatewaySettings) -> tuple[TrainConfig, Scenario, float]:
    """Settings, scenario and rate of the live run in `out`.

    Raises:
        FairleadError: if there is none, or it was on another number of servers.
    """
    config, scenarios = saved_run(out)
    try:
        kept = LiveRun.model_validate_json((out / LIVE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FairleadError(
            f"the run in {out} was not on live servers: resume it without --backend"
        ) from None
    if len(kept.servers) != len(settings.backends):
        raise FairleadError(
            f"the run in {out} began on {len(kept.servers)} servers ({', '.join(kept.servers)}): name as many"
        )
    return config, scenarios[0], kept.rate


def _comparison(live: LiveConfig, scenario: Scenario, rate: float) -> Plan:
    """The requests of the comparison, which training has not seen.

    Of a recorded trace, training and validation share their part: there they are those of evaluation.
    """
    load = float(f"{rate / capacity_rps(scenario):.4g}")
    split = "evaluate" if scenario.workload.is_recorded else "validate"
    return Plan(
        scenario, {load: rate}, tuple(range(live.comparison_seeds)), live.comparison_requests, split=split
    )


def _compared(
    config: TrainConfig,
    live: LiveConfig,
    scenario: Scenario,
    settings: GatewaySettings,
    rate: float,
    out: Path,
    minutes: float,
    progress: OnProgress,
    say: Say,
    command: str,
    speed: float,
) -> Comparison | None:
    """The trained policy and the one that it began as, on the same arrivals, which training has not seen."""
    if live.comparison_requests == 0:
        say("live.comparison_requests is 0: whether the policy is better than it was has not been measured")
        return None
    plan = _comparison(live, scenario, rate)
    arrivals_s = sum(
        float(plan.arrivals(load, seed).arrival_s[-1]) for load in plan.rates for seed in plan.seeds
    )
    needed = 3 * arrivals_s / speed / 60.0
    if minutes <= needed:
        say(
            f"no time is left to compare the policies ({needed:.1f} minutes needed, {max(0.0, minutes):.1f} "
            "left): whether the policy is better than it was has not been measured"
        )
        return None
    assert config.start_from is not None
    shutil.copyfile(policy_path(config.start_from), out / START_FILE)
    favor = sum(config.environment.favor) / 2.0
    folder = out / COMPARISON
    if folder.exists() and not (folder / RESULTS_FILE).exists():
        shutil.rmtree(folder)  # of a run that was interrupted in it
    results = run_live_tournament(
        plan,
        settings,
        [str(out / START_FILE), str(out / POLICY_FILE), YARDSTICK],
        folder,
        lambda what, done, total: progress("comparing", done, total),
        favor=favor,
        command=command,
        bounds=Bounds(minutes, live.request_s, live.drain_s),
        speed=speed,
    )
    found = objective(results, favor)
    say(in_words(found, live, favor))
    say(f"comparison: {render_report(folder)}")
    return found


def objective(results: Results, favor: float) -> Comparison:
    """The trained policy against the one that it began as, seed by seed, by what training minimises."""

    def of(router: str) -> list[float]:
        rows = sorted((row for row in results.rows if row.router == router), key=lambda row: row.seed)
        values = {metric: np.array([row.metric(metric) for row in rows]) for metric in NEEDED}
        costs: list[float] = value(values, OBJECTIVE, favor).tolist()
        return costs

    return compare_ratios(of(Path(POLICY_FILE).stem), of(Path(START_FILE).stem), lower_is_better=True)


def in_words(found: Comparison, live: LiveConfig, favor: float) -> str:
    """What the comparison shows, and what it does not."""
    assert found.relative_difference is not None and found.relative_interval is not None  # costs are positive
    percent = [100.0 * value for value in (found.relative_difference, *found.relative_interval)]
    difference = f"{percent[0]:+.1f} % [{percent[1]:+.1f} to {percent[2]:+.1f}]"
    start = f"{START_FILE}, the policy that it began as"
    verdict = {
        "better": f"{POLICY_FILE} is better than {start}",
        "worse": f"{POLICY_FILE} is WORSE than {start}: keep that one",
        "undecided": f"no difference is shown between {POLICY_FILE} and {start}",
    }[found.verdict]
    return (
        f"{verdict}: {difference} in what the dial at {favor:g} weighs, on "
        f"{live.comparison_seeds} x {live.comparison_requests} requests that training has not seen"
    )
