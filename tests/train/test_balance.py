"""The auxiliary head that predicts how uneven the load will be."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fairlead.errors import FairleadError
from fairlead.policy.network import RouterNetwork
from fairlead.train import ppo
from fairlead.train.config import NetworkConfig, TrainConfig
from fairlead.train.controllers import Controllers
from fairlead.train.iterations import LOAD_FEATURE
from fairlead.train.ppo_config import PPOConfig
from fairlead.train.returns import balance_to_go
from fairlead.train.trainer import train

FEATURES = (LOAD_FEATURE, "above_least", "size")


def test_the_spread_that_is_to_come_is_a_weighted_mean():
    spread = np.array([[1.0], [3.0], [5.0]])
    half = np.full((3, 1), 0.5)
    never = np.zeros((3, 1), np.bool_)
    # From the back: 5; 3/2 + 5/2 = 4; 1/2 + 4/2 = 2.5.
    np.testing.assert_allclose(balance_to_go(spread, half, never), [[2.5], [4.0], [5.0]])
    ends = np.array([[False], [True], [False]])
    np.testing.assert_allclose(balance_to_go(spread, half, ends), [[2.0], [3.0], [5.0]])
    np.testing.assert_allclose(balance_to_go(spread, 0 * half, never), spread)


@pytest.mark.parametrize("critic", ["shared", "decoupled"])
def test_a_separate_head_learns_how_uneven_the_load_will_be(critic):
    random = np.random.default_rng(0)
    load = random.uniform(0, 2, (256, 3, 3)).astype(np.float32)
    load[..., 1:] = 0.0
    network = RouterNetwork(3, hidden=16, attention=8, critic=critic, balance_head=True)
    spread = torch.from_numpy(load[..., 0].std(-1))
    plain = ppo.Batch(
        torch.from_numpy(load),
        torch.zeros(256, dtype=torch.int64),
        torch.full((256,), -np.log(3.0)).float(),
        *torch.zeros(3, 256),
    )
    batch = plain._replace(balance=spread)
    config = PPOConfig(balance_coefficient=1.0, minibatch=64, epochs=30)
    knobs = Controllers(0.2).knobs(config, 10)._replace(critic_learning_rate=3e-3, actor_learning_rate=3e-3)
    before = ppo.minibatch_loss(network, batch, config, knobs)
    without = ppo.minibatch_loss(network, plain, config, knobs)
    torch.testing.assert_close(before.loss, without.loss + before.balance_loss)
    optimiser = ppo.make_optimiser(network)
    ppo.update(network, optimiser, [batch], config, knobs, np.random.default_rng(0))
    after = ppo.minibatch_loss(network, batch, config, knobs)
    assert after.balance_loss < 0.1 * before.balance_loss
    assert after.balance_loss < 0.3 * spread.var()


def test_a_run_with_the_head_logs_its_loss_and_can_be_resumed(toy, tmp_path):
    config = toy.config(balance_coefficient=0.1, epsilon=0.1, exploration="hierarchical")
    result = train(config, tmp_path / "run", toy.make, evaluate=toy.evaluate, features=FEATURES)
    rows = (tmp_path / "run" / "training.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("losses/balance_loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert min(losses) > 0.0
    again = train(config, tmp_path / "run", toy.make, evaluate=toy.evaluate, features=FEATURES, resume=True)
    assert again.decisions == result.decisions


def test_without_the_head_nothing_is_predicted(toy, tmp_path):
    assert PPOConfig().balance_coefficient == 0.0
    assert RouterNetwork(3).balance_head is None
    train(toy.config(), tmp_path / "run", toy.make, evaluate=toy.evaluate, features=toy.features)
    rows = (tmp_path / "run" / "training.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("losses/balance_loss")
    assert {float(row.split(",")[column]) for row in rows[1:]} == {0.0}


def test_what_cannot_work_is_refused(toy, tmp_path):
    with pytest.raises(ValidationError, match="GRU"):
        TrainConfig(network=NetworkConfig(gru_layers=1), ppo=PPOConfig(balance_coefficient=0.1))
    with pytest.raises(FairleadError, match=LOAD_FEATURE):
        train(toy.config(balance_coefficient=0.1), tmp_path, toy.make, features=toy.features)
