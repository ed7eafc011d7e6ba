"""`fairlead scenarios`: list them, or show one in full with its measured capacity."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.first_run import capacity
from fairlead.cli.options import Json
from fairlead.cli.output import print_json, print_table

if TYPE_CHECKING:
    from fairlead.workload.scenario import Scenario

EXAMPLES = (
    "fairlead scenarios",
    "fairlead scenarios chat-unequal",
    "fairlead scenarios my-cluster.yaml --json",
)


def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME_OR_FILE]", help="Show this scenario in full.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the scenarios that ship with Fairlead, or show one in full.

    A scenario is a cluster (model, replicas, hardware), its traffic (arrivals, lengths) and the loads to try.
    Copy one to a YAML file, change it, and give that file wherever a scenario is asked for.
    """
    if name is None:
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
    from fairlead.workload.scenario import load_scenario

    scenario = load_scenario(name)
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
