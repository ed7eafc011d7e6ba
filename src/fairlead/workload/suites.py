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
    `NAME:16~3@1.2` is all three.

    Raises:
        FairleadError: as `load_scenario`, `with_replicas`, `with_drawn_hardware` and `with_load`.
    """
    name, replicas, draw, load = _split(name_or_file)
    return _vary(load_scenario(name), replicas, draw, load)


def load_scenarios(name_or_file: str) -> list[Scenario]:
    """The scenarios that a text names: those of `suite/NAME`, or the one of `load_variant`.

    `:16`, `~3` and `@1.2` behind a suite hold for each of its scenarios.

    Raises:
        FairleadError: if there is no such suite, and as `load_variant`.
    """
    name, replicas, draw, load = _split(name_or_file)
    is_suite = name.startswith(SUITE_PREFIX) and not name.endswith((".yaml", ".yml"))
    names = load_suite(name).scenarios if is_suite else [name]
    return [_vary(load_scenario(each), replicas, draw, load) for each in names]


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
