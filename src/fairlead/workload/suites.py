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


def load_scenarios(name_or_file: str) -> list[Scenario]:
    """The scenarios that a text names: those of `suite/NAME`, or the one of `load_scenario`.

    `~3` behind it puts each on hardware number 3 of those drawn at random (`with_drawn_hardware`), `:16`
    multiplies the replicas of each to 16 (`with_replicas`); `NAME:16~3` is both.

    Raises:
        FairleadError: if there is no such suite, and as `load_scenario`, `with_replicas` and
            `with_drawn_hardware`.
    """
    name, draw = split_draw(name_or_file)
    name, replicas = split_count(name)
    if name.startswith(SUITE_PREFIX) and not name.endswith((".yaml", ".yml")):
        found = [load_scenario(each) for each in load_suite(name).scenarios]
    else:
        found = [load_scenario(name)]
    if replicas is not None:
        found = [with_replicas(each, replicas) for each in found]
    return found if draw is None else [with_drawn_hardware(each, draw) for each in found]
