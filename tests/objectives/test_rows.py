import math

import pytest
import torch

from t3d.objectives.log_probs import expected_log_ratio
from t3d.objectives.rows import reference_rows, row_values

STUDENT = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).log()
REFERENCE = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.6, 0.3]]).log()
TARGETS, UNIFORMS = torch.tensor([0, 2]), torch.tensor([0.3, 0.05])


def values(kind: str, temperature: float) -> dict[str, list[float]]:
    reference = reference_rows(REFERENCE, TARGETS, UNIFORMS, kind, temperature)
    found = row_values(STUDENT, TARGETS, reference, temperature, certainty=False)
    return {name: value.tolist() for name, value in found.items()}


def test_argmax_fakes_worked_by_hand() -> None:
    found = values("argmax", 0.0)
    assert found["real"] == pytest.approx([math.log(0.5), math.log(0.7)])
    assert found["real_ratio"] == pytest.approx([math.log(2), math.log(7 / 3)])
    assert found["fake_ratio"] == pytest.approx([math.log(0.25 / 0.5), math.log(0.2 / 0.6)]), "tokens 2 and 1"


def test_sampled_fakes_worked_by_hand() -> None:
    # Temperature 1: 0.3 lies in the second quarter, token 1; 0.05 in the first tenth, token 0.
    assert values("sample", 1.0)["fake_ratio"] == pytest.approx([math.log(0.25 / 0.25), math.log(0.1 / 0.1)])


def test_exact_fakes_are_the_expectation() -> None:
    expected = expected_log_ratio(STUDENT, REFERENCE, 2.0).tolist()
    assert values("exact", 2.0)["fake_ratio"] == pytest.approx(expected)


def test_without_a_reference_there_is_no_ratio_and_certainty_comes_when_asked() -> None:
    found = row_values(STUDENT, TARGETS, None, 0.0, certainty=True)
    assert found.keys() == {"real", "entropy", "correct"}
    assert found["correct"].tolist() == [True, True]
    assert row_values(STUDENT, TARGETS, None, 0.0, certainty=False).keys() == {"real"}


def test_half_precision_logits_give_single_precision_values() -> None:
    reference = reference_rows(REFERENCE.bfloat16(), TARGETS, UNIFORMS, "argmax", 0.0)
    found = row_values(STUDENT.bfloat16(), TARGETS, reference, 0.0, certainty=False)
    assert {value.dtype for value in found.values()} == {torch.float32}
