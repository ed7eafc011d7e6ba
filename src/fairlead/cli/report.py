"""`fairlead report`: render the HTML report of an evaluation again."""

from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.options import TrainingLog, existing

EXAMPLES = (
    "fairlead report runs/baselines",
    "fairlead report runs/mine-evaluated --training-log runs/mine/training.csv",
)


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder that `fairlead evaluate` wrote.", show_default=False),
    ],
    training_log: TrainingLog = None,
) -> None:
    """Render report.html again from the results.json of an evaluation.

    Nothing is simulated: what the report shows is what results.json holds.
    """
    from fairlead.evaluate.report import render_report

    typer.echo(render_report(folder, training_log=existing(training_log)))
