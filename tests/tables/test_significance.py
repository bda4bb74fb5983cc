import dataclasses
import itertools
import math
import random

import pytest

from t3d.evaluation.metrics import metrics
from t3d.tables import significance
from t3d.tables.significance import (
    exact_p,
    improvement,
    mean_stderr,
    normal_p,
    paired_test,
    shares_of_mean,
)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact test from its definition: two-sided binomial probability of the discordant pairs."""
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)


def graded(*columns: list[bool]) -> dict[str, list[bool]]:
    return {str(number): list(grades) for number, grades in enumerate(zip(*columns, strict=True))}


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (1, 1), (3, 9), (8, 1), (0, 30), (200, 150)])
def test_with_one_response_it_is_mcnemars_exact_test(only_a, only_b):
    a = [True] * only_a + [False] * only_b + [True, True, False]
    b = [False] * only_a + [True] * only_b + [True, True, False]
    test = paired_test(graded(a), graded(b))
    assert test.exact
    assert test.p_value == pytest.approx(mcnemar(only_a, only_b), rel=1e-9)
    assert (test.acc_a, test.acc_b) == (sum(a) / len(a), sum(b) / len(b))


def test_with_several_responses_every_sign_pattern_is_counted():
    stream = random.Random(0)
    a = {str(problem): [stream.random() < 0.4 for _ in range(3)] for problem in range(9)}
    b = {str(problem): [stream.random() < 0.7 for _ in range(2)] for problem in range(9)}
    shares = [sum(b[problem]) / 2 - sum(a[problem]) / 3 for problem in a]
    sums = [
        abs(sum(s * d for s, d in zip(signs, shares, strict=True))) for signs in itertools.product((1, -1), repeat=9)
    ]
    expected = sum(value >= abs(sum(shares)) - 1e-9 for value in sums) / 2**9
    assert paired_test(a, b).p_value == pytest.approx(expected)


def test_repeating_every_response_changes_nothing():
    a, b = [True, False, True, True, False, True], [False, False, True, False, False, False]
    assert paired_test(graded(a, a, a), graded(b, b, b)) == paired_test(graded(a), graded(b))


def test_only_common_problems_count():
    a = {"1": [True], "2": [False], "only a": [True]}
    b = {"2": [True], "1": [True], "only b": [False]}
    test = paired_test(a, b)
    assert (test.acc_a, test.acc_b, test.p_value) == (0.5, 1.0, 1.0)
    with pytest.raises(ValueError, match="no problem in common"):
        paired_test({"1": [True]}, {"2": [True]})


def test_the_standard_error_is_that_of_the_mean_difference():
    test = paired_test(graded([True, True, False, False]), graded([False, True, True, True]))
    differences = [-1, 0, 1, 1]  # mean 1/4, variance 11/16
    assert test.stderr == pytest.approx(math.sqrt(11 / 16 / 4))
    assert test.acc_b - test.acc_a == sum(differences) / 4


def test_the_normal_approximation_is_near_the_exact_value():
    differences = [1] * 240 + [-1] * 200
    assert normal_p(differences) == pytest.approx(exact_p(differences), abs=0.01)
    assert normal_p([0, 0]) == exact_p([0, 0]) == exact_p([]) == 1.0


def test_too_much_work_for_an_exact_value_is_said(monkeypatch):
    monkeypatch.setattr(significance, "EXACT_WORK", 3)
    test = paired_test(graded([True, True, True]), graded([False, False, False]))
    assert not test.exact
    assert test.p_value == pytest.approx(math.erfc(math.sqrt(3 / 2)))


def test_the_parts_of_a_mean_sum_to_it():
    graded = [("A", {"1": [True], "2": [False]}), ("A", {"1": [True], "2": [True]}), ("B", {"1": [True, False]})]
    parts = shares_of_mean([(*column, {}) for column in graded])
    assert sum(part.value for part in parts.values()) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert sum(part.weight for part in parts.values()) == pytest.approx(1)
    assert parts["A", "1"].value == pytest.approx(2 * 1 / 2 / 3)


def test_the_error_of_a_mean_of_one_is_that_of_an_accuracy():
    column = {str(number): [number < 30] for number in range(50)}
    assert mean_stderr(shares_of_mean([("A", column, {})])) == pytest.approx(math.sqrt(0.6 * 0.4 / 50))


def test_the_same_answers_at_two_block_sizes_do_not_halve_the_error():
    column = {str(number): [number % 3 == 0] for number in range(50)}
    once = mean_stderr(shares_of_mean([("A", column, {})]))
    assert mean_stderr(shares_of_mean([("A", column, {}), ("A", column, {})])) == pytest.approx(once)
    assert mean_stderr(shares_of_mean([("A", column, {}), ("B", column, {})])) == pytest.approx(once / math.sqrt(2))


def test_a_family_is_one_unit_of_test_and_errors():
    """Each of 10 problems in three wordings, which are solved alike: as certain as 10 problems, not as 30."""
    alone_a, alone_b = graded([i < 6 for i in range(10)]), graded([i < 9 for i in range(10)])
    names = [f"{wording} of {problem}" for problem in alone_a for wording in range(3)]
    families = {name: name.rpartition(" ")[2] for name in names}
    a, b = ({name: each[families[name]] for name in names} for each in (alone_a, alone_b))
    found, alone = paired_test(a, b, families), paired_test(alone_a, alone_b)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(alone))
    assert paired_test(a, b).p_value < found.p_value
    error = mean_stderr(shares_of_mean([("A", a, families)]))
    assert error == pytest.approx(mean_stderr(shares_of_mean([("A", alone_a, {})])))
    records = [{"correctness": a[name], "grading": [], "family": families[name]} for name in names]
    assert metrics(records, None).stderr == pytest.approx(error)


def test_families_may_differ_in_size():
    """By hand: differences 1, 1 and -1 of families of two, one and one problems; their mean is 1/4 per problem."""
    a, b = graded([False, True, True, False]), graded([True, True, False, True])
    test = paired_test(a, b, {"0": "x", "1": "x"})
    assert test.units == 3
    assert test.stderr == pytest.approx(math.sqrt((1 - 0.5) ** 2 + (-1 - 0.25) ** 2 + (1 - 0.25) ** 2) / 4)
    assert test.p_value == 1, "every pattern of signs is at least as far from 0"


def test_improvement_is_the_papers():
    original = [54.40, 78.77, 34.20, 49.39, 49.60, 72.33, 33.40, 46.95]
    t3d = [60.00, 83.85, 38.80, 51.83, 61.60, 81.96, 37.00, 56.10]
    change = improvement(sum(t3d) / 8, sum(original) / 8)
    assert change is not None
    assert round(change, 2) == 12.43
    assert improvement(0.5, 0.0) is None
