import math

import pytest
import torch

from t3d.objectives.certainty import certainty_loss, sharpened_entropy


def entropy(*weights: float) -> float:
    total = sum(weights)
    return -sum(weight / total * math.log(weight / total) for weight in weights)


def test_sharpened_entropy_worked_by_hand() -> None:
    # At temperature 1/2 probabilities are squared: .8 .2 becomes 16/17 1/17, .6 .4 becomes 9/13 4/13.
    log_probs = torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5]]))
    assert sharpened_entropy(log_probs).tolist() == pytest.approx([entropy(16, 1), entropy(9, 4), math.log(2)])


def test_certainty_loss_is_the_mean_over_correct_positions() -> None:
    values, sample = torch.tensor([0.2, 0.6, 5.0, 7.0]), torch.tensor([0, 0, 0, 1])
    correct = torch.tensor([True, True, False, False])
    assert certainty_loss(values, correct, sample, 3).tolist() == pytest.approx([0.4, 0, 0])


def test_only_correct_positions_are_sharpened() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.3], [0.7, 0.3]])).requires_grad_()
    values = sharpened_entropy(logits.log_softmax(-1))
    certainty_loss(values, torch.tensor([True, False]), torch.tensor([0, 0]), 1).sum().backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1], "descent raises the greatest logit"
    assert logits.grad[1].tolist() == [0, 0]


def test_gradients_match_finite_differences() -> None:
    logits = torch.randn(6, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: sharpened_entropy(rows.log_softmax(-1)), (logits,))


def test_no_correct_position_gives_zero_with_a_gradient_of_zero() -> None:
    values = torch.tensor([2.0], requires_grad=True)
    loss = certainty_loss(values, torch.tensor([False]), torch.tensor([0]), 1)
    assert loss.tolist() == [0]
    loss.sum().backward()
    assert values.grad.tolist() == [0]
