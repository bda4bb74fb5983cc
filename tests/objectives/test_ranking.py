import math

import pytest
import torch

from t3d.objectives.ranking import ranking_loss

BLOCK = torch.tensor([0, 0, 0, 3, 3, 5])
SAMPLE = torch.tensor([0, 0, 0, 0, 0, 1])
STEP = torch.tensor([2, 1, 2, 1, 2, 1])


def test_pairs_of_a_block_in_two_steps_worked_by_hand() -> None:
    # Pairs (earlier, later): rows (1, 0), (1, 2), (3, 4); never across blocks, nor within a step.
    confidence = torch.log(torch.tensor([0.4, 0.8, 0.2, 0.5, 0.5, 0.9]))
    pairs = [math.log(1 + 0.4 / 0.8), math.log(1 + 0.2 / 0.8), math.log(2)]
    assert ranking_loss(confidence, STEP, BLOCK, SAMPLE, 3).tolist() == pytest.approx([sum(pairs) / 3, 0, 0])


def test_descent_raises_the_earlier_and_lowers_the_later() -> None:
    confidence = torch.full((6,), -1.0, requires_grad=True)
    ranking_loss(confidence, STEP, BLOCK, SAMPLE, 2).sum().backward()
    assert confidence.grad.sign().tolist() == [1, -1, 1, -1, 1, 0]


def test_nothing_masked_is_zero() -> None:
    none = torch.empty(0, dtype=torch.long)
    assert ranking_loss(torch.empty(0), none, none, none, 2).tolist() == [0, 0]
