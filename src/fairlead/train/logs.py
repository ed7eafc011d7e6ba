"""Which numbers a run logs, and how each row comes about."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fairlead.train import imitation, ppo
from fairlead.train.config import StabilityConfig
from fairlead.train.controllers import Knobs
from fairlead.train.curriculum import Setting
from fairlead.train.ppo import Part
from fairlead.train.tracking import Tracker

SETTINGS = (
    "actor_learning_rate",
    "critic_learning_rate",
    "entropy_coefficient",
    "kl_coefficient",
    "temperature",
    "epsilon",
    "clip",
    "reference_kl",
    "cloning",
    "temperature_is_pulsing",
)
IMITATION_COLUMNS = (
    "round",
    "imitation/decisions",
    "imitation/seconds",
    "imitation/loss",
    *(f"imitation/{name}" for name in imitation.SCORES),
    "imitation/achievable_agreement",
    "imitation/driving_agreement",
)
CURRICULUM = ("stage", "load_low", "load_high")
STABILITY = ("entropy_collapse", "kl_spike")


def suffixes(envs: Sequence[Any]) -> list[str]:
    """What distinguishes the columns of each part: nothing for a single one, else its number of replicas."""
    return [""] if len(envs) == 1 else [f"_r{env.single_observation_space.shape[0]}" for env in envs]


def training_columns(envs: Sequence[Any], heuristics: Sequence[str]) -> tuple[str, ...]:
    """The header of `training.csv`."""
    own = [
        f"{name}{suffix}"
        for env, suffix in zip(envs, suffixes(envs), strict=True)
        for name in (*_shares(env), *getattr(env, "statistic_names", ()))
    ]
    return (
        "iteration",
        "charts/decisions",
        "charts/seconds",
        "charts/decisions_per_s",
        *(f"charts/{name}" for name in (*SETTINGS, *CURRICULUM, "stagnations", *ppo.ROLLOUTS)),
        *(f"losses/{name}" for name in ppo.LOSSES),
        *(f"stability/{name}" for name in STABILITY),
        *own,
        "evaluation/objective",
        *(f"evaluation/vs_{name}" for name in heuristics),
    )


def feature_columns(features: Sequence[str]) -> tuple[str, ...]:
    """The header of `features.csv`."""
    return ("iteration", *(f"features/{name}/{each}" for name in features for each in ("mean", "std")))


def _shares(env: Any) -> list[str]:
    return [f"actions/replica_{r}" for r in range(env.single_observation_space.shape[0])]


def part_row(parts: Sequence[Part]) -> tuple[dict[str, float], dict[str, Any]]:
    """What each part went through in an iteration: numbers by column, and values for histograms."""
    row: dict[str, float] = {}
    histograms: dict[str, Any] = {}
    for part, suffix in zip(parts, suffixes([part.env for part in parts]), strict=True):
        env: Any = part.env
        names = _shares(env)
        counts = np.bincount(part.rollout.actions.ravel(), minlength=len(names))
        row |= {f"{n}{suffix}": float(c) for n, c in zip(names, counts / counts.sum(), strict=True)}
        if hasattr(env, "take_statistics"):
            numbers, totals = env.take_statistics()
            row |= {f"{name}{suffix}": number for name, number in numbers.items()}
            histograms[f"reward/raw{suffix}"] = totals
        else:
            histograms[f"reward/raw{suffix}"] = part.rollout.rewards.ravel()
    return row, histograms


def settings_row(knobs: Knobs, setting: Setting, stagnations: int) -> dict[str, float]:
    """The scheduled settings as they were."""
    values = knobs._asdict()
    return {
        **{f"charts/{name}": float(values[name]) for name in SETTINGS},
        "charts/stage": float(setting.stage),
        **dict(zip(("charts/load_low", "charts/load_high"), setting.bounds, strict=True)),
        "charts/stagnations": float(stagnations),
    }


def stability_row(metrics: Mapping[str, float], config: StabilityConfig, *, acting: bool) -> dict[str, float]:
    """1 where a sign of instability was seen, else 0; nothing is judged while only the critic learns."""
    found = (
        metrics["entropy_share"] < config.entropy_collapse,
        metrics["kl"] > config.kl_spike,
    )
    return {f"stability/{name}": float(acting and bad) for name, bad in zip(STABILITY, found, strict=True)}


def feature_row(parts: Sequence[Part], features: Sequence[str]) -> dict[str, float]:
    """Mean and standard deviation of each feature over the rollouts of all parts."""
    flat = np.concatenate([part.rollout.observations.reshape(-1, len(features)) for part in parts])
    row = {}
    for i, name in enumerate(features):
        row[f"features/{name}/mean"] = float(flat[:, i].mean())
        row[f"features/{name}/std"] = float(flat[:, i].std())
    return row


def debug_histograms(tracker: Tracker, network: Any, parts: Sequence[Part], iteration: int) -> None:
    """Weights, attention and feature values, as distributions."""
    for name, weights in network.state_dict().items():
        tracker.histogram(f"weights/{name}", weights.numpy().ravel(), iteration)
    with torch.no_grad():
        seen = torch.from_numpy(parts[0].rollout.observations[-1])
        for i, weights in enumerate(network.attention_weights(seen)):
            tracker.histogram(f"attention/layer_{i}", weights.numpy().ravel(), iteration)
            own = weights.diagonal(dim1=-2, dim2=-1)
            tracker.histogram(f"attention/layer_{i}_own", own.numpy().ravel(), iteration)
