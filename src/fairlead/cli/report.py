"""`fairlead report`: render the HTML report of an evaluation again."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = ("fairlead report runs/baselines",)


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder that `fairlead evaluate` wrote.", show_default=False),
    ],
) -> None:
    """Render report.html again from the results.json of an evaluation.

    Nothing is simulated: what the report shows is what results.json holds.
    """
    from fairlead.evaluate.report import render_report

    typer.echo(render_report(folder))
