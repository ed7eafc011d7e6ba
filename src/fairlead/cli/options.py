"""Options that several verbs share, and how their text becomes values."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.workload.scenario import Scenario

OneScenario = Annotated[
    str,
    typer.Option(
        "--scenario",
        "-s",
        metavar="NAME_OR_FILE",
        help="A scenario that ships with Fairlead (see `fairlead scenarios`) or a YAML file of your own. "
        "`NAME:16` is one with 16 replicas, `NAME~3` one on hardware drawn at random, `NAME@1.2` one at that "
        "load; `drawn~3` is drawn at random as a whole.",
        show_default=False,
    ),
]
ManyScenarios = Annotated[
    list[str],
    typer.Option(
        "--scenario",
        "-s",
        metavar="NAME_OR_FILE,...",
        help="Scenarios: names, YAML files or `suite/standard`, separated by commas, or the option repeated. "
        "`NAME:16` is one with 16 replicas, `NAME~3` one on hardware drawn at random, `NAME@1.2` one at that "
        "load; `drawn~3` is drawn at random as a whole.",
        show_default=False,
    ),
]
Loads = Annotated[
    str | None,
    typer.Option(
        "--load",
        metavar="FRACTION,...",
        help="How busy the cluster is, as fractions of its measured capacity, such as 0.6,0.85. "
        "Default: the scenario's own loads.",
        show_default=False,
    ),
]
Favor = Annotated[
    float | None,
    typer.Option(
        metavar="DIAL",
        help="What lookahead and trained policies favor, from 0 (end-to-end latency) to 1 (first tokens, "
        "above all late ones). `name@0.8` sets it for one router. Default: 0.5: end-to-end latency, but no "
        "long waits for a first token.",
        show_default=False,
    ),
]
LiveServers = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="URL",
        help="Use live servers instead of the simulator, through the gateway: one of them; once for each.",
        show_default=False,
    ),
]
GatewaySettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--gateway",
        metavar="FILE.yaml",
        help="Settings of that gateway, as for `fairlead serve --config`: declared speeds, keys, the "
        "backends.",
        show_default=False,
    ),
]
LiveRate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="R",
        help="With live servers: requests per second, instead of the scenario's own loads.",
        show_default=False,
    ),
]
TrainingLog = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv",
        help="The training.csv of a training run: its learning curve is drawn into the report.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]


def split(values: Iterable[str], what: str) -> list[str]:
    """The distinct names in comma-separated and repeated options, in order; at least one.

    Args:
        values: the texts given.
        what: what they name, for the error.
    """
    names = [name.strip() for value in values for name in value.split(",")]
    found = list(dict.fromkeys(name for name in names if name))
    if not found:
        raise FairleadError(f"no {what} given; name at least one, or several separated by commas")
    return found


def scenario_list(values: Iterable[str]) -> "list[Scenario]":
    """The scenarios that `--scenario` names."""
    from fairlead.workload.suites import load_scenarios

    found: dict[str, Scenario] = {}
    for name in split(values, "scenario"):
        for scenario in load_scenarios(name):
            # A scenario may be named, and be in a suite that is named too; two that differ are not one.
            if scenario != found.setdefault(scenario.name, scenario):
                raise FairleadError(
                    f"two scenarios are called {scenario.name}: give one of them another name, in its file"
                )
    return list(found.values())


def load_list(text: str | None) -> list[float] | None:
    """The distinct loads in `text`, checked; None if the option was not given."""
    if text is None:
        return None
    from fairlead.workload.scenario import check_load

    loads = []
    for part in split([text], "load"):
        try:
            load = float(part)
        except ValueError:
            raise FairleadError(
                f"--load: {part!r} is not a number; give fractions such as 0.6,0.85"
            ) from None
        check_load(load)
        loads.append(load)
    return list(dict.fromkeys(loads))


def seed_list(first: int, count: int) -> list[int]:
    """`count` seeds from `first` on."""
    if first < 0 or count < 1:
        raise FairleadError(
            f"{count} seeds from {first}: seeds start at 0 or above, and there is at least one"
        )
    return list(range(first, first + count))


def existing(file: Path | None) -> Path | None:
    """`file`, known to be there before hours are spent on what it is for."""
    if file is not None and not file.is_file():
        raise FairleadError(f"there is no file {file}")
    return file


def read_settings(
    file: Path | None, assignments: Iterable[str], settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Settings from a YAML, JSON or TOML file, then `section.key=value` assignments on top.

    Without a file, those given are what the assignments change (in place).
    """
    import tomllib

    import yaml

    from fairlead.loader import load_yaml, problem_of

    settings = {} if settings is None else settings
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
            content = tomllib.loads(text) if file.suffix == ".toml" else load_yaml(text)
        except OSError as error:
            raise FairleadError(f"cannot read the settings file {file}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise FairleadError(f"{file} is not valid TOML: {error}") from None
        except yaml.YAMLError as error:
            raise FairleadError(f"{file} is not valid YAML: {problem_of(error)}") from None
        except UnicodeDecodeError as error:
            raise FairleadError(f"{file} is not valid YAML: {error}") from None
        if not isinstance(content, dict | None):
            raise FairleadError(f"{file} must hold settings as `key: value` lines")
        settings = content or {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise FairleadError(f"--set {assignment}: write it as key=value, for example ppo.epochs=4")
        _assign(settings, key.split("."), _value(text), assignment)
    return settings


def _value(text: str) -> Any:
    import yaml

    for number in (int, float):  # YAML takes 3e-4, which has no dot, for a string
        try:
            return number(text)
        except ValueError:
            pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assign(settings: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    for depth, key in enumerate(path[:-1]):
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise FairleadError(
                f"--set {assignment}: {'.'.join(path[: depth + 1])} is a value, not a section"
            )
    settings[path[-1]] = value
