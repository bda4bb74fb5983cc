import math

import pytest
import torch

from t3d.objectives.path import path_loss, path_weights, release_path_loss


def test_path_weights_of_equation_9() -> None:
    assert path_weights(torch.tensor([1, 2]), 2).tolist() == [1, 0.5], "two levels weigh 2:1"
    assert path_weights(torch.tensor([1, 2, 3, 4]), 4).tolist() == [1, 0.75, 0.5, 0.25]
    assert path_weights(torch.tensor([1, 1]), 1).tolist() == [1, 1]


def test_the_releases_path_loss_weighs_two_levels_three_to_one() -> None:
    log_probs = torch.full((4,), -1.0, requires_grad=True)
    coarse, sample = torch.tensor([1, 1, 2, 2]), torch.zeros(4, dtype=torch.long)
    loss = release_path_loss(log_probs, coarse, 2, sample, 1)
    # Level 1: mean over 2 positions; level 2: mean over all 4; then the mean of both levels.
    assert loss.tolist() == pytest.approx([1.0])
    loss.sum().backward()
    assert log_probs.grad.tolist() == pytest.approx([-(1 / 2 + 1 / 4) / 2] * 2 + [-1 / 4 / 2] * 2)
    assert log_probs.grad[0] / log_probs.grad[2] == pytest.approx(3)


def test_the_releases_path_loss_is_per_sample() -> None:
    log_probs = torch.log(torch.tensor([0.5, 0.25, 0.125]))
    loss = release_path_loss(log_probs, torch.tensor([1, 2, 2]), 2, torch.tensor([0, 0, 1]), 3)
    by_hand = [(math.log(2) + (math.log(2) + math.log(4)) / 2) / 2, (0 + math.log(8)) / 2, 0]
    assert loss.tolist() == pytest.approx(by_hand)


def test_path_loss_is_the_weighted_mean_over_a_samples_positions() -> None:
    log_probs = torch.log(torch.tensor([0.5, 0.25, 0.125]))
    loss = path_loss(log_probs, torch.tensor([1, 2, 2]), 2, torch.tensor([0, 0, 2]), 3)
    assert loss.tolist() == pytest.approx([(math.log(2) + 0.5 * math.log(4)) / 2, 0, 0.5 * math.log(8)])
