import math

import pytest
import torch

from t3d.objectives.cross_entropy import cross_entropy_loss


def test_cross_entropy_is_the_mean_over_a_samples_positions() -> None:
    log_probs = torch.log(torch.tensor([0.5, 0.25, 0.125]))
    loss = cross_entropy_loss(log_probs, torch.tensor([0, 0, 2]), 3)
    assert loss.tolist() == pytest.approx([1.5 * math.log(2), 0, math.log(8)])
