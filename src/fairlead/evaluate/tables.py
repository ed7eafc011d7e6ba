"""Results on the terminal."""

from textwrap import wrap

from rich import box
from rich.table import Table
from rich.text import Text

from fairlead.evaluate.phrasing import (
    LABELS,
    MARKS,
    SHOWN,
    SPACE,
    number,
    percent,
    percent_load,
    unit,
)
from fairlead.evaluate.results import ComparisonRow, Results

_NAME_WIDTH = 13  # of the longest heuristic; only names of policy files are longer
_STYLES = {"better": "green", "worse": "red", "undecided": "dim", "equal": "dim", "reference": "bold"}


def terminal_table(results: Results, scenario: str, load: float) -> Table:
    """All routers in one setting, two lines each; fits 120 columns.

    The first line of a cell is the mean over the seeds and the difference to the best heuristic for that
    metric in percent; the second is the 95 % interval of that difference, with a sign for the verdict, so
    that nothing is told by colour alone.
    """
    configuration = results.configuration
    rate = load * configuration.capacity_rps[scenario]
    table = Table(
        title=f"{scenario} at {percent_load(load)} ({number('throughput_rps', rate)} requests/s)",
        caption=(
            f"mean of {len(configuration.seeds)} seeds; difference to the best heuristic of each column "
            f"(geometric mean of the ratios) and its 95{SPACE}% interval, in{SPACE}%: "
            f"{MARKS['better']} better, {MARKS['worse']} worse, {MARKS['undecided']} undecided, "
            f"{MARKS['equal']} equal in every run; imbalance is not judged"
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("router", no_wrap=True)  # names are folded here; what is too wide wraps in the numbers
    for metric in SHOWN:
        first, _, second = LABELS[metric].partition(" ")
        header = f"{second or first}\n{first if second else ''} {unit(metric)}"
        table.add_column(header, justify="right", overflow="fold")
    for router in configuration.routers:
        style = "bold" if router.kind == "learned" else ""
        cells = [_cell(results.comparison(scenario, load, router.name, metric)) for metric in SHOWN]
        table.add_row(Text("\n".join(wrap(router.name, _NAME_WIDTH)), style), *cells)
    return table


def _cell(cell: ComparisonRow) -> Text:
    standing = cell.standing
    style, mark = _STYLES.get(standing, ""), MARKS[standing]
    text = Text(number(cell.metric, cell.mean), style if standing == "reference" else "")
    if standing in ("reference", "least", "equal"):
        return text.append(f"\n{mark}", style)
    interval = cell.relative_interval
    if interval is None or cell.relative_difference is None:
        # A reference of 0 has no percentage: the difference itself is shown instead.
        low, high = (f"{end:+.2g}" for end in (cell.ci_low, cell.ci_high))
        return text.append(f"\n{mark}{low}, {high}", style)
    low, high = (_short_percent(end) for end in interval)
    text.append(f" {_short_percent(cell.relative_difference)}", style)
    return text.append(f"\n{mark}{low}, {high}", style)


def _short_percent(fraction: float) -> str:
    """As `percent`, with thousands as in `+1.2k`: columns are narrow."""
    return percent(fraction) if abs(fraction) < 9.995 else f"{percent(fraction / 1000)}k"
