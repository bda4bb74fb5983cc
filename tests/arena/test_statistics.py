import math

import numpy as np
import pytest

from t3d.arena.statistics import _quantile, estimate, paired, table


def test_the_errors_of_a_table_worked_by_hand():
    """Two seeds, three problems: means .5, 1, .5 of problems and 2/3, 2/3 of seeds."""
    found = estimate(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]))
    assert found.mean == pytest.approx(2 / 3)
    assert found.over_seeds == 0
    # Problems' means vary by ((1/6)^2 + (1/3)^2 + (1/6)^2) / 2 = 1/12, over 3 problems.
    assert found.over_problems == pytest.approx(math.sqrt(1 / 36))
    # What is left, +-.5 at two problems: 4 * .25 / (1 * 2) over 6 values = 1/12, more than the problems' 1/36.
    assert found.total == pytest.approx(math.sqrt(1 / 36))


def test_seeds_and_problems_add_up_where_nothing_else_varies():
    found = estimate(np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]))
    assert (found.over_seeds, found.over_problems) == (pytest.approx(0.5), pytest.approx(math.sqrt(1 / 3)))
    assert found.total == pytest.approx(math.sqrt(0.25 + 1 / 3))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    stream = np.random.default_rng(0)
    trials, covered = 600, 0
    for _ in range(trials):
        values = 0.6 + 0.05 * stream.normal(size=(5, 1)) + 0.3 * stream.normal(size=(1, 60))
        found = estimate(values + 0.3 * stream.normal(size=(5, 60)))
        covered += found.low <= 0.6 <= found.high
    assert 0.925 < covered / trials < 0.99


def test_one_seed_has_the_problems_error_alone():
    found = estimate(table(["1100"]))
    assert (found.over_seeds, found.total, found.stderr) == (None, None, pytest.approx(math.sqrt(1 / 3 / 4)))
    assert (found.low, found.high) == pytest.approx((0.5 - 1.96 * found.stderr, 0.5 + 1.96 * found.stderr))


def test_a_problem_without_a_grade_is_left_out_for_all_seeds():
    found = estimate(table(["1-01", "1101"]))
    assert (found.mean, found.problems) == (pytest.approx(2 / 3), 3)
    with pytest.raises(ValueError, match="two problems"):
        estimate(table(["1--"]))


def test_pairing_takes_out_what_both_have():
    stream = np.random.default_rng(1)
    shared = stream.normal(size=(4, 50))
    found = paired(shared, shared + 0.1)
    assert found.mean == pytest.approx(0.1)
    assert found.stderr == pytest.approx(0, abs=1e-9)
    assert found.low == pytest.approx(0.1)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_two_seeds_are_too_few_to_call_a_difference_clear(seeds):
    found = estimate(0.5 + 0.1 * np.random.default_rng(2).normal(size=(seeds, 200)))
    assert found.low > 0
    assert found.is_clear is (seeds == 3)


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (20, 2.086), (21, 2.0796), (40, 2.0211), (1e9, 1.96)])
def test_the_quantile_is_students(freedom, expected):
    """With parts chosen so that Satterthwaite's degrees of freedom are these: only seeds vary."""
    assert _quantile(1.0, 1.0, 0.0, 0.0, (int(freedom) + 1, 50)) == pytest.approx(expected, abs=1e-3)
