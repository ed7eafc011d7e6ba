"""Options of the losses: each changes what is learnt in the way that it says."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from fairlead.policy.network import RouterNetwork
from fairlead.train import losses, ppo
from fairlead.train.batches import joint_minibatches
from fairlead.train.config import PPOConfig, TrainConfig
from fairlead.train.controllers import Knobs
from fairlead.train.demonstrations import Examples
from fairlead.train.exploration import behaviour_log_probs
from fairlead.train.surroundings import Judgement
from fairlead.train.trainer import train

from .test_ppo import random_batch

KNOBS = Knobs(1e-3, 1e-3, 0.0, 0.2, 1.0, 0.0, True)


def network() -> RouterNetwork:
    found = RouterNetwork(3, hidden=16, attention=8, available=None)
    torch.nn.init.normal_(
        found.score_head.layer_2.weight, 0.0, 3.0, generator=torch.Generator().manual_seed(1)
    )
    return found


def terms(net: RouterNetwork, batch: ppo.Batch, knobs: Knobs = KNOBS, **settings: Any) -> ppo.Terms:
    return ppo.minibatch_loss(net, batch, PPOConfig.model_validate(settings), knobs)


def test_pitfall_18_the_entropy_floor_pushes_entropy_up() -> None:
    net, batch = network(), random_batch()
    before = terms(net, batch)
    floored = terms(net, batch, entropy_floor=1.0, entropy_floor_coefficient=0.1)
    assert before.entropy < 1.0
    torch.testing.assert_close(floored.loss, before.loss + 0.1 * (1.0 - before.entropy))
    assert terms(net, batch, entropy_floor=0.01).loss == before.loss  # above the floor it is silent
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        losses.entropy_shortfall(terms(net, batch).entropy, 1.0).backward()
        optimiser.step()
    assert terms(net, batch).entropy > before.entropy


def test_the_entropy_share_counts_possible_actions_only() -> None:
    logits = torch.tensor([[0.0, 0.0, -1e9, -1e9], [0.0, 0.0, 0.0, 0.0]])
    share = losses.entropy_share(behaviour_log_probs(logits, 2.0))
    assert share.item() == pytest.approx(1.0)


def test_the_policy_can_be_held_near_a_frozen_reference() -> None:
    net, batch = network(), random_batch()
    reference = RouterNetwork(3, hidden=16, attention=8, available=None)  # uniform
    near = batch._replace(reference=ppo.log_probs_of(reference, batch.observations))
    knobs = KNOBS._replace(reference_kl=0.5)
    t = terms(net, near, knobs)
    assert t.reference_kl.item() == pytest.approx(np.log(3) - t.entropy.item(), rel=1e-4)
    torch.testing.assert_close(t.loss, terms(net, batch).loss + 0.5 * t.reference_kl)
    same = batch._replace(reference=ppo.log_probs_of(net, batch.observations))
    assert terms(net, same, knobs).reference_kl.item() == pytest.approx(0.0, abs=1e-6)


def test_cloning_goes_on_in_ppo_with_its_own_weight() -> None:
    """With no other signal the demonstrations are learnt; at weight zero they are not looked at."""
    batch = random_batch()
    batch = batch._replace(advantages=torch.zeros_like(batch.advantages))
    regrets = torch.nn.functional.one_hot(batch.observations[..., 0].argmax(-1), 3).float().neg().add(1.0)
    agreement = {}
    for weight in (0.0, 1.0):
        net = RouterNetwork(3, hidden=16, attention=8, available=None)
        optimiser = ppo.make_optimiser(net)
        config = PPOConfig(epochs=80, minibatch=64)
        knobs = KNOBS._replace(cloning=weight, actor_learning_rate=1e-2)
        shown = [Examples(batch.observations, regrets)] if weight else []
        metrics = ppo.update(net, optimiser, [batch], config, knobs, np.random.default_rng(0), shown)
        choices = net.logits(batch.observations).argmax(-1)
        agreement[weight] = float((regrets.gather(1, choices[:, None]) == 0).float().mean())
        assert (metrics["cloning_loss"] > 0) == (weight > 0)
    assert agreement[1.0] > 0.9 > agreement[0.0]
    net = RouterNetwork(3, hidden=16, attention=8, available=None)
    before = copy.deepcopy(net.trunk.state_dict())
    warming_up = KNOBS._replace(cloning=1.0, train_actor=False)
    shown = [Examples(batch.observations, regrets)]
    metrics = ppo.update(
        net, ppo.make_optimiser(net), [batch], PPOConfig(), warming_up, np.random.default_rng(0), shown
    )
    assert metrics["cloning_loss"] == 0.0, "while the critic warms up nothing is cloned"
    torch.testing.assert_close(net.trunk.state_dict(), before)


def gradients(net: RouterNetwork) -> list[torch.Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_a_joint_gradient_is_that_of_the_mean_over_all_decisions_whatever_the_sizes() -> None:
    net = network()
    small, large = random_batch(30, replicas=2), random_batch(70, replicas=5, seed=1)
    config = PPOConfig()
    both = ppo.joint_gradient(net, [small, large], config, KNOBS)
    found = gradients(net)
    apart = [ppo.minibatch_loss(net, batch, config, KNOBS) for batch in (small, large)]
    torch.testing.assert_close(both.loss, 0.3 * apart[0].loss + 0.7 * apart[1].loss)
    assert both.policy_loss.item() == pytest.approx(
        (0.3 * apart[0].policy_loss + 0.7 * apart[1].policy_loss).item()
    )
    net.zero_grad()
    torch.autograd.backward(0.3 * apart[0].loss + 0.7 * apart[1].loss)
    torch.testing.assert_close(found, gradients(net))


@pytest.mark.parametrize(
    "settings", [{}, {"value_clip": 0.1, "kl_control": "penalty"}, {"entropy_floor": 1.0}]
)
def test_a_minibatch_in_pieces_has_the_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """The last piece is a smaller one; clusters that are compared with each other stay together."""
    net, config, group = network(), PPOConfig.model_validate(settings), 4
    batch = random_batch(60, replicas=3)
    spreads = torch.rand(60 // group, 1, 2).repeat_interleave(group, 0).flatten(0, 1) + 0.5
    batch = batch._replace(spreads=spreads, group=group)
    whole = ppo.joint_gradient(net, [batch], config, KNOBS)
    expected = gradients(net)
    net.zero_grad()
    monkeypatch.setattr(ppo, "AT_ONCE", 3 * 10)
    sizes = [len(piece.actions) for piece in ppo.pieces(batch, config)]
    assert sizes == ([60] if config.entropy_floor else [8, 8, 8, 8, 8, 8, 8, 4])
    torch.testing.assert_close(ppo.joint_gradient(net, [batch], config, KNOBS), whole)
    torch.testing.assert_close(gradients(net), expected)


def test_joint_minibatches_cover_every_part_once() -> None:
    random = np.random.default_rng(0)
    batches = list(joint_minibatches([100, 40, 3], 30, random))
    assert len(batches) == 5
    for part, count in enumerate((100, 40, 3)):
        seen = torch.cat([each[part] for each in batches])
        assert sorted(seen.tolist()) == list(range(count))


def test_minibatches_keep_groups_together() -> None:
    random = np.random.default_rng(0)
    for counts in ([96], [64, 32, 8]):
        found = list(joint_minibatches(counts, 24, random, 8))
        for part, count in enumerate(counts):
            blocks = torch.cat([indices[part] for indices in found]).view(-1, 8)
            assert (blocks == blocks[:, :1] + torch.arange(8)).all()
            assert sorted(blocks[:, 0].tolist()) == list(range(0, count, 8))
        assert len(found) > 2


def test_rewards_may_be_left_as_they_are(toy: Any, tmp_path: Any) -> None:
    config = toy.config(normalise_rewards=False, iterations=1)
    train(config, tmp_path / "run", toy.make, features=toy.features)


def test_the_gap_to_every_heuristic_is_logged(toy: Any, tmp_path: Any) -> None:
    def evaluate(router: Any) -> Judgement:
        return Judgement(toy.evaluate(router), {"random": 0.5, "lor": 0.9})

    train(
        toy.config(),
        tmp_path / "run",
        toy.make,
        features=toy.features,
        evaluate=evaluate,
        heuristics=("random", "lor"),
    )
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "training.csv").read_text().splitlines())
    column = header.index("evaluation/vs_lor")
    assert [row[column] for row in rows] == ["", "0.9", "", "0.9", "0.9"]


def test_a_policy_that_was_trained_can_be_trained_on(toy: Any, tmp_path: Any) -> None:
    first = train(toy.config(), tmp_path / "first", toy.make, features=toy.features, evaluate=toy.evaluate)
    settings = toy.config().model_dump() | {"imitation": None, "start_from": str(first.policy)}
    settings["ppo"] |= {"reference_kl": {"kind": "linear", "start": 0.5, "end": 0.0}, "iterations": 2}
    config = TrainConfig.model_validate(settings)
    second = train(config, tmp_path / "second", toy.make, features=toy.features, evaluate=toy.evaluate)
    assert second.history[0]["iteration"] == 0
    assert second.history[0]["objective"] == pytest.approx(first.objective, rel=1e-4)
    assert second.objective is not None and second.objective <= second.history[0]["objective"]
    wider = copy.deepcopy(settings)
    wider["network"] |= {"hidden": 32}
    with pytest.raises(Exception, match="another architecture"):
        train(TrainConfig.model_validate(wider), tmp_path / "third", toy.make, features=toy.features)


def test_attention_weights_and_features_are_logged_in_debug_mode(toy: Any, tmp_path: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy.config().model_copy(update={"debug": True})
    train(config, tmp_path / "run", toy.make, features=toy.features)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "training"))
    events.Reload()
    histograms = set(events.Tags()["histograms"])
    assert {"reward/raw", "attention/layer_0", "weights/trunk.encoder.layers.0.weight"} <= histograms
    header, *rows = (line.split(",") for line in (tmp_path / "run" / "features.csv").read_text().splitlines())
    assert header[1:3] == ["/".join(("features", "work", each)) for each in ("mean", "std")]
    assert all(float(row[2]) > 0 for row in rows)  # it is not zero, and it varies
