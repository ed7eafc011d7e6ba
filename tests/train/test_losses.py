import math

import pytest
import torch

from fairlead.train import losses


def test_pitfall_16_broadcasting_is_refused():
    column, row = torch.zeros(64, 1), torch.zeros(64)
    with pytest.raises(ValueError, match="log_prob"):
        losses.clipped_surrogate(column, row, row, 0.2)
    with pytest.raises(ValueError, match="values"):
        losses.value_loss(column, row)
    with pytest.raises(ValueError, match="log_prob"):
        losses.kl_k3(column, row)
    with pytest.raises(ValueError, match="actions"):
        losses.chosen(torch.zeros(64, 4), torch.zeros(64, 1, dtype=torch.int64))


def test_the_surrogate_stops_rewarding_beyond_the_clip():
    log_prob = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, clipped = losses.clipped_surrogate(log_prob, torch.zeros(4), advantages, 0.2)
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert clipped.item() == 1.0
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert (gradient != 0).tolist() == [False, True, True, False]


def test_value_clipping():
    values, targets, old = torch.tensor([3.0, 1.1]), torch.tensor([5.0, 5.0]), torch.tensor([1.0, 1.0])
    assert losses.value_loss(values, targets).item() == pytest.approx((4 + 3.9**2) / 2)
    assert losses.value_loss(values, targets, old, 0.5).item() == pytest.approx((3.5**2 + 3.9**2) / 2)


def test_entropy_of_known_distributions():
    probabilities = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0 - 3e-9, 1e-9, 1e-9, 1e-9]])
    assert losses.entropy(probabilities[:1].log()).item() == pytest.approx(math.log(4))
    assert losses.entropy(probabilities[1:].log()).item() == pytest.approx(0, abs=1e-6)


def test_pitfall_18_entropy_has_a_gradient():
    logits = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    losses.entropy(torch.log_softmax(logits, -1)).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] < 0 < logits.grad[0, 0]


def test_pitfall_20_k3_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    old = torch.log_softmax(torch.tensor([0.3, -0.2, 0.5, 0.0]), -1)
    new = torch.log_softmax(torch.tensor([0.6, -0.4, 0.2, 0.1]), -1)
    exact = (old.exp() * (old - new)).sum().item()
    actions = torch.multinomial(old.exp(), 200_000, replacement=True, generator=generator)
    assert losses.kl_k3(new[actions], old[actions]).item() == pytest.approx(exact, rel=0.02)
    each = torch.stack([losses.kl_k3(new[i : i + 1], old[i : i + 1]) for i in range(4)])
    assert (each >= 0).all()


def test_expected_regret_and_cross_entropy():
    probabilities = torch.tensor([[0.5, 0.25, 0.25]])
    assert losses.expected_regret(
        probabilities.log(), torch.tensor([[0.0, 2.0, 4.0]])
    ).item() == pytest.approx(1.5)
    assert losses.cross_entropy(probabilities.log(), torch.tensor([1])).item() == pytest.approx(math.log(4))
