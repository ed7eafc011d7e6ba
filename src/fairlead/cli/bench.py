"""`fairlead bench`: how fast this machine simulates, trains and decides."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.first_run import announce_compilation
from fairlead.cli.options import Json
from fairlead.cli.output import ProgressBar, on_interrupt, print_json, print_table
from fairlead.errors import FairleadError

EXAMPLES = ("fairlead bench simulator", "fairlead bench training --seconds 30 --json")


class What(StrEnum):
    """What can be measured."""

    simulator = "simulator"
    training = "training"
    decision = "decision"


def command(
    what: Annotated[
        What,
        typer.Argument(
            help="simulator: routed requests per second on one core; training: decisions per second, "
            "by phase; decision: microseconds that a policy needs to place one request.",
            show_default=False,
        ),
    ],
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="About how long to measure, after warming up.")
    ] = 10.0,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            help="For `decision`: the policy to time. Default: fairlead/generalist.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the speed of the simulator, of training, or of one routing decision.

    Compilation and warm-up come first and are not counted. Close other programs for numbers worth quoting.
    """
    if policy is not None and what is not What.decision:
        raise FairleadError(f"--policy goes with `fairlead bench decision`, not with {what.value}")
    measure = import_module(f"fairlead.bench.{what.value}").measure
    options = {} if policy is None else {"policy": policy}
    announce_compilation()
    with on_interrupt(lambda: "nothing was saved"), ProgressBar() as progress:
        result = measure(seconds, progress, **options)
    if json:
        print_json(result)
    else:
        print_table((what.value, "value"), list(_rows(result)), right=("value",))


def _rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested results, one row per number."""
    rows = []
    for key, value in result.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key} ")
        else:
            rows.append((prefix + key, _number(value) if isinstance(value, float) else str(value)))
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
