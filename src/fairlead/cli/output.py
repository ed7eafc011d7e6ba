"""Where output goes: results to stdout, as text or as JSON; progress and messages to stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


PLAIN_WIDTH = 120
"""Characters in a line of a table that goes to a file or a pipe."""


def say(message: str) -> None:
    """A message for people, on stderr."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """The result as JSON, alone on stdout. A value that is not finite is a bug, not a NaN token."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers, everything else (paths, enums) as text."""
    return value.item() if hasattr(value, "item") else str(value)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on stdout; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in header:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    show(table)


def show(table: "Table") -> None:
    """A finished table on stdout, and an empty line."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(table)
    console.print()


@contextmanager
def on_interrupt(saved: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C within the block: say what was saved and exit with `INTERRUPTED`."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {saved()}")
        raise typer.Exit(INTERRUPTED) from None


class ProgressBar:
    """Shows how far each phase of a long command is: `bar(what, done, total)`, on stderr.

    On a terminal this is a bar with the time still to go; elsewhere (a log file, CI) a line when a phase
    begins and ends, and one every `LINE_EVERY_S` seconds between.
    """

    LINE_EVERY_S = 10.0

    def __init__(self) -> None:
        """Nothing is shown before the first call."""
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._phase = ""
        self._next_line = 0.0
        self._started = 0.0
        self._ended = False

    def __enter__(self) -> Self:
        """Take over the terminal's last lines, if there is one."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Remaining

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("to go"),
                Remaining(),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bars as they are."""
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: float, total: float) -> None:
        """Phase `what` has done `done` of `total` (any unit)."""
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
        else:
            self._line(what, done, total)

    def say(self, message: str) -> None:
        """A message for people, above the bars."""
        if self._bars is not None:
            self._bars.console.print(message, highlight=False, markup=False)
        else:
            say(message)

    def _line(self, what: str, done: float, total: float) -> None:
        now = time.monotonic()
        if what != self._phase:
            self._phase, self._started, self._next_line = what, now, now
            self._ended = False
        if now >= self._next_line or (done >= total and not self._ended):
            self._ended = done >= total
            left = (now - self._started) * (total - done) / done if done else 0.0
            to_go = f", about {left:.0f} s to go" if left >= 1 else ""
            say(f"{what}: {100 * done / total if total else 100:.0f} %{to_go}")
            self._next_line = now + self.LINE_EVERY_S
