import math

import pytest
import torch

from t3d.objectives import ddo_loss
from t3d.objectives.ddo import ddo_sample_losses, ddo_terms


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_ddo_loss_worked_by_hand() -> None:
    # Both ratios 0: -log(1/2) - alpha log(1/2).
    assert float(ddo_loss(torch.zeros(3), torch.zeros(3), alpha=0.5, beta=0.1)) == pytest.approx(1.5 * math.log(2))
    # beta d_real = .2, .4; beta d_fake = -.1, .3.
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([-1.0, 3.0])
    by_hand = [
        -math.log(sigmoid(0.2)) - 0.5 * math.log(1 - sigmoid(-0.1)),
        -math.log(sigmoid(0.4)) - 0.5 * math.log(1 - sigmoid(0.3)),
    ]
    assert float(ddo_loss(real, fake, alpha=0.5, beta=0.1)) == pytest.approx(sum(by_hand) / 2)


def test_real_ratios_are_pushed_up_and_fake_ones_down() -> None:
    real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    ddo_loss(real, fake, alpha=0.5, beta=0.1).backward()
    # Per sample -beta/2 and +alpha beta/2, over 2 samples.
    assert real.grad.tolist() == pytest.approx([-0.025] * 2)
    assert fake.grad.tolist() == pytest.approx([0.0125] * 2)


@pytest.mark.parametrize("beta", [1.0, 100.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_ratios_neither_overflow_nor_lose_their_gradient(sign: float, beta: float) -> None:
    # RELEASE 8: log(1 - sigmoid(x)) is -inf from x = 17.
    ratio = torch.tensor([sign * 1e4 / beta], requires_grad=True)
    real, fake = ddo_terms(ratio, ratio, beta)
    assert real.item() == pytest.approx(1e4 if sign < 0 else 0)
    assert fake.item() == pytest.approx(1e4 if sign > 0 else 0)
    (real + fake).sum().backward()
    assert ratio.grad.item() == pytest.approx(sign * beta)


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, dtype=torch.double, generator=generator).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda left, right: ddo_loss(left, right, 0.7, 1.3), (real, fake))


def test_units_are_averaged_before_the_sigmoid_and_samples_after_it() -> None:
    real, fake = torch.tensor([2.0, 4.0, 6.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    unit, sample = torch.tensor([5, 5, 7, 9]), torch.tensor([0, 0, 0, 2])
    losses = ddo_sample_losses(real, fake, unit, sample, num_units=11, num_samples=3, beta=0.5)
    # Sample 0 has units 5 (ratios 3 and 0.5) and 7 (6 and 2); sample 1 has none; sample 2 has 9 (1 and 3).
    by_hand_real = [-(math.log(sigmoid(1.5)) + math.log(sigmoid(3))) / 2, 0, -math.log(sigmoid(0.5))]
    by_hand_fake = [-(math.log(sigmoid(-0.25)) + math.log(sigmoid(-1))) / 2, 0, -math.log(sigmoid(-1.5))]
    assert losses[0].tolist() == pytest.approx(by_hand_real)
    assert losses[1].tolist() == pytest.approx(by_hand_fake)
