"""Routers in front of live servers: the same arrivals for each, through our gateway."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvloop

from fairlead.errors import FairleadError
from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.files import prepare_output_directory
from fairlead.evaluate.live import replay
from fairlead.evaluate.live_gateway import (
    POLL_S,
    Answers,
    Bounds,
    check_lengths,
    private_gateway,
    shared_model,
    wait_until_idle,
)
from fairlead.evaluate.per_request import RequestWriter
from fairlead.evaluate.prompts import TokenIds
from fairlead.evaluate.results import Configuration, Results, RouterInfo, Row, write_results
from fairlead.evaluate.tournament import Progress, detail, row
from fairlead.policy.catalogue import find_routers
from fairlead.policy.heuristics import Lookahead
from fairlead.serve.probe import Finding, probe
from fairlead.serve.settings import GatewaySettings, Policy
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.metrics import COOLDOWN, WARMUP, measured_window, summarise
from fairlead.simulator.outcomes import Outcomes
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, check_load, check_runs, generate

_DEFAULT_BOUNDS = Bounds()
_POLICY_DEADLINE_S = 1.0  # the load client shares the process: its work must not count as the policy's


@dataclass(frozen=True)
class Plan:
    """What is run: the same requests of one scenario for every router."""

    scenario: Scenario
    rates: dict[float, float]
    """Load (fraction of the simulated cluster's capacity) -> requests per second."""
    seeds: tuple[int, ...]
    requests: int
    split: str = "evaluate"
    """Which random streams the requests come from."""

    def check_runs(self) -> None:
        """Refuse more seeds than a recorded trace has runs for.

        Raises:
            FairleadError: if there are.
        """
        for rate in self.rates.values():
            check_runs(self.scenario, requests=self.requests, rate=rate, seeds=self.seeds, split=self.split)

    def arrivals(self, load: float, seed: int) -> Requests:
        """The requests of a run."""
        return generate(
            self.scenario, requests=self.requests, rate=self.rates[load], seed=seed, split=self.split
        )


def rates(scenario: Scenario, loads: Sequence[float] | None, rate: float | None) -> dict[float, float]:
    """Load -> requests/s, from loads, or from one rate (then the load is what that is of the capacity).

    Raises:
        FairleadError: if both are given, or one is out of range.
    """
    capacity = capacity_rps(scenario)
    if rate is None:
        return {load: check_load(load) * capacity for load in loads or scenario.loads}
    if loads is not None:
        raise FairleadError("--rate and --load both say how busy the servers are: give one of them")
    if not (math.isfinite(rate) and rate > 0):
        raise FairleadError(f"--rate {rate:g}: give requests per second, more than 0")
    return {float(f"{rate / capacity:.4g}"): rate}


def run_live_tournament(
    plan: Plan,
    settings: GatewaySettings,
    routers: Sequence[str],
    out: Path,
    progress: Progress | None = None,
    *,
    favor: float | None = None,
    command: str = "",
    bounds: Bounds = _DEFAULT_BOUNDS,
    speed: float = 1.0,
) -> Results:
    """Run every router on the servers, write `results.json` and `requests.parquet` into `out`.

    The runs of a seed follow each other, router by router; before each, all servers are idle, and the gateway
    knows nothing of the runs before.

    Args:
        plan: what is run.
        settings: of the gateway, its backends included; policy, port, admin API and logs are set here.
        routers: names and policy files, as `find_router` takes them.
        out: a directory that holds no other run.
        progress: told how far it is.
        favor: the dial of policies whose name does not set one.
        command: what was typed, for the record.
        bounds: how far it may go.
        speed: of the servers' time (an emulator's).

    Raises:
        FairleadError: if servers cannot be used or are busy, a request is refused or fails, or it takes too
            long; nothing is written then.
    """
    if len(plan.seeds) < 2:
        raise FairleadError(
            "a comparison needs at least 2 seeds: intervals come from differences between runs"
        )
    texts = list(routers)
    entries = find_routers(texts, favor)
    for entry in entries:
        if isinstance(entry.router, Lookahead):
            raise FairleadError(f"{entry.name} needs the simulator's full state: leave it out with --backend")
    measured_window(plan.requests, WARMUP, COOLDOWN)
    plan.check_runs()
    _check_time(plan, len(entries), bounds, speed)
    findings = asyncio.run(probe(settings.backends))
    model = shared_model(findings, plan.scenario.model)
    _check_lengths(findings, plan, model)
    scenario = plan.scenario
    configuration = Configuration(
        scenarios={scenario.name: scenario.model_dump(mode="json")},
        loads={scenario.name: list(plan.rates)},
        capacity_rps={scenario.name: capacity_rps(scenario)},
        routers=[RouterInfo(name=e.name, kind=e.kind, detail=detail(e)) for e in entries],
        seeds=list(plan.seeds),
        requests=plan.requests,
        command=command,
        simulator=f"live servers ({len(findings)})",
        notes=_notes(plan, findings, model),
    )
    directory = prepare_output_directory(out)
    rows: list[Row] = []
    total = len(plan.rates) * len(plan.seeds) * len(entries)
    end = time.monotonic() + 60.0 * bounds.run_minutes
    with RequestWriter(directory, configuration) as writer:
        for load, rate in plan.rates.items():
            for seed in plan.seeds:
                arrivals = plan.arrivals(load, seed)
                for entry, text in zip(entries, texts, strict=True):
                    if progress is not None:
                        progress("measuring", len(rows), total)
                    if time.monotonic() > end:
                        raise FairleadError(
                            f"{bounds.run_minutes:g} minutes are over after {len(rows)} of {total} runs: "
                            "take fewer requests, seeds or routers, or more --minutes"
                        )
                    where = f"{entry.name}, load {load:g}, seed {seed}"
                    policy = _policy(text, favor, seed)
                    run = _Run(settings.model_copy(update={"policy": policy}), model, bounds, speed, where)
                    outcomes = uvloop.run(run.measure(arrivals))
                    writer.write(scenario.name, load, entry.name, seed, outcomes)
                    metrics = summarise(outcomes, scenario.slo.ttft_s, scenario.slo.tpot_s)
                    rows.append(row(scenario.name, load, entry.name, seed, rate, metrics))
    if progress is not None:
        progress("measuring", total, total)
    results = build_results(configuration, rows)
    write_results(directory, results)
    return results


def _policy(text: str, favor: float | None, seed: int) -> Policy:
    base, at, dial = text.rpartition("@")
    chosen = float(dial) if at else DEFAULT_FAVOR if favor is None else favor
    return Policy(
        router=base if at else text,
        favor=chosen,
        on_policy_error="fail",  # nobody else's decisions may count as its own
        deadline=_POLICY_DEADLINE_S,
        seed=seed,
    )


def _check_time(plan: Plan, routers: int, bounds: Bounds, speed: float) -> None:
    arrive_s = sum(
        float(plan.arrivals(load, seed).arrival_s[-1]) for load in plan.rates for seed in plan.seeds
    )
    minutes = arrive_s * routers / speed / 60.0
    if minutes > bounds.run_minutes:
        runs = len(plan.rates) * len(plan.seeds) * routers
        raise FairleadError(
            f"the arrivals alone of {runs} runs with {plan.requests} requests each take {minutes:.0f} "
            f"minutes, more than {bounds.run_minutes:g}: take fewer --requests, --seeds or --routers, or "
            "more --minutes"
        )


def _check_lengths(findings: Sequence[Finding], plan: Plan, model: str) -> None:
    """Refuse requests that are longer than the model takes, before any is sent.

    Raises:
        FairleadError: if there are some.
    """
    for load in plan.rates:
        for seed in plan.seeds:
            check_lengths(findings, model, plan.arrivals(load, seed), plan.scenario.name)


def _notes(plan: Plan, findings: Sequence[Finding], model: str) -> list[str]:
    """What a reader of the results must know."""
    servers = ", ".join(f"{f.url} ({f.version or 'version not told'})" for f in findings)
    rate = ", ".join(f"{rate:.4g} requests/s at load {load:g}" for load, rate in plan.rates.items())
    scenario = plan.scenario
    found = [
        f"measured on live servers with the model {model}, through Fairlead's gateway: {servers}",
        f"of the scenario only requests and service levels are used; loads are fractions of the capacity of "
        f"its simulated cluster, not of these servers: {rate}",
        "preemptions and prefix hits of single requests are not known",
    ]
    if scenario.faults or scenario.routers > 1 or scenario.view.prompt_estimate_error > 0.0:
        found.append("its failures, further routers and estimation errors were left to the servers' reality")
    return found


class _Run:
    """One router on one set of arrivals, behind a gateway of its own in this process."""

    def __init__(
        self, settings: GatewaySettings, model: str, bounds: Bounds, speed: float, where: str
    ) -> None:
        self._settings = settings
        self._model = model
        self._bounds = bounds
        self._speed = speed
        self._where = where

    async def measure(self, arrivals: Requests) -> Outcomes:
        """What became of the requests.

        Raises:
            FairleadError: if one failed, or the servers are not idle before it.
        """
        log = Answers()
        async with private_gateway(self._settings, log) as server:
            backends = server.gateway.backends
            await wait_until_idle(server, self._bounds.drain_s, self._where)
            live = await replay(
                f"http://127.0.0.1:{server.port}",
                arrivals,
                model=self._model,
                prompts=TokenIds(arrivals, f"{self._where}, {time.time_ns()}"),
                speed=self._speed,
                timeout_s=self._bounds.request_s,
            )
            names = [backend.name for backend in backends]
            while server.gateway.exchanges and not live.failed:  # the last ones are being booked
                await asyncio.sleep(POLL_S)
        numbers = {name: i for i, name in enumerate(names)}
        replica = np.array([numbers.get(log.backend.get(i) or "", -1) for i in range(len(arrivals))])
        try:
            outcomes = replace(live, replica=replica).outcomes(len(names))
        except FairleadError as error:
            raise FairleadError(f"{self._where}: {error}") from None
        retries = np.array([log.attempts[i] - 1 for i in range(len(arrivals))])
        return replace(outcomes, retries=np.maximum(retries, 0))
