import math
import random
import statistics

import pytest

from t3d.evaluation.metrics import Metrics, metrics


def record(grades: list[bool | None], **fields: object) -> dict:
    statuses = ["graded" if grade is not None else "failed" for grade in grades]
    return {"full_output": [""] * len(grades), "correctness": grades, "grading": statuses, **fields}


def counted(grades: list[bool | None], lengths: list[int], steps: list[int], forwards: list[int], reasons: list[str]):
    return record(grades, response_length=lengths, num_steps=steps, num_forwards=forwards, finish_reason=reasons)


def test_figures_worked_by_hand():
    """Four responses, 3 right: 10 + 20 + 6 + 4 = 40 tokens in 5 + 10 + 3 + 2 = 20 steps and 25 forwards.

    The first prompt fills a block and took a prefill for each of its two responses, the second does not.
    """
    records = [
        counted([True, False], [10, 20], [5, 10], [6, 12], ["stop", "length"])
        | {"prompt_ids": [1] * 4, "block_size": 4},
        counted([True, True], [6, 4], [3, 2], [4, 3], ["stop", "stop"]) | {"prompt_ids": [1] * 3, "block_size": 4},
    ]
    assert metrics(records, seconds=8.0) == Metrics(
        n=4,
        acc=0.75,
        stderr=pytest.approx(math.sqrt((1 - 1.5) ** 2 + (2 - 1.5) ** 2) / 4),
        avg_len=10.0,
        avg_steps=5.0,
        tokens_per_step=2.0,
        tokens_per_forward=1.6,
        tokens_per_forward_decode=40 / 23,
        tokens_per_second=5.0,
        latency_s=2.0,
        responses=4,
        failed=0,
        finish_reasons={"stop": 3, "length": 1},
        grading={"graded": 4},
    )


def test_ratios_are_of_sums_and_not_means_of_ratios():
    records = [counted([True], [8], [8], [8], ["stop"]), counted([True], [8], [2], [2], ["stop"])]
    assert metrics(records, None).tokens_per_step == 1.6  # the mean of 1 and 4 would be 2.5


def test_what_failed_or_could_not_be_graded_has_no_part_in_n_and_acc():
    """Of six responses one failed (it has no cost either) and one has no grade (it has)."""
    records = [
        counted([True, None, False], [10, 0, 20], [5, 0, 10], [6, 0, 12], ["stop", "error", "length"]),
        counted([None, True, True], [6, 4, 8], [3, 2, 4], [4, 3, 5], ["stop"] * 3),
    ]
    records[1]["grading"][0] = "error"
    figures = metrics(records, seconds=10.0)
    assert (figures.n, figures.acc, figures.responses, figures.failed) == (4, 0.75, 6, 1)
    assert (figures.avg_len, figures.avg_steps, figures.latency_s) == (48 / 5, 24 / 5, 2.0)
    assert figures.grading == {"graded": 4, "failed": 1, "error": 1}
    assert figures.finish_reasons == {"stop": 4, "error": 1, "length": 1}


def test_nothing_graded_is_no_accuracy_of_0():
    with pytest.raises(ValueError, match="no response has a grade"):
        metrics([record([None, None], finish_reason=["error", "error"])], None)


@pytest.mark.parametrize("grade", [True, False])
def test_a_standard_error_of_all_or_none_is_0(grade):
    figures = metrics([record([grade])] * 3, None)
    assert (figures.acc, figures.stderr) == (float(grade), 0.0)


def test_the_standard_error_of_single_responses_is_the_binomial_one():
    records = [record([place < 30]) for place in range(100)]
    assert metrics(records, None).stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 100))


def test_copies_of_a_response_tell_nothing_new():
    once = [record([place % 3 == 0]) for place in range(50)]
    often = [record([place % 3 == 0] * 8) for place in range(50)]
    assert metrics(often, None).stderr == pytest.approx(metrics(once, None).stderr)


@pytest.mark.parametrize("sizes", [[4], [1, 2, 5]], ids=["equally many", "differently many"])
def test_the_standard_error_is_that_of_a_bootstrap_over_problems(sizes):
    """Problems differ in difficulty: over responses the binomial formula would be far too small."""
    random_ = random.Random(0)
    problems = []
    for place in range(120):
        chance = random_.random() ** 2
        problems.append(record([random_.random() < chance for _ in range(sizes[place % len(sizes)])]))

    def resampled() -> float:
        return metrics(random_.choices(problems, k=len(problems)), None).acc

    bootstrap = statistics.pstdev(resampled() for _ in range(2000))
    figures = metrics(problems, None)
    assert figures.stderr == pytest.approx(bootstrap, rel=0.08)
    if sizes == [4]:
        assert math.sqrt(figures.acc * (1 - figures.acc) / figures.n) < 0.75 * figures.stderr


def test_what_a_file_does_not_tell_is_none():
    """The release's files hold lengths, and neither steps nor forwards."""
    figures = metrics([record([True, False], response_length=[3, 5])], None)
    assert figures.avg_len == 4.0
    unknown = ("avg_steps", "tokens_per_step", "tokens_per_forward", "tokens_per_forward_decode", "tokens_per_second")
    assert all(getattr(figures, name) is None for name in (*unknown, "latency_s"))
    assert figures.finish_reasons == {}


def test_a_count_that_some_records_lack_is_unknown():
    records = [record([True], response_length=[3]), record([True])]
    assert metrics(records, None).avg_len is None
