"""Checkpoints: everything that a bit-exact continuation needs, complete on disk or not there at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairlead.errors import FairleadError
from fairlead.files import atomic
from fairlead.train.config import TrainConfig

VERSION = 4
FIELDS = frozenset(
    {
        "version",
        "config",
        "config_hash",
        "schema_hash",
        "iteration",
        "decisions",
        "network",
        "optimiser",
        "numpy_random",
        "torch_random",
        "reward_scale",
        "controllers",
        "memory",
        "reference",
        "episode",
        "imitation",
        "best",
        "history",
        "seconds",
        "seconds_by_phase",
    }
)
"""The contents; no more, no less."""


def save(path: Path, contents: Mapping[str, Any], config: TrainConfig) -> None:
    """Write a checkpoint to `path`; a crash at any moment leaves the old one or the new one."""
    whole = {
        **contents,
        "version": VERSION,
        "config": config.model_dump_json(),
        "config_hash": config.hash,
    }
    if set(whole) != FIELDS:
        raise ValueError(f"not the contents of a checkpoint: {sorted(set(whole) ^ FIELDS)}")
    with atomic(path) as partial:
        torch.save(whole, partial)


def load(path: Path, config: TrainConfig) -> dict[str, Any]:
    """Read the checkpoint of a run with this configuration.

    Raises:
        FairleadError: if it is missing, corrupt, of another version, incomplete or of another configuration.
    """
    if not path.is_file():
        raise FairleadError(f"no checkpoint at {path} to resume from; start a new run instead")
    try:
        contents: dict[str, Any] = torch.load(path, weights_only=True)
        fields = set(contents)
    except Exception as error:  # torch, pickle and zipfile each have their own
        raise FairleadError(f"{path} is not a readable checkpoint (corrupt or cut short)") from error
    if fields != FIELDS or contents["version"] != VERSION:
        raise FairleadError(f"{path} was written by another version of fairlead; start a new run")
    if contents["config_hash"] != config.hash:
        saved = TrainConfig.model_validate_json(contents["config"])
        changed = ", ".join(different_settings(saved.model_dump(), config.model_dump()))
        raise FairleadError(f"{path} belongs to a run with another configuration; these differ: {changed}")
    return contents


def different_settings(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two configurations differ."""
    names = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            names += different_settings(x, y, f"{prefix}{key}.")
        elif x != y:
            names.append(prefix + key)
    return names


def load_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Strict loading: every name and shape must match.

    Raises:
        FairleadError: if any does not.
    """
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        summary = " ".join(str(error).split())
        raise FairleadError(f"these weights do not fit the network: {summary}") from error
