"""Schedules and controllers: what they do to the settings of the next iteration."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from fairlead.train.config import PPOConfig, TrainConfig
from fairlead.train.controllers import Controllers


def config(**changes: Any) -> PPOConfig:
    return PPOConfig.model_validate({"iterations": 11, "critic_warmup_iterations": 0} | changes)


def test_learning_rates_clip_and_entropy_follow_their_schedules() -> None:
    settings = config(
        actor_learning_rate={"kind": "exponential", "start": 1e-2, "end": 1e-4},
        clip=[[0, 0.3], [0.5, 0.1], [1, 0.1]],
        entropy_coefficient={"kind": "linear", "start": 0.1, "end": 0.0},
    )
    knobs = [Controllers(0.2).knobs(settings, i) for i in (0, 5, 10)]
    assert [k.actor_learning_rate for k in knobs] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert [k.clip for k in knobs] == pytest.approx([0.3, 0.1, 0.1])
    assert [k.entropy_coefficient for k in knobs] == pytest.approx([0.1, 0.05, 0.0])


def test_the_entropy_weight_follows_a_target() -> None:
    settings, controllers = config(entropy_target=0.65), Controllers(0.2)
    start = controllers.knobs(settings, 0).entropy_coefficient
    for _ in range(5):
        controllers.after_update(settings, 0.01, 0.3)
    more = controllers.knobs(settings, 0).entropy_coefficient
    for _ in range(10):
        controllers.after_update(settings, 0.01, 0.9)
    assert controllers.knobs(settings, 0).entropy_coefficient < start < more


def test_the_temperature_follows_an_entropy_target_within_its_range() -> None:
    settings = config(temperature_entropy_target=0.65, temperature_rate=1.0, temperature_range=[0.5, 2.0])
    controllers = Controllers(0.2)
    controllers.after_update(settings, 0.01, 0.2)
    assert controllers.knobs(settings, 0).temperature == pytest.approx(math.exp(0.45))
    for _ in range(20):
        controllers.after_update(settings, 0.01, 0.2)
    assert controllers.knobs(settings, 0).temperature == 2.0
    for _ in range(40):
        controllers.after_update(settings, 0.01, 1.0)
    assert controllers.knobs(settings, 0).temperature == 0.5


def test_the_step_grows_when_kl_is_too_small_and_shrinks_when_it_is_too_large() -> None:
    settings = config(step_adaptation={"low": 0.05, "high": 0.15, "patience": 2, "factor": 2.0, "most": 4.0})
    controllers = Controllers(0.2)
    plain = controllers.knobs(settings, 0)
    rates = []
    for kl in (0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.2, 0.2, 0.1):
        controllers.after_update(settings, kl, 0.5)
        rates.append(controllers.knobs(settings, 0).actor_learning_rate / plain.actor_learning_rate)
    assert rates == pytest.approx([1, 2, 2, 4, 4, 4, 2, 1, 1])
    assert controllers.knobs(settings, 0).clip == plain.clip  # never touched


def pulsing(settings: PPOConfig, objectives: list[float], against: float = 0.9) -> list[bool]:
    """One evaluation per iteration."""
    controllers, found = Controllers(0.2), []
    for i, objective in enumerate(objectives):
        found.append(controllers.knobs(settings, i).temperature_is_pulsing)
        controllers.after_evaluation(settings.pulses, objective, {"random": against})
        controllers.after_update(settings, 0.01, 0.5)
    return found


def test_temperature_pulses_come_on_a_plateau_and_end() -> None:
    pulses = {"interval": 4, "length": 2, "magnitude": 2.0, "stagnation_memory": 3}
    settings = config(pulses=pulses, temperature=1.5)
    assert not any(pulsing(settings, [1.0 - 0.01 * i for i in range(20)]))
    found = pulsing(settings, [1.0] * 20)
    assert found == [False] * 4 + ([True] * 2 + [False] * 2) * 4
    controllers = Controllers(0.2, pulse_left=1)
    assert controllers.knobs(settings, 0).temperature == 3.0


def test_improvements_below_the_threshold_are_stagnation_also_at_the_end_of_training() -> None:
    settings = config(
        pulses={"interval": 4, "length": 1, "stagnation_memory": 3, "stagnation_threshold": 0.005}
    )
    assert any(pulsing(settings, [1.0 - 0.0001 * i for i in range(40)])[11:])


def test_pulses_can_come_always_or_when_a_baseline_wins() -> None:
    improving = [1.0 - 0.01 * i for i in range(20)]
    always = config(pulses={"interval": 5, "length": 1, "when": "always"})
    assert pulsing(always, improving).count(True) == 3
    losing = config(pulses={"interval": 5, "length": 1, "losing_to": "random", "losing_evaluations": 3})
    assert not any(pulsing(losing, improving, against=0.9))
    assert any(pulsing(losing, improving, against=1.2))


def test_controllers_survive_a_checkpoint() -> None:
    controllers = Controllers(0.3, pulse_left=2, best=0.9, losing=1)
    assert Controllers.load(controllers.state()) == controllers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo": {"pulses": {"interval": 5, "length": 5}}}, "not shorter than the interval"),
        ({"ppo": {"group_baseline": False}}, "without the baseline set ppo.compare_values=false"),
        ({"ppo": {"clip": [[0.5, 0.2], [0.1, 0.1]]}}, "runs backwards"),
        ({"ppo": {"entropy_coefficient": -0.1}}, "must not be negative"),
        ({"ppo": {"epsilon": 1.5}}, "between 0 and 1"),
        ({"ppo": {"temperature": {"kind": "linear", "start": 1.5, "end": 0}}}, "greater than 0"),
        ({"ppo": {"entropy_target": 0.5, "entropy_coefficient": 0.1}}, "both set the weight of entropy"),
        ({"ppo": {"step_adaptation": {"low": 0.2, "high": 0.1}}}, "must be below"),
        ({"ppo": {"reference_kl": 0.1}, "imitation": None}, "needs a reference"),
        ({"ppo": {"cloning": 0.1}, "imitation": None}, "needs demonstrations"),
        ({"ppo": {"burn_in": 32}}, "leaves nothing"),
        ({"ppo": {"kl_control": "adaptive", "kl_target": 0.1, "early_stop_kl": 0.05}}, "stops before"),
        ({"ppo": {"rollout_steps": 100}, "network": {"gru_layers": 1}}, "no multiple of ppo.sequence_length"),
        ({"ppo": {"cloning": 0.1}, "network": {"gru_layers": 1}}, "do not work with a GRU"),
        (
            {"imitation": {"label_every": 4}, "network": {"gru_layers": 1}},
            "label_every does not work with a GRU",
        ),
        ({"network": {"attention": 16, "attention_heads": 3}}, "no multiple of attention_heads"),
        ({"network": {"critic": "shared", "critic_attention": True}}, "for a decoupled critic"),
        ({"environment": {"curriculum": [{"begins": 0.5}, {"begins": 0.2}]}}, "runs backwards"),
        ({"environment": {"curriculum": [{"begins": 0.1, "reward": {"kind": "hybrid"}}]}}, "cannot change"),
        ({"environment": {"reward": {"kind": "hybrid", "clip": [1, -1]}}}, "runs backwards"),
        ({"environment": {"curriculum": [{"begins": 0.5, "load": [0.5, 1.5]}]}}, "load 1.5 is not between"),
        ({"environment": {"load": [-1, 0.5]}}, "load -1 is not between 0 and 1.5"),
        ({"validation": {"loads": [0.7, 5.0]}}, "load 5 is not between 0 and 1.5"),
        ({"validation": {"loads": []}}, "at least 1"),
        ({"ppo": {"pulses": {"losing_to": "radnom"}}}, "'radnom' is no heuristic; did you mean random"),
        (
            {
                "environment": {
                    "reward": {"kind": "hybrid"},
                    "curriculum": [{"begins": 0.5, "reward": {"kind": "hybrid", "baseline": "lro"}}],
                }
            },
            "'lro' is no heuristic; did you mean lor",
        ),
        (
            {"environment": {"curriculum": [{"begins": 0.5, "glide": True, "load": [0.5, 0.6]}]}},
            "there is none",
        ),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(settings)
