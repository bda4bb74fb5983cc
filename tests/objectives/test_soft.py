import pytest
import torch

from t3d.objectives.rows import reference_rows, row_values
from t3d.objectives.soft import soft_loss


def test_early_tokens_have_no_soft_target() -> None:
    # Of four coarse steps, the weights are 0, 1/4, 2/4, 3/4.
    divergence, step, sample = torch.ones(4), torch.tensor([1, 2, 4, 1]), torch.tensor([0, 0, 0, 1])
    assert soft_loss(divergence, step, 4, sample, 3).tolist() == pytest.approx([1 / 3, 0, 0])


@pytest.mark.parametrize(("kind", "temperature"), [("argmax", 0.0), ("exact", 2.0)])
def test_the_divergence_is_that_of_the_student_from_the_reference(kind: str, temperature: float) -> None:
    student, reference = torch.randn(5, 7), torch.randn(5, 7)
    targets, uniforms = torch.arange(5), torch.full((5,), 0.5)
    compared = reference_rows(reference, targets, uniforms, kind, temperature, soft=True)
    found = row_values(student, targets, compared, temperature, certainty=False, confidence=True)
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(found["divergence"], expected.sum(-1))
    torch.testing.assert_close(found["confidence"], student.softmax(-1).amax(-1).log())
