import math

import pytest
import torch

from t3d.objectives.log_probs import expected_log_ratio, token_log_probs
from t3d.sampling import draw_tokens, response_uniforms

STUDENT = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log()
REFERENCE = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.6, 0.3]]).log()


def test_token_log_probs_pick_the_token_of_each_row() -> None:
    assert token_log_probs(STUDENT, torch.tensor([0, 2])).tolist() == pytest.approx([math.log(0.5), math.log(0.7)])


def test_expected_log_ratio_worked_by_hand() -> None:
    # Temperature 1: 1/4 log 2 + 1/4 log 1 + 1/2 log 1/2 = -1/4 log 2.
    assert expected_log_ratio(STUDENT, REFERENCE, 1.0)[0].item() == pytest.approx(-math.log(2) / 4)
    # Temperature 1/2 squares 1/4 1/4 1/2 to 1/6 1/6 2/3: 1/6 log 2 - 2/3 log 2.
    assert expected_log_ratio(STUDENT, REFERENCE, 0.5)[0].item() == pytest.approx(-math.log(2) / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_expected_log_ratio_equals_the_enumeration(temperature: float) -> None:
    values = expected_log_ratio(STUDENT, REFERENCE, temperature)
    for row in range(2):
        weights = [math.exp(value / temperature) for value in REFERENCE[row].tolist()]
        expected = sum(
            weight / sum(weights) * (STUDENT[row, token] - REFERENCE[row, token]).item()
            for token, weight in enumerate(weights)
        )
        assert values[row].item() == pytest.approx(expected, abs=1e-6)


def test_at_temperature_one_it_is_minus_the_kl_divergence() -> None:
    kl = torch.nn.functional.kl_div(STUDENT, REFERENCE, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(expected_log_ratio(STUDENT, REFERENCE, 1.0), -kl)
    assert (expected_log_ratio(STUDENT, REFERENCE, 1.0) < 0).all()
    torch.testing.assert_close(expected_log_ratio(REFERENCE, REFERENCE, 1.7), torch.zeros(2))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_the_mean_over_samples_approaches_it(temperature: float) -> None:
    num = 40_000
    uniforms = torch.from_numpy(response_uniforms(0, 0, num, 1, 1).reshape(-1))
    student, reference = STUDENT[1:].expand(num, -1), REFERENCE[1:].expand(num, -1)
    fakes = draw_tokens((reference / temperature).softmax(-1), uniforms)
    ratios = token_log_probs(student, fakes) - token_log_probs(reference, fakes)
    exact = expected_log_ratio(STUDENT[1:], REFERENCE[1:], temperature).item()
    assert abs(ratios.mean().item() - exact) < 4 * ratios.std().item() / math.sqrt(num)


def test_a_token_that_the_reference_excludes_counts_nothing() -> None:
    excluded = torch.tensor([[0.5, 0.5, 0.0]]).log()
    student = STUDENT[:1].clone().requires_grad_()
    value = expected_log_ratio(student, excluded, 1.0)
    assert value.item() == pytest.approx(0.5 * math.log(0.5 / 0.5) + 0.5 * math.log(0.25 / 0.5))
    value.sum().backward()
    assert student.grad.tolist() == [pytest.approx([0.5, 0.5, 0.0])]


def test_no_gradient_reaches_the_reference() -> None:
    reference = REFERENCE.clone().requires_grad_()
    student = STUDENT.clone().requires_grad_()
    expected_log_ratio(student, reference, 2.0).sum().backward()
    assert reference.grad is None
    torch.testing.assert_close(student.grad, (REFERENCE / 2).softmax(-1))


def test_gradients_match_finite_differences() -> None:
    logits = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reference = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda row: expected_log_ratio(row.log_softmax(-1), reference, 1.5), (logits,))
