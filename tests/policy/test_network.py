from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View

CRITICS: list[Literal["shared", "decoupled"]] = ["shared", "decoupled"]


def network(critic: Literal["shared", "decoupled"] = "shared", *, trained: bool = True) -> RouterNetwork:
    """A network whose scores are not all zero, as after training."""
    result = RouterNetwork(5, hidden=16, attention=8, critic=critic, seed=3)
    if trained:
        torch.nn.init.normal_(result.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    return result


def observation(batch: int, replicas: int, features: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, replicas, features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("critic", CRITICS)
def test_the_first_policy_is_uniform(critic: Literal["shared", "decoupled"]):
    logits, value = network(critic, trained=False)(observation(32, 4))
    assert torch.equal(logits, torch.zeros(32, 4))
    assert value.std() > 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from(CRITICS), st.randoms(use_true_random=False))
def test_permuting_the_replicas_permutes_the_scores(replicas, critic, random):
    order = list(range(replicas))
    random.shuffle(order)
    net, x = network(critic), observation(7, replicas, seed=random.randrange(1000))
    with torch.no_grad():
        logits, value = net(x)
        permuted_logits, permuted_value = net(x[:, order])
    torch.testing.assert_close(permuted_logits, logits[:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted_value, value, atol=1e-5, rtol=1e-5)


def test_an_overloaded_cluster_outweighs_the_rest_unless_encoders_normalise():
    def gradient(net: RouterNetwork, x: torch.Tensor) -> float:
        """Its length at the start of PPO, where only the last layer of the actor has one."""
        net.zero_grad()
        torch.log_softmax(net.logits(x), -1)[:, 0].mean().backward()
        found = net.score_head.layer_2.weight.grad
        assert found is not None
        return float(found.norm())

    def ratio(*, layer_norm: bool) -> float:
        net, x = RouterNetwork(5, hidden=16, attention=8, layer_norm=layer_norm, seed=3), observation(64, 4)
        return gradient(net, 50.0 * x) / gradient(net, x)

    assert ratio(layer_norm=False) > 40.0
    assert ratio(layer_norm=True) < 3.0


@pytest.mark.parametrize("replicas", [1, 2, 64])
def test_the_same_weights_serve_any_number_of_replicas(replicas):
    logits, value = network()(observation(3, replicas))
    assert logits.shape == (3, replicas)
    assert value.shape == (3,)


@pytest.mark.parametrize("critic", CRITICS)
def test_logits_and_value_alone_are_those_of_the_whole(critic):
    net, x = network(critic), observation(6, 4)
    logits, value = net(x)
    torch.testing.assert_close(net.logits(x), logits)
    torch.testing.assert_close(net.value(x), value)


@pytest.mark.parametrize("critic", CRITICS)
def test_every_parameter_belongs_to_actor_or_critic(critic):
    net = network(critic)
    groups = [*net.actor_parameters(), *net.critic_parameters()]
    assert len(groups) == len(set(map(id, groups)))
    assert {id(p) for p in groups} == {id(p) for p in net.parameters()}


def test_a_decoupled_critic_leaves_the_actor_alone():
    net = network("decoupled")
    net.value(observation(4, 3)).sum().backward()
    assert all(p.grad is None for p in net.actor_parameters())
    assert all(p.grad is not None for p in net.critic_parameters())


def test_a_replica_sees_the_others():
    net, x = network(), observation(1, 3)
    changed = x.clone()
    changed[0, 2] += 1.0
    assert not torch.allclose(net.logits(x)[0, 0], net.logits(changed)[0, 0])


def test_pitfall_19_an_action_can_become_certain():
    """No squashing in the head: a supervised push drives one action's probability to one."""
    net, x = network(trained=False), observation(1, 4)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        (-torch.log_softmax(net.logits(x), -1)[0, 2]).backward()
        optimiser.step()
    assert torch.softmax(net.logits(x), -1)[0, 2] > 0.999


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    a, b, c = RouterNetwork(seed=1), RouterNetwork(seed=1), RouterNetwork(seed=2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_the_router_routes_views():
    rng = np.random.default_rng(0)
    view = View(rng.uniform(1, 2, (6, 3, NUM_REPLICA_COLUMNS)), rng.uniform(1, 2, (6, NUM_REQUEST_COLUMNS)))
    router = NetworkRouter(RouterNetwork(seed=1))
    router.reset(6, 3, 0)
    actions = router.route(view)
    assert actions.shape == (6,)
    assert actions.dtype == np.int64
    assert set(actions) <= {0, 1, 2}
