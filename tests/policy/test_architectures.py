"""Every architecture: equivariant, free of size, masked, and the same in torch, in sequences and in ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairlead.policy.artefact import OnnxRouter, actor_weights
from fairlead.policy.export import export_onnx
from fairlead.policy.network import NetworkRouter, RouterNetwork

NAMES = ("a", "b", "c", "d", "available")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {"critic": "decoupled"},
    "shared": {"critic": "shared"},
    "no attention": {"attention_layers": 0},
    "heads": {"attention_layers": 2, "attention_heads": 4, "critic": "decoupled", "critic_attention": True},
    "projection": {"projection": 12, "layer_norm": True, "encoder_layers": 3, "critic": "decoupled"},
    "gru": {"gru_layers": 1, "critic": "decoupled"},
    "deep gru": {"gru_layers": 3, "critic": "decoupled", "critic_gru_layers": 2, "attention_layers": 1},
    "gru, shared": {"gru_layers": 2, "critic": "shared", "layer_norm": True},
    "excluded": {"excluded": (1, 3)},
}
RECURRENT = [name for name in ARCHITECTURES if "gru" in name]


def network(name: str, *, masked: bool = True) -> RouterNetwork:
    """With scores that are not all zero, as after training."""
    found = RouterNetwork(
        5, hidden=16, attention=8, available=4 if masked else None, seed=3, **ARCHITECTURES[name]
    )
    torch.nn.init.normal_(found.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    return found


def observation(batch: int, replicas: int, seed: int = 0, absent: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, replicas, 5, generator=generator)
    x[..., 4] = (torch.rand(batch, replicas, generator=generator) >= absent).float()
    x[:, 0, 4] = 1.0  # somebody is there
    return x


def outputs(net: RouterNetwork, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, values and the next state."""
    with torch.no_grad():
        if net.state_size:
            return net.step(x, net.initial_state(*x.shape[:2]) if state is None else state)
        return *net(x), net.initial_state(*x.shape[:2])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 64),
    st.sampled_from(list(ARCHITECTURES)),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_permuting_the_replicas_permutes_the_scores(replicas: int, name: str, seed: int, random: Any) -> None:
    order = list(range(replicas))
    random.shuffle(order)
    net, x = network(name), observation(3, replicas, seed, absent=0.3)
    state = torch.randn(3, replicas, net.state_size, generator=torch.Generator().manual_seed(seed))
    logits, value, following = outputs(net, x, state)
    permuted = outputs(net, x[:, order], state[:, order])
    torch.testing.assert_close(permuted[0], logits[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(permuted[1], value, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(permuted[2], following[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_policy_is_uniform_over_those_available(name: str) -> None:
    net = RouterNetwork(5, hidden=16, attention=8, available=4, **ARCHITECTURES[name])
    logits, value, _ = outputs(net, x := observation(32, 4, absent=0.4))
    shares = torch.softmax(logits, -1)
    there = x[..., 4] > 0.5
    torch.testing.assert_close(shares, there / there.sum(1, keepdim=True))
    assert value.std() > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_unavailable_replica_is_never_chosen_and_never_looked_at(name: str) -> None:
    net, x = network(name), observation(16, 6, absent=0.5)
    logits, value, _ = outputs(net, x)
    absent = x[..., 4] < 0.5
    assert absent.any()
    assert (torch.softmax(logits, -1)[absent] == 0).all()
    changed = x.clone()
    changed[..., :4][absent] += 100.0
    again = outputs(net, changed)
    torch.testing.assert_close(again[0], logits)
    torch.testing.assert_close(again[1], value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_with_absent_replicas_changes_nothing(name: str) -> None:
    """So batches of clusters of different sizes may be padded."""
    net, x = network(name), observation(8, 3)
    padded = torch.cat([x, torch.zeros(8, 5, 5)], 1)
    logits, value, _ = outputs(net, x)
    wider = outputs(net, padded)
    torch.testing.assert_close(wider[0][:, :3], logits)
    torch.testing.assert_close(wider[1], value)


@pytest.mark.parametrize("name", RECURRENT)
def test_pitfall_17_a_sequence_equals_its_steps_and_forgets_at_episode_ends(name: str) -> None:
    net = network(name)
    steps = [observation(4, 3, seed) for seed in range(7)]
    starts = torch.zeros(4, 7, dtype=torch.bool)
    starts[1, 3] = starts[2, 0] = True
    first = torch.randn(4, 3, net.state_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state, logits, values = first, [], []
        for t, x in enumerate(steps):
            state = state * (~starts[:, t])[:, None, None]
            score, value, state = net.step(x, state)
            logits.append(score)
            values.append(value)
        found = net.sequence(torch.stack(steps, 1), first, starts)
        # What came before the start of an episode has no influence on what follows.
        other = net.sequence(torch.stack(steps, 1), first + 1.0, starts)
    torch.testing.assert_close(found[0], torch.stack(logits, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], torch.stack(values, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other[0][1, 3:], found[0][1, 3:])
    torch.testing.assert_close(other[0][2], found[0][2])
    assert not torch.allclose(other[0][0], found[0][0])


@pytest.mark.parametrize("name", RECURRENT)
def test_a_memory_is_not_bypassed_by_mistake(name: str) -> None:
    for method in ("forward", "logits", "value"):
        with pytest.raises(ValueError, match="has a memory"):
            getattr(network(name), method)(observation(2, 3))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pitfall_14_the_exported_policy_decides_as_the_network(
    tmp_path: Path, name: str, masked: bool
) -> None:
    net = network(name, masked=masked)
    path = tmp_path / "policy.onnx"
    export_onnx(net, path, config={}, training={}, features=NAMES)
    router, ours = OnnxRouter(path, features=NAMES), NetworkRouter(net)
    assert router.has_memory == (net.state_size > 0)
    for run in range(2):  # a new run begins without a memory of the last
        router.reset(5, 7, 0)
        ours.reset(5, 7, 0)
        first = None
        for step in range(4):
            x = observation(5, 7, step, absent=0.3).numpy()
            logits = ours.logits(x)
            np.testing.assert_allclose(router.logits(x), logits, atol=1e-5, rtol=1e-5)
            first = logits if first is None else first
        if run == 0:
            before = first
    np.testing.assert_array_equal(before, first)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_exported_policy_can_be_gone_on_from(tmp_path: Path, name: str) -> None:
    net = network(name)
    export_onnx(net, tmp_path / "policy.onnx", config={}, training={}, features=NAMES)
    weights = actor_weights(tmp_path / "policy.onnx")
    own = {k: v.numpy() for k, v in net.state_dict().items() if k.startswith(("trunk.", "score_head."))}
    assert set(weights) == set(own)
    for key, value in own.items():
        np.testing.assert_array_equal(weights[key], value)


def test_excluded_features_are_not_seen() -> None:
    net, x = network("excluded"), observation(4, 3)
    changed = x.clone()
    changed[..., [1, 3]] += 5.0
    torch.testing.assert_close(net(changed), net(x))
    changed[..., 0] += 1.0
    assert not torch.allclose(net(changed)[0], net(x)[0])


def test_attention_weights_can_be_looked_at() -> None:
    net, x = network("heads"), observation(4, 3, absent=0.4)
    found = net.attention_weights(x)
    assert [tuple(w.shape) for w in found] == [(4, 4, 3, 3)] * 2
    for weights in found:
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 3))
        assert (weights.masked_select((x[..., 4] < 0.5)[:, None, None, :]) == 0).all()
    assert network("no attention").attention_weights(x) == []


def test_weights_are_orthogonal() -> None:
    weight = network("default").trunk.encoder.layers[1].weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=1e-5)
