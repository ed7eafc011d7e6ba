import pytest
from pydantic import ValidationError

from fairlead.train.config import PPOConfig, TrainConfig
from fairlead.train.schedule import Constant


def test_a_configuration_survives_json():
    config = TrainConfig(seed=3, ppo=PPOConfig(entropy_coefficient=[[0, 0.1], [1, 0]]))  # type: ignore[arg-type]
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.hash == config.hash


def test_every_setting_changes_the_hash():
    base = TrainConfig().hash
    assert TrainConfig(seed=1).hash != base
    assert TrainConfig(ppo=PPOConfig(clip=Constant(value=0.3))).hash != base


@pytest.mark.parametrize(
    "wrong",
    [{"typo": 1}, {"ppo": {"clip": 0}}, {"ppo": {"gae_lambda": 1.1}}, {"threads": 0}, {"seed": float("nan")}],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(wrong)
