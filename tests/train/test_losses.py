import math

import pytest
import torch

from fairlead.policy.layers import MASKED
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


def test_soft_labels_are_the_cross_entropy_to_a_softmax_of_regrets():
    log_probs = torch.log_softmax(torch.tensor([[0.3, -0.2, 0.5]]), -1)
    regrets = torch.tensor([[0.0, 0.6, 1.5]])
    weights = [1.0, math.exp(-2.0), math.exp(-5.0)]
    expected = -sum(w * x for w, x in zip(weights, log_probs[0].tolist(), strict=True)) / sum(weights)
    assert losses.soft_labels(log_probs, regrets, 0.3).item() == pytest.approx(expected)


def test_soft_labels_move_a_policy_that_is_sure_of_the_wrong_choice():
    regrets = torch.tensor([[0.0, 1.0, 1.0]])
    gradients = []
    for loss in (losses.expected_regret, lambda a, b: losses.soft_labels(a, b, 0.3)):
        logits = torch.tensor([[0.0, 20.0, 0.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(torch.log_softmax(logits, -1), regrets), logits)
        gradients.append(gradient[0, 1].item())
    assert abs(gradients[0]) < 1e-6
    assert gradients[1] > 0.5


def test_soft_labels_of_single_prices_forget_a_rare_long_wait_and_the_expected_regret_does_not():
    """The first choice is best nine times of ten and 2 dearer on average."""
    regrets = torch.tensor([[0.0, 1.0]] * 9 + [[29.0, 0.0]])
    chosen = []
    for loss in (losses.expected_regret, lambda a, b: losses.soft_labels(a, b, 0.3)):
        logits = torch.zeros(1, 2, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(torch.log_softmax(logits, -1).expand(10, 2), regrets), logits)
        chosen.append((-gradient).argmax().item())
    assert chosen == [1, 0]


def test_soft_labels_ask_for_nothing_where_an_action_is_masked_or_no_choice_is_better():
    logits = torch.tensor([[0.3, MASKED, 0.5], [0.3, -0.2, 0.5]], requires_grad=True)
    loss = losses.soft_labels(torch.log_softmax(logits, -1), torch.tensor([[0.1, 0.0, 0.2], [0.0] * 3]), 0.3)
    seen = torch.log_softmax(logits.detach()[:1, [0, 2]], -1)
    assert loss.item() == pytest.approx(
        losses.soft_labels(seen, torch.tensor([[0.1, 0.2]]), 0.3).item() / 2, rel=1e-6
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1] == 0
    assert (gradient[1] == 0).all()


def test_what_a_group_shares_and_what_tells_it_apart_are_measured_separately():
    common, apart = torch.tensor([3.0, -1.0]), torch.tensor([[0.5, -0.5], [0.2, -0.2]])
    errors = (common[:, None] + apart)[..., None]  # two groups of two clusters, one decision each
    spreads = torch.empty(2, 2, 1, 2)
    spreads[..., 0] = 4.0
    spreads[0, ..., 1], spreads[1, ..., 1] = 0.25, 0.01
    loss = losses.compared_value_loss(errors, spreads)
    level, differences = (9 + 1) / 2 / 4, (0.25 / 0.25 + 0.04 / 0.01) / 2
    assert loss.item() == pytest.approx(0.5 * level + 0.5 * differences)
    with pytest.raises(ValueError, match="spread"):
        losses.compared_value_loss(errors[..., 0], spreads)
