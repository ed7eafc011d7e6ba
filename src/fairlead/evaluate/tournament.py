"""The tournament: every router on the same unseen requests, scenario by scenario and load by load."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from fairlead.env.run import run
from fairlead.errors import FairleadError
from fairlead.evaluate import vidur
from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.files import prepare_output_directory
from fairlead.evaluate.per_request import RequestWriter
from fairlead.evaluate.results import Configuration, Results, RouterInfo, Row, write_results
from fairlead.policy.catalogue import ALL_HEURISTICS, Entry, find_router, find_routers
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.metrics import COOLDOWN, WARMUP, measured_window, summarise
from fairlead.simulator.outcomes import Outcomes
from fairlead.workload.scenario import Scenario, check_load, check_runs, generate

__all__ = ["ALL_HEURISTICS", "Progress", "run_tournament", "simulate", "simulate_once"]

Progress = Callable[[str, float, float], None]
"""Called with (what is being done, done, total)."""


def simulate(
    scenario: Scenario, load: float, entry: Entry, seeds: Sequence[int], requests: int
) -> list[Outcomes]:
    """One run for each seed, side by side; the arrivals depend on scenario, load, seed and number alone.

    Args:
        scenario: whose cluster and workload.
        load: fraction of the measured capacity.
        entry: the router; its own randomness is seeded by the first seed.
        seeds: of the arrivals, in the evaluation's streams.
        requests: in each run.

    Raises:
        FairleadError: for a load out of range, a request that no replica can hold, or more seeds than a
            recorded trace has runs for.
    """
    rate = check_load(load) * capacity_rps(scenario)
    check_runs(scenario, requests=requests, rate=rate, seeds=seeds)
    arrivals = [generate(scenario, requests=requests, rate=rate, seed=s, split="evaluate") for s in seeds]
    clusters = Clusters([build_fleet(scenario)] * len(seeds), arrivals, seed=seeds[0])
    run(clusters, entry.router, seed=seeds[0])
    return [clusters.outcomes(c) for c in range(clusters.K)]


def simulate_once(
    scenario: Scenario, load: float, router: str, requests: int, seed: int, favor: float | None = None
) -> dict[str, float]:
    """The metrics of a single run."""
    outcomes = simulate(scenario, load, find_router(router, favor), [seed], requests)[0]
    return summarise(outcomes, scenario.slo.ttft_s, scenario.slo.tpot_s)


def run_tournament(
    scenarios: Sequence[Scenario],
    loads: Sequence[float] | None,
    routers: Sequence[str],
    seeds: Sequence[int],
    requests: int,
    out: Path,
    progress: Progress | None = None,
    *,
    favor: float | None = None,
    command: str = "",
    simulator: Literal["fairlead", "vidur"] = "fairlead",
) -> Results:
    """Run everything, write `results.json` and `requests.parquet` into `out`, return the results.

    Args:
        scenarios: with names of their own.
        loads: for all scenarios; None: those that each scenario lists.
        routers: names and policy files, as `find_router` takes them.
        seeds: at least two; every router sees the same arrivals under the same seed.
        requests: in each run.
        out: a directory that holds no other run.
        progress: told how far it is.
        favor: the dial of `lookahead` and of policies whose name does not set one.
        command: what was typed, for the record.
        simulator: Fairlead's own, or the real Vidur.

    Raises:
        FairleadError: before anything is run or written, where it can be known by then.
    """
    if len(seeds) < 2:
        raise FairleadError(
            "a comparison needs at least 2 seeds: intervals come from differences between runs"
        )
    entries = find_routers(list(routers), favor)
    if simulator == "vidur":
        vidur.check(scenarios, entries)
    settings = {s.name: list(loads or s.loads) for s in scenarios}
    for load in (load for each in settings.values() for load in each):
        check_load(load)
    if len(settings) < len(scenarios):
        raise FairleadError("two scenarios have the same name: give one of them another")
    if any(len(set(each)) < len(each) for each in settings.values()):
        raise FairleadError("the same load is given twice: name each once")
    measured_window(requests, WARMUP, COOLDOWN)
    capacities = {s.name: capacity_rps(s) for s in scenarios}
    for s in scenarios:
        _check_requests(s, max(settings[s.name]) * capacities[s.name], seeds, requests)
    configuration = Configuration(
        scenarios={s.name: s.model_dump(mode="json") for s in scenarios},
        loads=settings,
        capacity_rps=capacities,
        routers=[RouterInfo(name=e.name, kind=e.kind, detail=detail(e)) for e in entries],
        seeds=list(seeds),
        requests=requests,
        command=command,
        simulator=vidur.NAME if simulator == "vidur" else simulator,
        notes=vidur.notes(scenarios) if simulator == "vidur" else [],
    )
    serve = vidur.simulate if simulator == "vidur" else simulate
    directory = prepare_output_directory(out)
    rows: list[Row] = []
    total = len(entries) * len(configuration.settings)
    with RequestWriter(directory, configuration) as writer:
        for scenario in scenarios:
            for load in settings[scenario.name]:
                rate = load * configuration.capacity_rps[scenario.name]
                for entry in entries:
                    if progress is not None:
                        progress("evaluating", len(rows) / len(seeds), total)
                    runs = serve(scenario, load, entry, seeds, requests)
                    for seed, outcomes in zip(seeds, runs, strict=True):
                        writer.write(scenario.name, load, entry.name, seed, outcomes)
                        metrics = summarise(outcomes, scenario.slo.ttft_s, scenario.slo.tpot_s)
                        rows.append(row(scenario.name, load, entry.name, seed, rate, metrics))
    if progress is not None:
        progress("evaluating", total, total)
    results = build_results(configuration, rows)
    write_results(directory, results)
    return results


def _check_requests(scenario: Scenario, rate: float, seeds: Sequence[int], requests: int) -> None:
    """Refuse what would be refused when it is run: requests that no replica holds, too few recorded ones.

    Raises:
        FairleadError: if there are any.
    """
    check_runs(scenario, requests=requests, rate=rate, seeds=seeds)
    arrivals = [generate(scenario, requests=requests, rate=rate, seed=s, split="evaluate") for s in seeds]
    Clusters([build_fleet(scenario)] * len(seeds), arrivals, seed=seeds[0])


def row(scenario: str, load: float, router: str, seed: int, rate: float, metrics: dict[str, float]) -> Row:
    labels: dict[str, Any] = {"scenario": scenario, "load": load, "router": router, "seed": seed}
    return Row.model_validate({**labels, "rate_rps": rate, **metrics})


def detail(entry: Entry) -> str:
    """What identifies a router in the record; for a policy also what it was trained with."""
    metadata = getattr(entry.router, "metadata", None)
    if metadata is None:
        return entry.detail
    content = json.dumps(metadata.config, sort_keys=True).encode()
    return f"{entry.detail}, configuration {hashlib.sha256(content).hexdigest()[:16]}"
