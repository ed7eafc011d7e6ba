"""The command line: one module per verb, and `main`, which turns errors into one line and an exit code.

Exit codes: 0 success; 2 something that the user can mend (bad option, bad file, unknown name), told in
one line on stderr; 130 interrupted with Ctrl-C, with a line that says what was saved. Results go to
stdout, everything else (progress, messages) to stderr. Anything heavy is imported inside the verbs, so
that `fairlead --help` is instant.
"""

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from fairlead import __version__
from fairlead.cli import (
    bench,
    calibrate,
    emulate,
    evaluate,
    probe,
    replay_log,
    report,
    scenarios,
    serve,
    simulate,
    train,
)
from fairlead.cli.output import say
from fairlead.errors import FairleadError


def _reflow(verb: Callable[..., None]) -> str:
    """The docstring of a verb with one line for each paragraph, so that help fills any terminal's width."""
    paragraphs = inspect.cleandoc(verb.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


# Typer raises it for every wrong option, argument or command, but exports only its subclass.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="fairlead",
    help="Learn how to route requests across the replicas of an LLM inference cluster, and prove it.\n\n"
    "A scenario describes a cluster and its traffic. Train a router on it in simulation, then compare the "
    "result with every standard router on the same unseen requests.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Start with: [bold]fairlead scenarios[/bold]. Every command explains itself: "
    "[bold]fairlead train --help[/bold].",
)


def _add(to: typer.Typer, name: str, verb: Callable[..., None], examples: Sequence[str]) -> None:
    lines = "\n\n".join(f"[bold]{line}[/bold]" for line in examples)
    to.command(name, help=_reflow(verb), epilog=f"Example:\n\n{lines}")(verb)


for _verb in (scenarios, simulate, train, evaluate, report, serve, probe, replay_log, emulate, bench):
    _add(app, _verb.__name__.rpartition(".")[2].replace("_", "-"), _verb.command, _verb.EXAMPLES)
_calibrate = typer.Typer(help=calibrate.HELP, rich_markup_mode="rich")
for _name, (_command, _examples) in calibrate.COMMANDS.items():
    _add(_calibrate, _name, _command, _examples)


@_calibrate.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


app.add_typer(_calibrate, name="calibrate", help=calibrate.HELP)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """The options of `fairlead` itself."""
    if version:
        typer.echo(f"fairlead {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command (`args` as after the program's name, default: the process's own) and exit."""
    # Before Numba and torch load OpenMP: idle threads sleep. Two pools of spinning threads on a
    # busy machine take the cores from each other, and training slows down several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        typed = shlex.join(["fairlead", *(sys.argv[1:] if args is None else args)])  # results record it
        code = app(args=args, obj=typed, prog_name="fairlead", standalone_mode=False)
    except FairleadError as error:
        say(f"error: {' '.join(str(error).split())}")
        code = 2
    except _UsageError as error:
        say(f"error: {_usage(error)}")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> str:
    """What was wrong with the options, and where help is, on one line."""
    message = getattr(error, "format_message", error.__str__)()
    command = getattr(getattr(error, "ctx", None), "command_path", "fairlead")
    return f"{' '.join(str(message).split())} (see: {command} --help)"
