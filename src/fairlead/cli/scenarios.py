"""`fairlead scenarios`: list them, show one in full, or a suite with the headroom of each."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.first_run import capacity
from fairlead.cli.options import Json, seed_list
from fairlead.cli.output import ProgressBar, on_interrupt, print_json, print_table
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.evaluate.headroom import Headroom, Step
    from fairlead.workload.scenario import Scenario

EXAMPLES = (
    "fairlead scenarios",
    "fairlead scenarios chat-unequal",
    "fairlead scenarios my-cluster.yaml --json",
    "fairlead scenarios --suite standard",
)


def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME_OR_FILE]", help="Show this scenario in full.", show_default=False),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Show a suite (`standard`, `hardware`): each scenario and load with its headroom. "
            "Wherever scenarios are named, `suite/standard` stands for all of them.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=2, metavar="N", help="Of --suite: independent runs behind each interval.")
    ] = 6,
    requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of --suite: requests in each run. Fewer: sooner, wider.")
    ] = 2000,
    json: Json = False,
) -> None:
    """List the scenarios that ship with Fairlead, show one in full, or a suite with its headroom.

    A scenario is a cluster (model, replicas, hardware), its traffic (arrivals, lengths) and the loads to try.
    Copy one to a YAML file, change it, and give that file wherever a scenario is asked for. Headroom is what
    routing can change at all: how far the best heuristic is from round robin, and lookahead from the best
    heuristic, and what knowing the lengths of all answers in advance would add, which no router can reach.
    """
    if suite is not None:
        if name is not None:
            raise FairleadError(f"{name} and --suite {suite}: give one of the two")
        _suite(suite, seed_list(0, seeds), requests, json)
    elif name is None:
        _list(json)
    else:
        _show(name, json)


def _list(json: bool) -> None:
    from fairlead.workload.scenario import load_scenario, scenario_names

    scenarios = [load_scenario(name) for name in scenario_names()]
    if json:
        print_json([summary(scenario) for scenario in scenarios])
        return
    rows = [
        (
            each.name,
            str(each.num_replicas),
            hardware(each),
            ", ".join(f"{x:g}" for x in each.loads),
            first_sentence(each.description),
        )
        for each in scenarios
    ]
    print_table(("name", "replicas", "hardware", "loads", "description"), rows, right=("replicas",))


def _show(name: str, json: bool) -> None:
    from fairlead.workload.suites import load_variant

    scenario = load_variant(name)
    rate = capacity(scenario)
    if json:
        print_json({**summary(scenario), "capacity_rps": rate, "scenario": scenario.model_dump(mode="json")})
        return

    import yaml

    text = yaml.safe_dump(scenario.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    typer.echo(text, nl=False)
    typer.echo(f"\n# {scenario.num_replicas} replicas ({hardware(scenario)}); hash {scenario.hash()}")
    typer.echo(f"# measured capacity: {rate:.3g} requests/s")
    for load in scenario.loads:
        typer.echo(f"#   load {load:g} is {load * rate:.3g} requests/s")


def _suite(name: str, seeds: list[int], requests: int, json: bool) -> None:
    from fairlead.evaluate.headroom import DIALS, headroom_of_all
    from fairlead.workload.scenario import load_scenario
    from fairlead.workload.suites import load_suite

    suite = load_suite(name)
    scenarios = [load_scenario(each) for each in suite.scenarios]
    rates = {scenario.name: capacity(scenario) for scenario in scenarios}
    with on_interrupt(lambda: "what was measured is kept"), ProgressBar() as progress:
        found = headroom_of_all(scenarios, seeds=seeds, requests=requests, progress=progress)
    if json:
        print_json(
            {
                "suite": suite.name,
                "description": suite.description,
                "splits": SPLIT_WORDS,
                "requests": requests,
                "seeds": seeds,
                "lookahead_dials": DIALS,
                "scenarios": [
                    {
                        **summary(scenario),
                        "teaches": suite.scenarios[scenario.name],
                        "capacity_rps": rates[scenario.name],
                        "headroom": [
                            {**each.model_dump(mode="json"), "worthwhile_on": each.places}
                            for each in found
                            if each.scenario == scenario.name
                        ],
                    }
                    for scenario in scenarios
                ],
            }
        )
        return
    header = (
        "load",
        "req/s",
        "metric",
        "round robin",
        "best heuristic",
        "%",
        "lookahead",
        "%",
        "lengths known, %",
    )
    for scenario in scenarios:
        rate, teaches = rates[scenario.name], suite.scenarios[scenario.name]
        typer.echo(f"{scenario.name}, capacity {rate:.3g} requests/s. {teaches}\n")
        here = [each for each in found if each.scenario == scenario.name]
        rows = [row for each in here for row in _headroom_rows(each)]
        print_table(header, rows, right=("load", "req/s", "round robin"))
        for each in here:
            if not each.places:
                typer.echo(f"Load {each.load:g} {each.in_words}.\n")
    typer.echo(
        f"Times in seconds. In %: the difference to the router before it, with its 95 % interval over "
        f"{len(seeds)} paired seeds of {requests} requests; negative is better. Lengths known: the same for "
        f"lookahead that is told how long every answer will be, which no router can reach. {SPLIT_WORDS}"
    )


def _headroom_rows(found: "Headroom") -> list[list[str]]:
    from fairlead.evaluate.phrasing import LABELS, number

    rows = []
    place = [f"{found.load:g}", f"{found.rate_rps:.3g}"]
    for m in found.metrics:
        heuristic, lookahead = m.heuristic, m.lookahead
        rows.append(
            [
                *place,
                LABELS[m.metric],
                number(m.metric, m.round_robin),
                f"{number(m.metric, heuristic.value)} {heuristic.router}",
                _step(heuristic),
                f"{number(m.metric, lookahead.value)} {lookahead.router.removeprefix('lookahead')}",
                _step(lookahead),
                _step(m.true_lengths),
            ]
        )
        place = ["", ""]
    return rows


def _step(step: "Step") -> str:
    from fairlead.evaluate.phrasing import percent

    return f"{percent(step.relative)} [{percent(step.ci_low)}, {percent(step.ci_high)}]"


SPLIT_WORDS = (
    "Training, validation and evaluation draw from random streams of their own and never share a run."
)


def summary(scenario: "Scenario") -> dict[str, Any]:
    """The facts of the list, for `--json`."""
    return {
        "name": scenario.name,
        "description": scenario.description,
        "model": scenario.model,
        "num_replicas": scenario.num_replicas,
        "hardware": hardware(scenario),
        "loads": list(scenario.loads),
        "hash": scenario.hash(),
    }


def hardware(scenario: "Scenario") -> str:
    """The replicas in a few words: `2 x a100-80g + 2 x a100-80g (2.5x slower)`."""
    groups = []
    for group in scenario.replicas:
        text = f"{group.count} x {group.device}"
        text += f" TP{group.tensor_parallel}" if group.tensor_parallel > 1 else ""
        text += f" ({group.slowdown:g}x slower)" if group.slowdown != 1 else ""
        groups.append(text)
    return " + ".join(groups)


def first_sentence(text: str) -> str:
    """`text` up to its first full stop or colon, for a list."""
    return re.split(r"[.:](?:\s|$)", text.strip(), maxsplit=1)[0]
