"""Suites: named lists of scenarios, accepted wherever scenarios are named, as `suite/NAME`.

What is for training and what for evaluation is not decided here: each scenario's random streams are split by
their first name (`train`, `validate`, `evaluate`), so no run of an evaluation was ever trained on.
"""

from importlib import resources

import yaml
from pydantic import Field

from fairlead.errors import FairleadError
from fairlead.section import Section, did_you_mean
from fairlead.workload.drawing import split_draw, with_drawn_hardware
from fairlead.workload.drawn import DRAWN, drawn_scenario, split_range
from fairlead.workload.loads import split_load, with_load
from fairlead.workload.scaling import split_count, with_replicas
from fairlead.workload.scenario import SUITE_PREFIX, Scenario, load_scenario


class Suite(Section):
    """Scenarios that are run together."""

    name: str
    description: str
    scenarios: dict[str, str] = Field(min_length=1)
    """Names of shipped scenarios, each with what it teaches, in a sentence."""


def suite_names() -> list[str]:
    """The suites that ship with Fairlead, sorted, without the prefix."""
    entries = (resources.files("fairlead.workload") / "suites").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_suite(name: str) -> Suite:
    """The suite called `name`, with or without `suite/` in front.

    Raises:
        FairleadError: if there is none.
    """
    name = name.removeprefix(SUITE_PREFIX)
    if name not in suite_names():
        raise FairleadError(f"unknown suite {name!r}; {did_you_mean(name, suite_names())}")
    text = (resources.files("fairlead.workload") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
    return Suite.model_validate({"name": name, **yaml.safe_load(text)})


def load_variant(name_or_file: str) -> Scenario:
    """The one scenario that a text names, as `load_scenario`; or a variant of it.

    `:16` behind it multiplies the replicas to 16 (`with_replicas`), `~3` puts it on hardware number 3 of
    those drawn at random (`with_drawn_hardware`), `@1.2` has it at that load alone (`with_load`);
    `NAME:16~3@1.2` is all three. `drawn~3` is a scenario of which everything is drawn (`drawn_scenario`).

    Raises:
        FairleadError: as `load_scenario`, `with_replicas`, `with_drawn_hardware` and `with_load`; for `drawn`
            without a number, and with a number of replicas.
    """
    name, replicas, draw, load = _split(name_or_file)
    if name == DRAWN:
        return _drawn(name_or_file, replicas, draw, load)
    return _vary(load_scenario(name), replicas, draw, load)


def load_scenarios(name_or_file: str) -> list[Scenario]:
    """The scenarios that a text names: those of `suite/NAME` or `drawn~3..9`, or the one of `load_variant`.

    `:16`, `~3` and `@1.2` behind a suite hold for each of its scenarios.

    Raises:
        FairleadError: if there is no such suite, and as `load_variant` and `split_range`.
    """
    name, replicas, draw, load = _split(name_or_file)
    if name.startswith(SUITE_PREFIX) and not name.endswith((".yaml", ".yml")):
        return [_vary(load_scenario(each), replicas, draw, load) for each in load_suite(name).scenarios]
    return [load_variant(each) for each in split_range(name_or_file)]


def _split(text: str) -> tuple[str, int | None, int | None, float | None]:
    """Name, replicas, number of the drawn hardware and load; None: as the scenario has it."""
    rest, load = split_load(text)
    rest, draw = split_draw(rest)
    name, replicas = split_count(rest)
    return name, replicas, draw, load


def _vary(scenario: Scenario, replicas: int | None, draw: int | None, load: float | None) -> Scenario:
    if replicas is not None:
        scenario = with_replicas(scenario, replicas)
    if draw is not None:
        scenario = with_drawn_hardware(scenario, draw)
    return scenario if load is None else with_load(scenario, load)


def _drawn(text: str, replicas: int | None, number: int | None, load: float | None) -> Scenario:
    if number is None:
        raise FairleadError(f"{text}: scenarios that are drawn at random have numbers, for example {DRAWN}~3")
    if replicas is not None:
        raise FairleadError(f"{text}: how many replicas is drawn too; leave :{replicas} away")
    return _vary(drawn_scenario(number), None, None, load)
