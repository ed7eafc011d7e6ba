"""The report that people share: one HTML file that needs nothing else, neither network nor scripts."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fairlead.errors import FairleadError
from fairlead.evaluate import figures
from fairlead.evaluate.dependence import read_dependence
from fairlead.evaluate.files import REPORT_FILE, REQUESTS_FILE
from fairlead.evaluate.per_request import configuration_hash, read_requests
from fairlead.evaluate.phrasing import (
    HEADLINE,
    LABELS,
    MARKS,
    SHOWN,
    SPACE,
    number,
    percent,
    percent_load,
    quantity,
    unit,
)
from fairlead.evaluate.results import ComparisonRow, Results, RouterInfo, load_results
from fairlead.evaluate.words import headline, setting_words
from fairlead.files import write_text
from fairlead.simulator.metrics import METRICS, measured_window
from fairlead.simulator.outcomes import FloatArray

MORE: tuple[str, ...] = tuple(metric for metric in METRICS if metric not in SHOWN)
"""The metrics that the report shows folded away."""

_MOST_CURVES = 6
_TOOLTIPS = {
    "reference": "the best heuristic for {metric}",
    "least": "the heuristic with the least {metric}",
    "unjudged": "{against}",
}


@dataclass(frozen=True)
class Cell:
    """One metric of one router, ready to be printed."""

    value: str
    standing: str
    mark: str
    difference: str
    interval: str
    tooltip: str


def render_report(directory: str | Path, *, training_log: str | Path | None = None) -> Path:
    """Write `report.html` from the results in `directory`; an earlier report there is replaced.

    Args:
        directory: holds `results.json`; the distributions are drawn if `requests.parquet` is there too.
        training_log: the CSV log of a training run, to draw its curve.

    Returns:
        The path of the report.

    Raises:
        FairleadError: the results are missing, damaged or incomplete, or the per-request file is another
            run's.
    """
    directory = Path(directory)
    results = load_results(directory)
    has_requests = (directory / REQUESTS_FILE).exists()
    if has_requests and configuration_hash(directory) != results.configuration_hash:
        raise FairleadError(
            f"{REQUESTS_FILE} and results.json in {directory} come from different runs: remove the former"
        )
    environment = Environment(
        loader=PackageLoader("fairlead.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,  # a value that is missing is an error, never a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )
    configuration = results.configuration
    subjects = configuration.names("learned") or configuration.names("lookahead")
    html = environment.get_template("report.html.j2").render(
        results=results,
        configuration=configuration,
        headline=headline(results),
        subjects=subjects,
        sections=[
            _section(results, directory if has_requests else None, number, setting)
            for number, setting in enumerate(configuration.settings)
        ],
        scenarios={
            name: json.dumps(content, indent=2, ensure_ascii=False)
            for name, content in configuration.scenarios.items()
        },
        dependence=read_dependence(directory),
        training=Markup(figures.training_curve(training_log, "training")) if training_log else None,
        cell=partial(_cell, results),
        labels=LABELS,
        shown=SHOWN,
        more=MORE,
        headline_metrics=HEADLINE,
        unit=unit,
        marks=MARKS,
    )
    path = directory / REPORT_FILE
    write_text(path, html)
    return path


@dataclass(frozen=True)
class Section:
    """One setting, ready to be printed."""

    anchor: str
    scenario: str
    load: float
    load_text: str
    rate: str
    description: str
    sentences: list[str]
    figures: list[Markup]


def _section(results: Results, requests: Path | None, index: int, setting: tuple[str, float]) -> Section:
    scenario, load = setting
    configuration = results.configuration
    prefix = f"s{index}"
    drawn = [figures.plane(results, scenario, load, f"{prefix}-plane")]
    if requests is not None:
        routers = _routers_to_draw(results, scenario, load)
        ttft, e2e = _latencies(results, requests, scenario, load, routers)
        drawn.append(figures.distribution(ttft, routers, "TTFT", f"{prefix}-ttft"))
        drawn.append(figures.distribution(e2e, routers, "E2E", f"{prefix}-e2e"))
    capacity = configuration.capacity_rps[scenario]
    place = f"{scenario} at {percent_load(load)}: "
    return Section(
        anchor=f"setting-{index}",
        scenario=scenario,
        load=load,
        load_text=percent_load(load),
        rate=(
            f"{number('throughput_rps', load * capacity)} requests per second; "
            f"measured capacity {number('throughput_rps', capacity)}"
        ),
        description=str(configuration.scenarios[scenario].get("description") or ""),
        sentences=[
            sentence.removeprefix(place).replace("the best", "The best", 1 if index == 0 else 0)
            for index, sentence in enumerate(setting_words(results, scenario, load))
        ],
        figures=[Markup(svg) for svg in drawn],
    )


def _cell(results: Results, scenario: str, load: float, router: str, metric: str) -> Cell:
    found = results.comparison(scenario, load, router, metric)
    difference, interval = _difference(found)
    low, high = quantity(metric, found.ci_low), quantity(metric, found.ci_high)
    return Cell(
        value=number(metric, found.mean),
        standing=found.standing,
        mark=MARKS[found.standing],
        difference=difference,
        interval=interval,
        tooltip=_TOOLTIPS.get(found.standing, "{standing}: {against}").format(
            standing=found.standing,
            metric=LABELS[metric],
            against=f"{quantity(metric, found.difference)} [{low} to {high}] against "
            f"{found.reference_router}, {quantity(metric, found.reference)} ({found.method})",
        ),
    )


def _difference(cell: ComparisonRow) -> tuple[str, str]:
    """Difference to the reference and its interval; in percent where the reference is not 0."""
    if cell.equal:
        return "equal", ""
    ends = cell.relative_interval
    if ends is None or cell.relative_difference is None:
        return f"{cell.difference:+.2g}", f"{cell.ci_low:+.2g} to {cell.ci_high:+.2g}"
    low, high = (percent(end) for end in ends)
    return f"{percent(cell.relative_difference)}{SPACE}%", f"{low} to {high}"


def _routers_to_draw(results: Results, scenario: str, load: float) -> list[RouterInfo]:
    """The learned routers, lookahead, and the heuristics that are best on some headline metric."""
    configuration = results.configuration
    chosen = [*configuration.names("learned"), *configuration.names("lookahead")][: _MOST_CURVES - 2]
    first = configuration.router_names[0]
    for metric in HEADLINE:
        chosen.append(results.comparison(scenario, load, first, metric).reference_router)
    # Round robin is what people have, lor what they should have had: where there is room, they are the scale.
    chosen += [name for name in ("lor", "round_robin") if name in configuration.router_names]
    kept = list(dict.fromkeys(chosen))[:_MOST_CURVES]
    by_name = {info.name: info for info in configuration.routers}
    return [by_name[name] for name in kept]


def _latencies(
    results: Results, directory: Path, scenario: str, load: float, routers: list[RouterInfo]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By router: TTFT and E2E of the measured requests of all seeds."""
    configuration = results.configuration
    window = measured_window(configuration.requests, configuration.warmup, configuration.cooldown)
    columns = ("request", "arrival_s", "first_token_s", "finish_s")
    ttft, e2e = {}, {}
    for info in routers:
        found = read_requests(directory, scenario, load, info.name, columns)
        measured = np.logical_and(found["request"] >= window.start, found["request"] < window.stop)
        ttft[info.name] = (found["first_token_s"] - found["arrival_s"])[measured]
        e2e[info.name] = (found["finish_s"] - found["arrival_s"])[measured]
    return ttft, e2e
