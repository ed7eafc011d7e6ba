"""What a setting is worth: the same training with and without it, seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairlead.evaluate.contest import OBJECTIVE, Contest, Difference, Values, differ, value
from fairlead.evaluate.results import Record
from fairlead.view.features import FEATURES
from fairlead.view.preference import DEFAULT_FAVOR

BASE = "default"


def _named(*parts: str) -> list[str]:
    """The features whose names contain one of `parts`."""
    return [name for name in FEATURES if any(part in name for part in parts)]


ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "curriculum": {
        "environment.curriculum": [
            {"begins": 0.0, "load": [0.4, 0.6], "glide": True},
            {"begins": 0.5, "load": [0.5, 0.95]},
        ]
    },
    "shared critic": {"network.critic": "shared"},
    "lambda 0.95": {"ppo.gae_lambda": 0.95},
    "lambda 0.999": {"ppo.gae_lambda": 0.999},
    "horizon of 10 s": {"ppo.horizon_s": 10.0},
    "horizon of 100 s": {"ppo.horizon_s": 100.0},
    "a plain squared error of values": {"ppo.compare_values": False},
    "no group baseline": {"ppo.group_baseline": False, "ppo.compare_values": False},
    "no layer normalisation": {"network.layer_norm": False},
    "no attention": {"network.attention_layers": 0},
    "two layers of attention": {"network.attention_layers": 2},
    "memory (GRU)": {"network.gru_layers": 1},
    "half the width": {"network.hidden": 32},
    "no comparisons among features": {"network.exclude": _named("above_least")},
    "no scraped features": {"network.exclude": _named("scrape")},
    "no averages among features": {"network.exclude": _named("ewma", "trend")},
    "hybrid reward": {"environment.reward": {"kind": "hybrid"}},
    "privileged teacher": {"privileged": True},
    "balance head": {"ppo.balance_coefficient": 0.1},
    "uniform exploration": {"ppo.epsilon": 0.05},
    "hierarchical exploration": {"ppo.epsilon": 0.05, "ppo.exploration": "hierarchical"},
    "entropy bonus": {"ppo.entropy_coefficient": 0.01},
    "cross-entropy imitation": {"imitation.loss": "cross_entropy"},
    "no soft labels": {"imitation.soft_labels": 0.0},
}
"""By name: the settings that differ from the default."""


class Effect(Record):
    """A variant against the default; negative is better. Intervals are over pairs of training seeds."""

    variant: str
    objective: Difference
    """What the dial weighs, over all its settings."""
    e2e: Difference
    """Mean E2E at the default setting."""
    ttft_p99: Difference
    """p99 TTFT at the default setting."""


def effect(variant: str, contests: Sequence[tuple[Contest, Contest]]) -> Effect:
    """Variant against default, over all scenarios.

    Args:
        variant: its name.
        contests: of each scenario, with the variant's policies and with the default's, in the order of the
            same training seeds.

    Raises:
        FairleadError: for fewer than two training seeds.
    """
    dials = tuple(contests[0][0].learned)

    def rows(side: int, metric: str, at: Sequence[float]) -> list[Values]:
        """By training seed: every scenario, load and setting of the dial below each other."""
        seeds = len(contests[0][side].learned[at[0]])
        return [
            {
                "all": np.concatenate(
                    [value(pair[side].learned[dial][seed], metric, dial) for pair in contests for dial in at]
                )
            }
            for seed in range(seeds)
        ]

    def compared(metric: str, at: Sequence[float]) -> Difference:
        return differ(rows(0, metric, at), rows(1, metric, at), "all")

    return Effect(
        variant=variant,
        objective=compared(OBJECTIVE, dials),
        e2e=compared("e2e_mean_s", (DEFAULT_FAVOR,)),
        ttft_p99=compared("ttft_p99_s", (DEFAULT_FAVOR,)),
    )
