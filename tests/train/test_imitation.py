from typing import Any

import numpy as np
import pytest
import torch

from fairlead import FairleadError
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.train import imitation, losses
from fairlead.train.config import ImitationConfig
from fairlead.train.demonstrations import Demonstrations
from fairlead.train.profiler import Profiler
from fairlead.train.teachers import Teacher, lookahead

CONFIG = ImitationConfig(rounds=3, steps=40, teacher_steps=40, label_every=2, epochs=10, minibatch=128)


def dagger(toy, teacher, config=CONFIG, seed=0):
    network = RouterNetwork(3, hidden=16, attention=8, seed=seed)
    optimiser = torch.optim.Adam(network.actor_parameters())
    demonstrations, random, profiler = Demonstrations(), np.random.default_rng(seed), Profiler()
    env = toy.make(group=1)
    for round_ in range(config.rounds):
        imitation.collect(
            network,
            env,
            teacher,
            demonstrations,
            config,
            first=round_ == 0,
            seed=round_,
            profiler=profiler,
        )
        fit, holdout = demonstrations.split(config.holdout_every)
        imitation.fit(network, optimiser, [fit], config, round_, random)
    return network, demonstrations, imitation.score(network, [holdout], config)


def test_a_teacher_with_costs_is_learnt(toy):
    network, demonstrations, scores = dagger(toy, lookahead())
    assert len(demonstrations) == 40 + 2 * 20
    assert scores["agreement"] > 0.9
    assert scores["mean_regret"] < 0.1 * scores["uniform_regret"]
    cost = toy.evaluate(NetworkRouter(network))
    assert cost < toy.optimal_cost + 0.1 * (toy.random_cost - toy.optimal_cost)


def test_a_teacher_with_actions_is_learnt(toy):
    shortest = Teacher("shortest", lambda env, here=None: env.work.argmin(1))
    network, _, scores = dagger(toy, shortest)
    assert scores["agreement"] > 0.85
    assert np.isnan(scores["mean_regret"])
    assert toy.evaluate(NetworkRouter(network)) < 0.5 * toy.random_cost


def test_pitfall_22_a_teacher_that_is_no_function_of_the_view_teaches_nothing(toy):
    random = np.random.default_rng(0)
    dice = Teacher("random", lambda env, here=None: random.integers(0, env.replicas, env.num_envs))
    _, _, scores = dagger(toy, dice)
    assert scores["agreement"] == pytest.approx(1 / 3, abs=0.15)  # reported for what it is


def test_the_regret_loss_does_not_mind_a_near_tie():
    logits = torch.zeros(1, 3, requires_grad=True)
    imitation.loss(
        logits, torch.tensor([[0.0, 1e-6, 1.0]]), ImitationConfig(entropy_coefficient=0.0)
    ).backward()
    assert logits.grad is not None
    best, near, worst = logits.grad[0].tolist()
    assert best == pytest.approx(near, rel=1e-4)
    assert best < 0 < worst


def test_without_soft_labels_the_loss_is_the_expected_regret():
    logits, regrets = torch.tensor([[0.3, -0.2, 0.5]]), torch.tensor([[0.0, 0.6, 1.5]])
    plain = ImitationConfig(entropy_coefficient=0.0, soft_labels=0.0)
    expected = (torch.softmax(logits, -1) * regrets).sum()
    assert imitation.loss(logits, regrets, plain).item() == pytest.approx(expected.item())
    added = imitation.loss(logits, regrets, plain.model_copy(update={"soft_labels": 0.5})) - expected
    soft = losses.soft_labels(torch.log_softmax(logits, -1), regrets, plain.soft_temperature)
    assert added.item() == pytest.approx(0.5 * soft.item())


def test_the_loss_does_not_depend_on_the_unit_of_cost(toy):
    seconds = Teacher("s", lambda env, here=None: env.teacher_costs())
    milliseconds = Teacher("ms", lambda env, here=None: 1024 * env.teacher_costs())
    a, *_ = dagger(toy, seconds)
    b, *_ = dagger(toy, milliseconds)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_student_drives_after_the_first_round(toy):
    """The states labelled are those that the driver's own choices lead to."""

    class Always(torch.nn.Module):
        def logits(self, observation):
            return torch.tensor([0.0, 0.0, 1.0]).expand(len(observation), 3)

    visited = {}
    for first in (True, False):
        demonstrations = Demonstrations()
        imitation.collect(
            Always(),
            toy.make(),
            lookahead(),
            demonstrations,
            CONFIG,
            first=first,
            seed=0,
            profiler=Profiler(),
        )
        visited[first] = np.concatenate(demonstrations.observations)[..., 0].mean(0)
    assert visited[True].std() < 0.2 * visited[True].mean()
    assert visited[False][:2].max() == 0 < visited[False][2]


def test_a_cost_that_is_not_finite_is_refused(toy):
    broken = Teacher("broken", lambda env, here=None: np.full((env.num_envs, env.replicas), np.inf))
    with pytest.raises(FairleadError, match="the teacher broken gave a cost that is not finite at step 0"):
        dagger(toy, broken)


def test_scenarios_count_for_what_is_configured(toy):
    """Four times as much, not by their labels, which soft labels are made of; also where teachers act."""
    config = CONFIG.model_copy(update={"weights": {"odd": 4.0}})
    env = toy.make(group=1)
    env.scenario_names = ["even", "odd"] * (env.num_envs // 2)
    how: dict[str, Any] = {"first": True, "seed": 0, "profiler": Profiler()}
    acts = Teacher("first", lambda env, here=None: np.zeros(env.num_envs, np.int64))
    for teacher in (lookahead(), acts):
        network, demonstrations = RouterNetwork(3, hidden=16, attention=8), Demonstrations()
        imitation.collect(network, env, teacher, demonstrations, config, **how)
        if teacher is not acts:
            np.testing.assert_allclose(np.stack(demonstrations.labels).mean((0, 2)), 1.0)
        (examples,) = imitation.examples_of([demonstrations], config, recurrent=False)
        assert examples.weights is not None
        wanted = torch.tensor([0.4, 1.6]).repeat(examples.size // 2)
        torch.testing.assert_close(examples.weights, wanted)


def test_weights_have_a_mean_of_one_over_clusters_of_all_sizes():
    """So that a weight counts although its scenario has a size of its own."""
    parts = []
    for size, weight in ((2, 1.0), (3, 4.0)):
        part = Demonstrations()
        part.add(np.zeros((5, size, 1), np.float32), np.arange(5.0 * size).reshape(5, size))
        part.weigh(0, np.full(5, weight))
        parts.append(part)
    found = imitation.examples_of(parts, CONFIG, recurrent=False)
    means = [float(each.weights.mean()) for each in found if each.weights is not None]
    assert means == pytest.approx([0.4, 1.6])


@pytest.mark.parametrize("labels", [torch.tensor([[0.0, 0.6, 1.5], [0.9, 0.0, 0.3]]), torch.tensor([2, 0])])
def test_a_weight_multiplies_a_decisions_loss_but_not_the_bonus(labels):
    """Both terms where choices are priced: the gradient is so many times as long."""
    config = ImitationConfig(entropy_coefficient=0.0)

    def gradient(weights, config=config):
        logits = torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.4, -0.3]], requires_grad=True)
        imitation.loss(logits, labels, config, weights).backward()
        assert logits.grad is not None
        return logits.grad

    plain, weighed = gradient(None), gradient(torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(weighed, plain * torch.tensor([[0.5], [3.0]]))
    with_bonus = config.model_copy(update={"entropy_coefficient": 0.1})
    bonus = gradient(None, with_bonus) - plain
    torch.testing.assert_close(gradient(torch.tensor([0.5, 3.0]), with_bonus) - weighed, bonus)
