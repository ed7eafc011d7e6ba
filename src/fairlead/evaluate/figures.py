"""The report's figures, as SVG text to be placed inside HTML.

Text and axes take the colour of the surrounding page (`currentColor`) and its font, so the same figure reads
well on a light and on a dark page and in print. Every series is named by a label and told apart by its marker
or dash as well as by its colour.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from fairlead.errors import FairleadError
from fairlead.evaluate.phrasing import quantity
from fairlead.evaluate.results import Results, RouterInfo
from fairlead.simulator.outcomes import FloatArray

_INK = "#010203"  # replaced by currentColor
_COLOURS = {"learned": "#e8590c", "lookahead": "#8f5fe8", "heuristic": "#4f86c6"}
_MARKERS = {"learned": "D", "lookahead": "s", "heuristic": "o"}
_LEARNED = ("#e8590c", "#f08c00", "#c92a2a", "#9c36b5")
_LINES = (
    ("#4f86c6", (0, (5, 2))),
    ("#2f9e7e", (0, (1, 1.2))),
    ("#8a8f98", (0, (4, 1.5, 1, 1.5))),
    ("#c2255c", (0, (8, 2, 2, 2))),
)
# Any: matplotlib types the keys as literals, which a plain dictionary is not.
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": _INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")  # 72: the SVG unit
    axes = figure.add_subplot()
    axes.grid(True)
    return figure, axes


def _svg(figure: Figure, prefix: str, description: str) -> str:
    """The figure as an `<svg>` element; its ids start with `prefix`, so that figures cannot clash."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    # The page's font and CSS decide; fixed pixel sizes would not shrink on a telephone.
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: (bold|700) ([\d.]+)px [^;\"]*", r"font-weight: bold; font-size: \2px", text)
    text = re.sub(r'(<svg [^>]*?) ?\bwidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) ?\bheight="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1).strip()


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are plain numbers, few but at least two, whatever the range."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = min(values), max(values)
    room = max((high / low) ** 0.12, 1.02)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / room, high * room)
    narrow = high / low < 5
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def plane(results: Results, scenario: str, load: float, prefix: str) -> str:
    """Mean TTFT against mean E2E: a labelled point per router, dashed lines at the best heuristics."""
    horizontal, vertical = "ttft_mean_s", "e2e_mean_s"
    configuration = results.configuration
    means = {
        info.name: tuple(
            max(results.comparison(scenario, load, info.name, metric).mean, 1e-9)
            for metric in (horizontal, vertical)
        )
        for info in configuration.routers
    }
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(5.6, 4.9)
        _scale(axes, "x", [x for x, _ in means.values()])
        _scale(axes, "y", [y for _, y in means.values()])
        first = configuration.router_names[0]
        best_x, best_y = (
            max(results.comparison(scenario, load, first, metric).reference, 1e-9)
            for metric in (horizontal, vertical)
        )
        axes.axvline(best_x, color=_COLOURS["heuristic"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.axhline(best_y, color=_COLOURS["heuristic"], linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
        axes.fill_between([left, best_x], bottom, best_y, color="#2f9e7e", alpha=0.10, linewidth=0, zorder=0)
        for info in configuration.routers:
            axes.plot(
                *means[info.name],
                marker=_MARKERS[info.kind],
                markersize=8.5 if info.kind == "learned" else 6.5,
                color=_COLOURS[info.kind],
                linestyle="none",
                zorder=4 if info.kind == "learned" else 3,
            )
        axes.set_xlabel("mean TTFT (s), smaller is better")
        axes.set_ylabel("mean E2E (s), smaller is better")
        axes.set_title("Mean TTFT and mean E2E")
        _label_points(figure, axes, configuration.routers, means, (best_x, best_y))
        words = "; ".join(
            f"{name} {quantity(horizontal, x)} and {quantity(vertical, y)}" for name, (x, y) in means.items()
        )
        return _svg(figure, prefix, f"Mean TTFT and mean E2E of each router: {words}")


def _label_points(
    figure: Figure,
    axes: Axes,
    routers: Sequence[RouterInfo],
    points: Mapping[str, tuple[float, ...]],
    lines: tuple[float, float],
) -> None:
    """Write each router's name near its point where it covers no point, no other name and no line."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the places below are in pixels: nothing may move any more
    frame = axes.get_window_extent()
    spots = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in spots.values()]
    line_x, line_y = axes.transData.transform(lines)
    taken.append(Bbox.from_extents(line_x - 1, frame.y0, line_x + 1, frame.y1))
    taken.append(Bbox.from_extents(frame.x0, line_y - 1, frame.x1, line_y + 1))
    # What matters most is placed first, so that it gets the best place.
    order = sorted(routers, key=lambda info: ("learned", "lookahead", "heuristic").index(info.kind))
    for info in order:
        x, y = spots[info.name]
        width, height = 5.6 * len(info.name) + 4, 11
        box, distance = _free_box(x, y, width, height, taken, frame)
        taken.append(box)
        centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        axes.annotate(
            info.name,
            xy=(x, y),
            xytext=centre,
            xycoords="figure pixels",
            textcoords="figure pixels",
            ha="center",
            va="center",
            fontweight="bold" if info.kind == "learned" else "normal",
            annotation_clip=False,
            arrowprops=(
                {"arrowstyle": "-", "color": _INK, "alpha": 0.35, "linewidth": 0.6} if distance > 16 else None
            ),
        )


def _free_box(
    x: float, y: float, width: float, height: float, taken: Sequence[Bbox], frame: Bbox
) -> tuple[Bbox, float]:
    """The nearest place for a label of that size around (x, y) that overlaps least, and its distance."""
    best: tuple[float, Bbox, float] | None = None
    for distance in (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0):
        for angle in np.deg2rad((0, 180, 90, 270, 45, 315, 135, 225)):
            dx, dy = float(np.cos(angle)), float(np.sin(angle))
            cx = x + dx * (distance + width / 2)
            cy = y + dy * (distance + height / 2)
            box = Bbox.from_extents(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            overlap = sum(_overlap(box, other) for other in taken) + (0.0 if inside else 1e5)
            if overlap == 0.0:
                return box, distance
            if best is None or overlap < best[0]:
                best = (overlap, box, distance)
    assert best is not None
    return best[1], best[2]


def _overlap(one: Bbox, other: Bbox) -> float:
    width = float(min(one.x1, other.x1) - max(one.x0, other.x0))
    height = float(min(one.y1, other.y1) - max(one.y0, other.y0))
    return max(width, 0.0) * max(height, 0.0)


def distribution(
    latencies_s: Mapping[str, FloatArray], routers: Sequence[RouterInfo], metric: str, prefix: str
) -> str:
    """The share of requests served within a time, by router; `metric` is `TTFT` or `E2E`.

    Args:
        latencies_s: by router: (N,) the latency of each request, in seconds.
        routers: those to draw, in the order of the legend.
        metric: what the latencies are.
        prefix: of the ids in the SVG.
    """
    shares = np.concatenate([np.linspace(0.002, 0.98, 200), np.linspace(0.981, 0.999, 40)])
    heuristics, learned = iter(_LINES * len(routers)), iter(_LEARNED * len(routers))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(5.6, 2.5)
        axes.set_xscale("log")
        for info in routers:
            colour: str = _COLOURS[info.kind]
            dash: Any = (0, (3, 1)) if info.kind == "lookahead" else "solid"
            if info.kind == "heuristic":
                colour, dash = next(heuristics)
            elif info.kind == "learned":
                colour = next(learned)
            axes.plot(
                np.maximum(np.quantile(latencies_s[info.name], shares), 1e-6),
                100 * shares,
                color=colour,
                linestyle=dash,
                linewidth=2.2 if info.kind == "learned" else 1.5,
                label=info.name,
            )
        axes.set_ylim(0, 101)
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{metric} (s)")
        axes.set_ylabel("requests served within (%)")
        axes.set_title(f"Distribution of {metric}")
        axes.legend(loc="upper left", fontsize=8, handlelength=3.0, labelspacing=0.25)
        names = ", ".join(info.name for info in routers)
        return _svg(figure, prefix, f"Cumulative distribution of {metric} for {names}")


def training_curve(path: str | Path, prefix: str) -> str:
    """The held-out objective against the decisions made, from a training log.

    Args:
        path: a CSV file with a header; needs `evaluation/objective`, which may be empty in some rows, and
            `charts/decisions`.
        prefix: of the ids in the SVG.

    Raises:
        FairleadError: the file cannot be read, or lacks the columns or any evaluation.
    """
    horizontal, vertical = "charts/decisions", "evaluation/objective"
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        points = [(float(row[horizontal]), float(row[vertical])) for row in rows if row[vertical]]
    except OSError as error:
        raise FairleadError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise FairleadError(
            f"{path} is not a training log: it needs numbers under {horizontal} and {vertical}"
        ) from error
    if not points:
        raise FairleadError(f"{path} holds no evaluation: nothing to draw")
    x, y = np.array(points).T
    best = np.minimum.accumulate(y)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(8.0, 3.2)
        axes.plot(
            x, best, color=_COLOURS["learned"], linewidth=1.0, linestyle=(0, (3, 2)), label="best so far"
        )
        axes.plot(
            x, y, color=_COLOURS["learned"], linewidth=1.8, marker="o", markersize=3, label="evaluation"
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("decisions")
        axes.set_ylabel("held-out objective")
        axes.set_title("Training: the objective on held-out requests, smaller is better")
        axes.legend(loc="upper right", fontsize=8.5)
        return _svg(figure, prefix, f"Held-out objective from {y[0]:.3g} to {best[-1]:.3g} at best")


Point = tuple[float, float]


def frontier(
    heuristics: Mapping[str, Point],
    learned: Mapping[float, Point],
    lookahead: Mapping[float, Point],
    title: str,
    prefix: str,
) -> str:
    """Mean E2E against p99 TTFT: heuristics as points, the learned policy as a line over its dial.

    Args:
        heuristics: by name: both, relative to the best heuristic of each (1 is the best).
        learned: the same by setting of the dial, in order.
        lookahead: the same; may be empty.
        title: of the figure.
        prefix: of the ids in the SVG.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(5.6, 4.2)
        # What is much worse than all others would squeeze them into a corner.
        near = {name: p for name, p in heuristics.items() if p[0] < 1.6 and p[1] < 3.0}
        points = [*near.values(), *learned.values(), *lookahead.values()]
        _scale(axes, "x", [x for x, _ in points])
        _scale(axes, "y", [y for _, y in points])
        for x, y in near.values():
            axes.plot(x, y, _MARKERS["heuristic"], color=_COLOURS["heuristic"], markersize=6.5, zorder=3)
        lines = (("lookahead", lookahead), ("learned", learned))
        for kind, line in lines:
            if line:
                axes.plot(
                    *np.array(list(line.values())).T,
                    marker=_MARKERS[kind],
                    color=_COLOURS[kind],
                    linestyle="--" if kind == "lookahead" else "solid",
                    markersize=5.5,
                    label=f"{kind}, dial {min(line):g} to {max(line):g}",
                    zorder=4,
                )
        infos = [RouterInfo(name=name, kind="heuristic") for name in near]
        axes.set_xlabel("mean E2E, relative to the best heuristic's")
        axes.set_ylabel("p99 TTFT, relative to the best heuristic's")
        axes.set_title(title)
        axes.legend(loc="upper right", fontsize=8.5)  # looking for the best place can take long
        if near:
            others = {f"{kind} {dial:g}": p for kind, line in lines for dial, p in line.items()}
            _label_points(figure, axes, infos, near | others, (1.0, 1.0))
        left_out = sorted(set(heuristics) - set(near))
        words = f"{title}: mean E2E against p99 TTFT" + (
            f"; far worse and not shown: {', '.join(left_out)}" if left_out else ""
        )
        return _svg(figure, prefix, words)


def standalone(svg: str) -> str:
    """The figure as a file of its own, on a white ground."""
    return svg.replace(
        "<svg ",
        '<svg width="640" style="background:#fff;color:#222;font-family:sans-serif" ',
        1,
    )
