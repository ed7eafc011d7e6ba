"""The results document: what `results.json` holds, validated when written and when read.

A document is complete or it is not accepted: one row for each scenario x load x router x seed, one comparison
for each scenario x load x router x metric, every number finite.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from fairlead import __version__
from fairlead.errors import FairleadError
from fairlead.evaluate.files import RESULTS_FILE
from fairlead.evaluate.statistics import NEUTRAL
from fairlead.files import write_text
from fairlead.simulator.metrics import METRICS

RouterKind = Literal["heuristic", "lookahead", "learned"]
Setting = tuple[str, float]
"""A scenario's name and a load."""


class Record(BaseModel):
    """Immutable; unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RouterInfo(Record):
    """A router that took part."""

    name: str
    """Unique among the routers of the run."""
    kind: RouterKind
    """Only heuristics can be the reference; lookahead and learned routers are measured against them."""
    detail: str = ""
    """What identifies it: the policy file and its hash, or the weights of lookahead."""


class Configuration(Record):
    """Everything that is needed to run it again."""

    scenarios: dict[str, dict[str, JsonValue]]
    """Each scenario in full, by name."""
    loads: dict[str, list[float]]
    """By scenario: fractions of its capacity."""
    capacity_rps: dict[str, float]
    """By scenario: measured capacity in requests per second."""
    routers: list[RouterInfo] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    requests: int = Field(ge=1)
    """Requests per run."""
    warmup: float = 0.1
    """Share of the requests left out at the start of each run."""
    cooldown: float = 0.05
    """Share of the requests left out at the end of each run."""
    command: str = ""
    """The command that made it, if there was one."""
    simulator: str = "fairlead"
    """What simulated it: `fairlead`, or another simulator with its version; or `live servers (N)`."""
    notes: list[str] = []
    """What a reader must know about how another simulator was used, in sentences."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.scenarios.keys() == self.loads.keys() == self.capacity_rps.keys()):
            raise ValueError("scenarios, loads and capacity_rps must name the same scenarios")
        for what, values in (("router", Counter(self.router_names)), ("seed", Counter(self.seeds))):
            ((value, times),) = values.most_common(1)
            if times > 1:
                raise ValueError(f"the {what} {value} is given twice")
        return self

    @property
    def router_names(self) -> list[str]:
        """In the order given."""
        return [router.name for router in self.routers]

    @property
    def settings(self) -> list[Setting]:
        """Every scenario at each of its loads."""
        return [(name, load) for name in self.scenarios for load in self.loads[name]]

    def names(self, *kinds: RouterKind) -> list[str]:
        """The routers of these kinds."""
        return [router.name for router in self.routers if router.kind in kinds]

    def hash(self) -> str:
        """16 hex digits that every file of the run carries; the command's wording does not count."""
        content = self.model_dump(mode="json", exclude={"command"})
        for name in ("simulator", "notes"):  # absent from older files, and from what these say
            if content[name] == type(self).model_fields[name].default:
                del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Row(Record):
    """One run: the metrics of one router under one seed; see `fairlead.simulator.metrics.summarise`."""

    scenario: str
    load: float
    router: str
    seed: int
    rate_rps: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p99_s: float
    e2e_mean_s: float
    e2e_p50_s: float
    e2e_p90_s: float
    e2e_p99_s: float
    throughput_rps: float
    goodput_rps: float
    imbalance: float
    retries_mean: float = 0.0
    prefix_hit_rate: float = 0.0
    """Absent in files from before there was prefix caching."""
    scheduling_delay_p99_s: float = 0.0
    """From arrival to the first batch; 0 where that was not recorded."""
    ttft_worst_mean_s: float = 0.0
    """Absent in files from before the dial weighed the tail."""

    def metric(self, name: str) -> float:
        """The metric called `name`."""
        return float(getattr(self, name))


Standing = Literal["better", "worse", "undecided", "equal", "reference", "least", "unjudged"]
"""How a router is shown beside the reference; `least` and `unjudged` where a metric is not judged."""


class ComparisonRow(Record):
    """A router against the best heuristic for one metric, paired over the seeds."""

    scenario: str
    load: float
    router: str
    metric: str
    reference_router: str
    """The heuristic that is best at this metric over the seeds (the geometric mean; the mean where a value is
    0); may be the router itself."""
    mean: float
    reference: float
    """The reference router's mean."""
    difference: float
    """mean - reference, in the metric's unit."""
    relative_difference: float | None
    """Geometric mean of the ratios to the reference, seed by seed, minus 1. Where a value is 0, and in files
    from before, difference / reference; null only where the reference is 0."""
    ci_low: float
    """Lower end of the 95 % interval of the difference."""
    ci_high: float
    relative_ci_low: float | None = None
    """Lower end of the 95 % interval of the relative difference; absent in files from before."""
    relative_ci_high: float | None = None
    method: Literal["paired t", "bootstrap-t", "equal differences", "itself"]
    """How the interval was made; `itself` for the reference router."""
    verdict: Literal["better", "worse", "undecided", "reference"]

    @property
    def relative_interval(self) -> tuple[float, float] | None:
        """The interval of the relative difference; None where the reference is 0."""
        if self.reference == 0.0:
            return None
        if self.relative_ci_low is None or self.relative_ci_high is None:
            return self.ci_low / self.reference, self.ci_high / self.reference
        return self.relative_ci_low, self.relative_ci_high

    @property
    def equal(self) -> bool:
        """Whether every single run gave what the reference gave: two routers that chose alike."""
        return self.method == "equal differences" and self.difference == 0.0

    @property
    def standing(self) -> Standing:
        """The verdict as it is shown: equal runs are not undecided, and not every metric is judged."""
        if self.verdict == "reference":
            return "least" if self.metric in NEUTRAL else "reference"
        if self.equal:
            return "equal"
        return "unjudged" if self.metric in NEUTRAL else self.verdict


class Results(Record):
    """A whole tournament."""

    schema_version: Literal[1] = 1
    fairlead_version: str = __version__
    configuration_hash: str
    configuration: Configuration
    rows: list[Row]
    comparisons: list[ComparisonRow]
    words: list[str]
    """Who wins where, in sentences."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        configuration = self.configuration
        if self.configuration_hash != configuration.hash():
            raise ValueError("configuration_hash does not belong to the configuration: the file was altered")
        check_complete(configuration, self.rows)
        _check_cells(
            "comparison",
            ("scenario", "load", "router", "metric"),
            [(c.scenario, c.load, c.router, c.metric) for c in self.comparisons],
            [
                (*setting, router, metric)
                for setting, router, metric in itertools.product(
                    configuration.settings, configuration.router_names, METRICS
                )
            ],
        )
        return self

    @cached_property
    def _comparison_index(self) -> dict[tuple[str, float, str, str], ComparisonRow]:
        return {(c.scenario, c.load, c.router, c.metric): c for c in self.comparisons}

    def comparison(self, scenario: str, load: float, router: str, metric: str) -> ComparisonRow:
        """One cell of the tournament.

        Raises:
            FairleadError: there is no such cell.
        """
        try:
            return self._comparison_index[scenario, load, router, metric]
        except KeyError:
            raise FairleadError(
                f"the results hold no {metric} of {router} for {scenario} at load {load:g}"
            ) from None

    def values(self, scenario: str, load: float, router: str, metric: str) -> list[float]:
        """A metric's value for each seed, in the order of the configuration's seeds."""
        return seed_values(self.configuration, self.rows, scenario, load, metric)[router]


def seed_values(
    configuration: Configuration, rows: Sequence[Row], scenario: str, load: float, metric: str
) -> dict[str, list[float]]:
    """By router: the metric for each seed, in the order of the configuration's seeds, hence paired."""
    found = {(row.router, row.seed): row for row in rows if row.scenario == scenario and row.load == load}
    return {
        router: [found[router, seed].metric(metric) for seed in configuration.seeds]
        for router in configuration.router_names
    }


def check_complete(configuration: Configuration, rows: Sequence[Row]) -> None:
    """Raise `FairleadError` unless there is exactly one row for each scenario x load x router x seed."""
    _check_cells(
        "row",
        ("scenario", "load", "router", "seed"),
        [(row.scenario, row.load, row.router, row.seed) for row in rows],
        [
            (*setting, router, seed)
            for setting, router, seed in itertools.product(
                configuration.settings, configuration.router_names, configuration.seeds
            )
        ],
    )


def _check_cells(
    what: str,
    names: tuple[str, ...],
    found: Sequence[tuple[object, ...]],
    wanted: Collection[tuple[object, ...]],
) -> None:
    held, expected = Counter(found), set(wanted)
    for complaint, cells in (
        (f"no {what} for", [cell for cell in wanted if cell not in held]),
        (f"a {what} that the configuration does not ask for:", [c for c in held if c not in expected]),
        (f"more than one {what} for", [c for c, times in held.items() if times > 1]),
    ):
        if cells:
            cell = ", ".join(f"{name} {value}" for name, value in zip(names, cells[0], strict=True))
            more = f" (and {len(cells) - 1} more)" if len(cells) > 1 else ""
            raise FairleadError(f"the results have {complaint} {cell}{more}; run the evaluation again")


def write_results(directory: str | Path, results: Results) -> Path:
    """Write `results.json` into a directory, all of it or nothing; returns its path."""
    path = Path(directory) / RESULTS_FILE
    write_text(path, results.model_dump_json(indent=1) + "\n")
    return path


def load_results(path: str | Path) -> Results:
    """Read a results file, or the one in a directory.

    Raises:
        FairleadError: there is none, or it is damaged, incomplete or of another version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / RESULTS_FILE
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FairleadError(
            f"{file} does not exist: name a directory that `fairlead evaluate` wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FairleadError(f"cannot read {file}: {error}") from error
    try:
        return Results.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise FairleadError(f"{file} is not a valid results file: {place}: {problem['msg']}") from error
    except FairleadError as error:
        raise FairleadError(f"{file}: {error}") from error
