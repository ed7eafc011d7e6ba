"""`fairlead evaluate`: every router on the same unseen requests, with intervals and a report."""

import json as json_module
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.first_run import capacity
from fairlead.cli.options import (
    Favor,
    GatewaySettingsFile,
    Json,
    LiveRate,
    LiveServers,
    Loads,
    ManyScenarios,
    TrainingLog,
    existing,
    load_list,
    scenario_list,
    seed_list,
    split,
)
from fairlead.cli.output import ProgressBar, on_interrupt, print_json, say, show
from fairlead.cli.serve import gateway_settings
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.evaluate.live_tournament import Plan
    from fairlead.evaluate.results import Results
    from fairlead.policy.artefact import OnnxRouter
    from fairlead.workload.scenario import Scenario

EXAMPLES = (
    "fairlead evaluate --scenario chat-unequal --out runs/baselines",
    "fairlead evaluate --scenario chat-equal,chat-unequal --load 0.7 "
    "--routers heuristics,runs/mine/policy.onnx --seeds 10 --out runs/mine-evaluated",
    "fairlead evaluate --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002 --rate 4 "
    "--scenario chat-equal --routers lor,least_work --requests 200 --seeds 3 --out runs/live",
)


class Simulator(StrEnum):
    """What can simulate."""

    fairlead = "fairlead"
    vidur = "vidur"


def command(
    context: typer.Context,
    scenario: ManyScenarios,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder for the results.", show_default=False)
    ],
    load: Loads = None,
    routers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_FILE,...",
            help="Heuristics by name (`heuristics`: all of them) and policies, fairlead/generalist or ONNX "
            "files, separated by commas. Default: heuristics,fairlead/generalist.",
            show_default=False,
        ),
    ] = None,
    favor: Favor = None,
    seeds: Annotated[
        int,
        typer.Option(min=2, metavar="N", help="How many independent runs of each; intervals need several."),
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The first of the seeds.")] = 0,
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="Requests in each run.")] = 3000,
    training_log: TrainingLog = None,
    dependence: Annotated[
        bool,
        typer.Option(
            "--dependence",
            help="Also examine what each learned policy depends on: a section of the report.",
        ),
    ] = False,
    simulator: Annotated[
        Simulator,
        typer.Option(
            help="What simulates: Fairlead itself, or the simulator Vidur (pip install 'fairlead\\[vidur]'), "
            "which is a thousand times slower and knows less: see docs/vidur.md."
        ),
    ] = Simulator.fairlead,
    backend: LiveServers = None,
    gateway: GatewaySettingsFile = None,
    rate: LiveRate = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="N",
            help="With live servers: how long it may take at most. Default: 60.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare routers on the same requests: who is better, by how much, and how sure that is.

    Every router serves exactly the same arrivals, which no training has seen. Differences are taken run by
    run, with 95 % intervals. Writes results.json, requests.parquet (every single request) and report.html.
    With --backend the requests are sent to live servers, at their times, one router after the other.
    """
    from fairlead.evaluate.dependence import check
    from fairlead.evaluate.live_gateway import Bounds
    from fairlead.evaluate.live_tournament import run_live_tournament
    from fairlead.evaluate.report import render_report
    from fairlead.evaluate.tables import terminal_table
    from fairlead.evaluate.tournament import ALL_HEURISTICS, run_tournament
    from fairlead.policy.packaged import GENERALIST
    from fairlead.vidur.offline import check_installed

    live = bool(backend) or gateway is not None
    if live and (simulator is Simulator.vidur or dependence):
        raise FairleadError("--backend measures live servers: leave out --simulator and --dependence")
    if rate is not None and not live:
        raise FairleadError("--rate is for live servers (--backend); simulations take --load")
    if minutes is not None and not live:
        raise FairleadError(
            "--minutes is for live servers (--backend); simulations take as long as they take"
        )
    if simulator is Simulator.vidur:
        check_installed()
    scenarios = scenario_list(scenario)
    loads = load_list(load)
    existing(training_log)
    all_heuristics = [
        name
        for name in ALL_HEURISTICS
        if (simulator is Simulator.fairlead and not live) or name != "lookahead"
    ]
    names = [
        name
        for text in split(routers or ["heuristics", GENERALIST], "router")
        for name in (all_heuristics if text == "heuristics" else [text])
    ]
    for each in scenarios:
        capacity(each)
    if dependence:
        check(_learned(names, favor), scenarios, loads)
    with on_interrupt(lambda: f"nothing was saved in {out}"), ProgressBar() as progress:
        if live:
            results = run_live_tournament(
                _plan(scenarios, loads, rate, seed_list(seed, seeds), requests),
                gateway_settings(gateway, backend or []),
                names,
                out,
                progress,
                favor=favor,
                command=str(context.obj),
                bounds=Bounds() if minutes is None else Bounds(run_minutes=minutes),
            )
        else:
            results = run_tournament(
                scenarios,
                loads,
                names,
                seed_list(seed, seeds),
                requests,
                out,
                progress,
                favor=favor,
                command=str(context.obj),
                simulator=simulator.value,
            )
        if dependence:
            _examine(names, favor, scenarios, results, out)
        page = render_report(out, training_log=training_log)
    if json:
        print_json(json_module.loads((out / "results.json").read_text(encoding="utf-8")))
    else:
        for note in results.configuration.notes:
            say(f"note: {note}")
        for name, at in results.configuration.settings:
            show(terminal_table(results, name, at))
        for sentence in results.words:
            typer.echo(sentence)
    say(f"report: {page}")


def _plan(
    scenarios: "list[Scenario]", loads: list[float] | None, rate: float | None, seeds: list[int], count: int
) -> "Plan":
    """What is run on live servers."""
    from fairlead.evaluate.live_tournament import Plan, rates

    if len(scenarios) != 1:
        raise FairleadError("live servers are measured with one scenario at a time: name one")
    return Plan(scenarios[0], rates(scenarios[0], loads, rate), tuple(seeds), count)


def _learned(names: list[str], favor: float | None) -> "list[OnnxRouter]":
    """The policies among the routers."""
    from fairlead.policy.artefact import OnnxRouter
    from fairlead.policy.catalogue import find_routers

    return [e.router for e in find_routers(names, favor) if isinstance(e.router, OnnxRouter)]


def _examine(
    names: list[str], favor: float | None, scenarios: "list[Scenario]", results: "Results", out: Path
) -> None:
    """Write what each learned policy depends on, in each setting."""
    from fairlead.evaluate.dependence import examine, write_dependence

    by_name = {scenario.name: scenario for scenario in scenarios}
    found = [
        examine(policy, by_name[name], load)
        for policy in _learned(names, favor)
        for name, load in results.configuration.settings
    ]
    write_dependence(out, found)
