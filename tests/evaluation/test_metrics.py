import math

import pytest

from t3d.evaluation.metrics import metrics


def record(lengths: list[int], steps: list[int], forwards: list[int], reasons: list[str]) -> dict:
    return {
        "response_length": lengths,
        "num_steps": steps,
        "num_forwards": forwards,
        "finish_reason": reasons,
    }


def test_figures_worked_by_hand():
    """Four responses, 3 right: 10 + 20 + 6 + 4 = 40 tokens in 5 + 10 + 3 + 2 = 20 steps and 25 forwards."""
    records = [
        record([10, 20], [5, 10], [6, 12], ["stop", "length"]),
        record([6, 4], [3, 2], [4, 3], ["stop", "stop"]),
    ]
    assert metrics([True, False, True, True], records, seconds=8.0) == {
        "n": 4,
        "acc": 0.75,
        "stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 4)),
        "avg_len": 10.0,
        "avg_steps": 5.0,
        "tokens_per_step": 2.0,
        "tokens_per_forward": 1.6,
        "tokens_per_second": 5.0,
        "latency_s": 2.0,
        "finish_reasons": {"stop": 3, "length": 1},
    }


def test_ratios_are_of_sums_and_not_means_of_ratios():
    records = [record([8], [8], [8], ["stop"]), record([8], [2], [2], ["stop"])]
    assert metrics([True, True], records, None)["tokens_per_step"] == 1.6  # the mean of 1 and 4 would be 2.5


@pytest.mark.parametrize(("correct", "acc"), [([True] * 3, 1.0), ([False] * 3, 0.0)])
def test_a_standard_error_of_all_or_none_is_0(correct, acc):
    figures = metrics(correct, [record([1], [1], [1], ["stop"])] * 3, None)
    assert (figures["acc"], figures["stderr"]) == (acc, 0.0)


def test_what_a_file_does_not_tell_is_none():
    """The release's files hold lengths, and neither steps nor forwards."""
    figures = metrics([True, False], [{"response_length": [3, 5]}], None)
    assert figures["avg_len"] == 4.0
    unknown = ("avg_steps", "tokens_per_step", "tokens_per_forward", "tokens_per_second", "latency_s")
    assert all(figures[name] is None for name in unknown)
    assert figures["finish_reasons"] == {}
