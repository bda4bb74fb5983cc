import math

import numpy as np
import pytest

from t3d.arena.statistics import estimate, holm, paired, quantile, table, within


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
    assert (found.low, found.high) == pytest.approx((0.5 - 3.182 * found.stderr, 0.5 + 3.182 * found.stderr), rel=1e-3)


def test_a_problem_without_a_grade_is_left_out_for_all_seeds():
    found = estimate(table(["1-01", "1101"]))
    assert (found.mean, found.problems) == (pytest.approx(2 / 3), 3)
    with pytest.raises(ValueError, match="two families"):
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


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (1.8, 4.79488), (2, 4.30265), (20, 2.08596), (40, 2.02108), (1e5, 1.95998)]
)
def test_the_quantile_is_students(freedom, expected):
    """The values are scipy's."""
    assert quantile(freedom) == pytest.approx(expected, rel=1e-5)
    assert within(expected, freedom) == pytest.approx(0.95, abs=1e-6)


def test_the_parts_of_an_error_give_its_degrees_of_freedom():
    """Only seeds vary, or only problems."""
    seeds, problems = np.arange(4.0)[:, None] + np.zeros((1, 9)), np.arange(9.0)[None] + np.zeros((4, 1))
    assert estimate(seeds).freedom == pytest.approx(3)
    assert estimate(problems).freedom == pytest.approx(8)


def test_a_family_counts_once_however_many_problems_it_has():
    """Copies of problems tell nothing new, and a family of a few alike problems counts as one."""
    stream = np.random.default_rng(3)
    values = stream.normal(size=(3, 20)) + stream.normal(size=(1, 20))
    alone, copied = estimate(values), estimate(values.repeat(5, axis=1), np.arange(20).repeat(5))
    for name in ("mean", "over_problems", "over_seeds", "total", "freedom"):
        assert getattr(copied, name) == pytest.approx(getattr(alone, name)), name
    assert (alone.problems, copied.problems) == (20, 100)
    assert estimate(values.repeat(5, axis=1)).over_problems == pytest.approx(alone.over_problems / 5**0.5, rel=0.03)
    shuffled = stream.permutation(100)
    again = estimate(values.repeat(5, axis=1)[:, shuffled], np.arange(20).repeat(5)[shuffled] + 7)
    assert again.total == pytest.approx(copied.total)


def test_the_interval_covers_the_truth_where_problems_come_in_families():
    """Four problems of a family: without the families it covers far less often."""
    stream = np.random.default_rng(0)
    trials, covered, without = 400, 0, 0
    for _ in range(trials):
        families = stream.integers(60, size=240)
        values = (
            0.03 * stream.normal(size=(5, 1))
            + 0.3 * stream.normal(size=60)[families]
            + 0.3 * stream.normal(size=(5, 240))
        )
        known, unknown = estimate(values, families), estimate(values)
        covered += known.low <= 0 <= known.high
        without += unknown.low <= 0 <= unknown.high
    assert 0.925 < covered / trials < 0.99
    assert without / trials < 0.9


def test_holms_correction_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_probability_of_a_mean_goes_with_its_interval():
    values = np.random.default_rng(4).normal(size=(4, 30))
    found = estimate(values)
    at_the_edge = estimate(values - found.low)
    assert at_the_edge.p_value == pytest.approx(0.05, abs=1e-4)
    assert estimate(np.ones((2, 3))).p_value == 0
    assert estimate(np.zeros((2, 3))).p_value == 1
