"""The curriculum: what holds when, and that it really changes what happens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairlead.env.reward_config import HybridReward, SojournReward
from fairlead.env.vector import RouterVectorEnv
from fairlead.errors import FairleadError
from fairlead.train.config import TrainConfig
from fairlead.train.curriculum import Stage, setting_at
from fairlead.train.run import train
from fairlead.train.state import apply_curriculum
from fairlead.workload.scenario import load_scenario

DEMO = [load_scenario("chat-equal"), load_scenario("chat-unequal")]
SOJOURN = SojournReward()


def test_stages_follow_each_other() -> None:
    stages = (Stage(begins=0.2, load=(0.4, 0.5)), Stage(begins=0.6, scenarios={"a": 1.0}))
    found = [setting_at(stages, progress, (0.5, 0.9), SOJOURN) for progress in (0.0, 0.2, 0.59, 0.6, 1.0)]
    assert [s.stage for s in found] == [-1, 0, 0, 1, 1]
    assert [s.load for s in found] == [(0.5, 0.9), (0.4, 0.5), (0.4, 0.5), (0.5, 0.9), (0.5, 0.9)]
    assert found[-1].scenarios == {"a": 1.0}


def test_loads_can_glide_from_stage_to_stage() -> None:
    stages = (Stage(begins=0.0, load=(0.2, 0.4), glide=True), Stage(begins=0.5, load=(0.6, 0.9)))
    found = [setting_at(stages, progress, (0.5, 0.9), SOJOURN).bounds for progress in (0.0, 0.25, 0.5)]
    np.testing.assert_allclose(found, [(0.2, 0.4), (0.4, 0.65), (0.6, 0.9)])


def environment(**changes: Any) -> RouterVectorEnv:
    return RouterVectorEnv(DEMO, num_envs=8, group=2, episode_requests=300, **changes)


def test_pitfall_03_a_stage_changes_the_arrivals_themselves() -> None:
    config = TrainConfig.model_validate(
        {
            "environment": {
                "curriculum": [{"begins": 0.0, "load": [0.4, 0.4]}, {"begins": 0.5, "load": [0.8, 0.8]}]
            }
        }
    )
    env, gaps = environment(), []
    for began in (config.ppo.critic_warmup_iterations, config.ppo.total_iterations - 1):
        apply_curriculum(env, config, began)
        env.reset(seed=0)
        gaps.append(np.diff(env.clusters.state.requests["arrival"], axis=1).mean())
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=1e-6)


def test_scenarios_are_dealt_by_their_shares() -> None:
    env = environment()
    env.configure(load=(0.5, 0.5), scenarios={"chat-unequal": 3.0, "chat-equal": 1.0})
    env.reset(seed=0)
    assert sorted(s.name for s in env._dealt) == ["chat-equal"] + ["chat-unequal"] * 3
    env.configure(load=(0.5, 0.5), scenarios={"chat-unequal": 1.0})
    assert {s.name for s in env._dealt} == {"chat-unequal"}
    env.configure(load=(0.5, 0.5))
    assert sorted(s.name for s in env._dealt) == ["chat-equal"] * 2 + ["chat-unequal"] * 2


def test_the_reward_can_be_tightened_but_not_replaced() -> None:
    env = environment(reward=HybridReward(latency_threshold_s=12.0))
    mild = HybridReward(latency_threshold_s=6.0, clip=(-2.0, 8.0))
    env.configure(load=(0.5, 0.9), reward=mild)
    env.reset(seed=0)
    rewards = [env.step(np.zeros(8, np.int64))[1] for _ in range(100)]
    assert np.min(rewards) >= -2.0
    with pytest.raises(FairleadError, match="cannot change from hybrid to sojourn"):
        env.configure(load=(0.5, 0.9), reward=SojournReward())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"begins": 0.5, "scenarios": {"chat-8": 1}}, "names chat-8, which is not trained on"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path: Path, stage: dict[str, Any], message: str) -> None:
    config = TrainConfig.model_validate({"environment": {"curriculum": [stage]}, "imitation": None})
    with pytest.raises(FairleadError, match=message):
        train(config, DEMO, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_switches_are_announced_and_logged(tmp_path: Path) -> None:
    config = TrainConfig.model_validate(
        {
            "threads": 1,
            "imitation": None,
            "environment": {
                "num_envs": 4,
                "group": 2,
                "curriculum": [{"begins": 0.0, "load": [0.4, 0.4]}, {"begins": 0.5, "load": [0.8, 0.8]}],
            },
            "ppo": {"iterations": 4, "critic_warmup_iterations": 0, "rollout_steps": 16, "reset_every": 1},
            "validation": {"loads": [0.7], "favors": [0.5]},
            "evaluate_every": 9,
        }
    )
    told: list[str] = []
    train(config, DEMO, tmp_path / "run", say=told.append)
    assert any("stage 2 of the curriculum begins, load 0.80 to 0.80" in line for line in told)
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "training.csv").read_text().splitlines())
    at = [header.index(f"charts/{name}") for name in ("stage", "load_low")]
    assert [[row[i] for i in at] for row in rows] == [["0.0", "0.4"]] * 2 + [["1.0", "0.8"]] * 2
