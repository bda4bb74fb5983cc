import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from t3d.objectives.balance import balance_loss


def test_two_experts_worked_by_hand():
    """Three rows of one sample: f = [2/3, 1/3], P = [(.75 + .5 + .25) / 3, ...] = [.5, .5]; 2 * (1/3 + 1/6) = 1.

    The row of another sample, all for one expert, has f = [1, 0] and P = [.75, .25]: 2 * .75.
    """
    probabilities = torch.tensor([[0.75, 0.25], [0.5001, 0.4999], [0.75, 0.25], [0.25, 0.75], [0.9, 0.1]])
    sample = torch.tensor([0, 0, 1, 0, 2])  # the last row is padding
    found = balance_loss(probabilities.log(), 1, sample, 2)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("num_experts", "num_per_token"), [(4, 1), (6, 2), (16, 8)])
def test_it_is_transformers_own_of_each_sample_and_so_is_its_gradient(num_experts, num_per_token):
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(11, num_experts, generator=generator, requires_grad=True) for _ in range(3)]
    sample = torch.tensor([0] * 4 + [2] * 7)
    found = balance_loss(torch.cat(layers), num_per_token, sample.repeat(3), 3)
    expected = [
        load_balancing_loss_func(tuple(layer[sample == one] for layer in layers), num_experts, num_per_token)
        for one in (0, 2)
    ]
    torch.testing.assert_close(found, torch.stack([expected[0], torch.tensor(0.0), expected[1]]))
    ours, theirs = (torch.autograd.grad(total, layers) for total in (found.sum(), sum(expected)))
    torch.testing.assert_close(ours, theirs)
