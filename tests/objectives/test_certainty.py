import math

import pytest
import torch

from t3d.objectives.certainty import certainty_loss


def test_certainty_loss_worked_by_hand() -> None:
    # At temperature 1/2 probabilities are squared: .8 .2 becomes 16/17 1/17, .6 .4 becomes 9/13 4/13.
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6], [0.5, 0.5]]))
    targets, sample = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1])

    def entropy(*weights: float) -> float:
        total = sum(weights)
        return -sum(weight / total * math.log(weight / total) for weight in weights)

    expected = (entropy(16, 1) + entropy(9, 4)) / 2
    # Row 2 predicts 1, its target is 0: it does not count; nor do samples without a correct row.
    assert certainty_loss(logits, targets, sample, 3).tolist() == pytest.approx([expected, 0, 0], abs=1e-6)


def test_only_correct_positions_are_sharpened() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.3], [0.7, 0.3]])).requires_grad_()
    certainty_loss(logits, torch.tensor([0, 1]), torch.tensor([0, 0]), 1).sum().backward()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1], "descent raises the greatest logit"
    assert logits.grad[1].tolist() == [0, 0]


def test_gradients_match_finite_differences() -> None:
    logits = torch.randn(6, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = logits.argmax(-1)
    targets[::3] = (targets[::3] + 1) % 4
    sample = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda rows: certainty_loss(rows, targets, sample, 3), (logits,))


def test_no_correct_position_gives_zero_with_a_gradient_of_zero() -> None:
    logits = torch.tensor([[2.0, 1.0]], requires_grad=True)
    loss = certainty_loss(logits, torch.tensor([1]), torch.tensor([0]), 1)
    assert loss.tolist() == [0]
    loss.sum().backward()
    assert logits.grad is None or logits.grad.tolist() == [[0, 0]]
