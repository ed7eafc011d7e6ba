"""What single settings are worth: the comparison, and the runs that it needs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fairlead.bench import runs
from fairlead.bench.ablation import ABLATIONS, effect
from fairlead.bench.runs import train_once
from fairlead.cli.options import read_settings
from fairlead.errors import FairleadError
from fairlead.evaluate.contest import NEEDED, Contest, Values
from fairlead.train.config import EnvironmentConfig, ImitationConfig, TrainConfig, ValidationConfig
from fairlead.train.ppo_config import PPOConfig
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload import load_scenario


@pytest.mark.parametrize("variant", ABLATIONS)
def test_every_variant_is_a_training_that_differs_from_the_default(variant):
    assignments = [f"{key}={json.dumps(value)}" for key, value in ABLATIONS[variant].items()]
    assert TrainConfig.model_validate(read_settings(None, assignments)) != TrainConfig()


def test_the_page_has_the_comparisons_that_defaults_rest_on():
    page = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| \S+ % \[|^\| ([^|]+) \| \*\*", page, re.M)
    compared = {name for row in rows for name in row if name}
    assert {"shared critic", "lambda 0.95", "lambda 0.999", "horizon of 10 s", "horizon of 100 s"} <= compared
    assert compared <= set(ABLATIONS)


def values(level: float, noise: np.ndarray) -> Values:
    return {metric: level * noise for metric in NEEDED}


def contest(scenario: str, levels: list[float], noise: np.ndarray) -> Contest:
    learned = {dial: [values(level, noise) for level in levels] for dial in (0.0, DEFAULT_FAVOR)}
    return Contest(scenario, (0.5, 0.9), 4, False, {}, learned)


def test_the_effect_of_a_curriculum_is_measured_over_paired_seeds():
    """Seeds that differ by far more than the setting does: only pairs can show its 3 %."""
    draw = np.random.default_rng(0)
    noise = [np.exp(draw.normal(0, 0.5, (2, 5))) for _ in range(2)]
    of_seeds = np.array([1.0, 1.4, 0.8, 1.2])
    small = np.exp(draw.normal(0, 0.002, 4))
    pairs = [
        (
            contest(name, list(0.97 * of_seeds * small), noise[i]),
            contest(name, list(of_seeds), noise[i]),
        )
        for i, name in enumerate(("a", "b"))
    ]
    found = effect("curriculum", pairs)
    for each in (found.objective, found.e2e, found.ttft_p99):
        assert each.relative == pytest.approx(-0.03, abs=0.003)
        assert each.better and each.over == "training seeds"
    alike = effect("nothing", [(b, b) for _, b in pairs])
    assert alike.objective.relative == 0.0 and not alike.objective.better


def tiny(seed: int = 0) -> TrainConfig:
    return TrainConfig(
        seed=seed,
        threads=1,
        environment=EnvironmentConfig(num_envs=4, group=2, imitation_envs=2, favor=(0.5, 0.5)),
        ppo=PPOConfig(iterations=1, critic_warmup_iterations=0, rollout_steps=16),
        imitation=ImitationConfig(rounds=1, steps=16, teacher_steps=16, epochs=1),
        validation=ValidationConfig(loads=(0.7,), favors=(0.5,)),
    )


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    scenarios = [load_scenario("uniform-lengths")]
    said: list[str] = []
    first = train_once(tiny(), scenarios, tmp_path, "one-0", said.append)
    assert said == ["training one-0"]
    assert first.policy.is_file() and first.decisions > 0 and first.validation is not None
    monkeypatch.setattr(runs, "shutil", None)  # nothing is made or removed
    assert train_once(tiny(), scenarios, tmp_path, "one-0", said.append) == first
    assert said == ["training one-0"]
    with pytest.raises(FairleadError, match="another one-0, trained otherwise"):
        train_once(tiny(seed=1), scenarios, tmp_path, "one-0", said.append)
