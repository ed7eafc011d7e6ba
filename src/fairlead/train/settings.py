"""The page of all settings: `python -m fairlead.train.settings > docs/settings.md`."""

import ast
import inspect
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from fairlead.env.reward_config import HybridReward, LatencyPenalty
from fairlead.train.config import TrainConfig
from fairlead.train.curriculum import Stage
from fairlead.train.live_config import LiveConfig
from fairlead.train.ppo_config import Pulses, StepAdaptation

INTRODUCTION = """# Settings of training

Every setting with its default and its help, as `fairlead train` takes them: in a YAML, TOML or JSON file
(`--config`), or one by one (`--set ppo.epochs=4`). This page is made by
`python -m fairlead.train.settings > docs/settings.md`; a test keeps it true.

A *schedule* is a number, a list of points `[[progress, value], ...]` with straight lines between them, or
`{kind: linear | exponential, start: ..., end: ...}`; progress runs from 0 to 1 over the iterations of PPO.
"""

ALSO: tuple[tuple[str, type[BaseModel]], ...] = (
    ("environment.reward (kind: hybrid)", HybridReward),
    ("environment.reward.latency_penalty", LatencyPenalty),
    ("environment.curriculum[]", Stage),
    ("live", LiveConfig),
    ("ppo.pulses", Pulses),
    ("ppo.step_adaptation", StepAdaptation),
)
"""Sections that are not part of the default configuration."""


class Row(NamedTuple):
    """One setting."""

    name: str
    default: str
    help: str


def helps(section: type[BaseModel]) -> dict[str, str]:
    """The help of each field: the text below it in the source."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(section)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, text in itertools.pairwise(body):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def rows(section: type[BaseModel], values: BaseModel | None, prefix: str) -> Iterator[Row]:
    """The settings of one section itself, without those of sections in it."""
    texts = helps(section)
    for name, field in section.model_fields.items():
        value: Any = getattr(values, name) if values is not None else field.get_default()
        if isinstance(value, BaseModel) and not hasattr(value, "at") and name in SECTIONS_IN:
            continue
        yield Row(
            f"{prefix}{name}", "required" if field.is_required() else _shown(value), texts.get(name, "")
        )


SECTIONS_IN = (
    "environment",
    "network",
    "ppo",
    "imitation",
    "validation",
    "stability",
    "safety",
    "latency_penalty",
)


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
        if value.get("kind") == "constant":
            value = value["value"]
    return json.dumps(value)


def sections() -> Iterator[tuple[str, list[Row]]]:
    """Every section with its settings."""
    config = TrainConfig()
    yield "The run", list(rows(TrainConfig, config, ""))
    for name in (
        "environment",
        "environment.safety",
        "network",
        "imitation",
        "ppo",
        "validation",
        "stability",
    ):
        values: Any = config
        for part in name.split("."):
            values = getattr(values, part)
        yield name, list(rows(type(values), values, f"{name}."))
    for name, section in ALSO:
        prefix = "" if "[" in name else name.split(" ")[0] + "."
        yield name, list(rows(section, None, prefix))


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, settings in sections():
        lines = [f"| `{r.name}` | `{_cell(r.default)}` | {_cell(r.help)} |" for r in settings]
        parts.append(
            "\n".join([f"## {title}\n", "| setting | default | help |", "|---|---|---|", *lines, ""])
        )
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
