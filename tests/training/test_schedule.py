import itertools
import math

import numpy as np
import pytest

from t3d.config import SchedulerConfig, SchedulerParams, TrainingConfig
from t3d.training.schedule import SampleOrder, learning_rate, longest_row, micro_batches, token_packs


def rate(step: int, num_steps: int = 120, shape: str = "cosine", warmup: int = 20, floor: float = 0.1) -> float:
    config = SchedulerConfig(scheduler=shape, params=SchedulerParams(warmup_steps=warmup, min_lr_scale=floor))
    return learning_rate(step, num_steps, 1e-5, config) / 1e-5


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 20),
        (9, 10 / 20),
        (19, 1.0),
        (20, 1.0),
        # A quarter, half and three quarters of the way down: floor + .9 (1 + cos) / 2.
        (45, 0.1 + 0.45 * (1 + math.sqrt(0.5))),
        (70, 0.55),
        (95, 0.1 + 0.45 * (1 - math.sqrt(0.5))),
        (120, 0.1),
    ],
)
def test_cosine_by_hand(step: int, expected: float) -> None:
    assert rate(step) == pytest.approx(expected)


def test_linear_and_constant_by_hand() -> None:
    assert [rate(step, shape="linear") for step in (20, 45, 70, 120)] == pytest.approx([1, 0.775, 0.55, 0.1])
    assert [rate(step, shape="constant") for step in (0, 20, 70, 500)] == pytest.approx([0.05, 1, 1, 1])


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [1, 5, 20, 21, 120])
@pytest.mark.parametrize("warmup", [0, 1, 20, 500])
def test_the_rate_rises_then_falls_and_never_leaves_its_bounds(shape: str, num_steps: int, warmup: int) -> None:
    # RELEASE 11: the release's cosine is unclamped and rises again.
    rates = [rate(step, num_steps, shape, warmup) for step in range(3 * num_steps + 5)]
    peak = min(warmup, num_steps)
    assert all(0 < value <= 1 + 1e-12 for value in rates)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates[peak:]) >= 0.1 - 1e-12
    assert rates[-1] == pytest.approx(0.1)


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    order = SampleOrder(10, seed=3)
    visits = [visit for step in range(15) for visit in order.visits(step, 4)]
    assert len(visits) == 60
    epochs = [visits[start : start + 10] for start in range(0, 60, 10)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == [(number, sample) for sample in range(10)]
    assert len({tuple(sample for _, sample in epoch) for epoch in epochs}) > 1


def test_the_order_is_a_function_of_the_step_alone() -> None:
    fresh = SampleOrder(7, seed=1)
    expected = [SampleOrder(7, seed=1).visits(step, 5) for step in range(9)]
    assert [fresh.visits(step, 5) for step in range(9)] == expected
    assert fresh.visits(2, 5) == expected[2], "going back, as a resumed run does"
    assert SampleOrder(7, seed=1).visits(8, 5) == expected[8]
    assert SampleOrder(50, seed=2).visits(0, 50) != SampleOrder(50, seed=1).visits(0, 50)


def test_a_global_batch_larger_than_the_data_spans_epochs() -> None:
    visits = SampleOrder(3, seed=0).visits(0, 8)
    assert sorted(visits)[:6] == [(epoch, sample) for epoch in (0, 1) for sample in range(3)]
    assert [epoch for epoch, _ in visits] == [0] * 3 + [1] * 3 + [2] * 2


@pytest.mark.parametrize(("num_processes", "batch_size"), [(1, 1), (1, 8), (2, 4), (4, 1), (4, 2), (8, 3)])
def test_micro_batches_deal_out_the_global_batch_exactly(num_processes: int, batch_size: int) -> None:
    global_batch = 24
    lengths = [(index * 7919) % 31 for index in range(10)]
    visits = SampleOrder(10, seed=0).visits(3, global_batch)
    shares = [micro_batches(visits, lengths, batch_size, process, num_processes) for process in range(num_processes)]
    assert sorted(visit for share in shares for part in share for visit in part) == sorted(visits)
    assert {len(share) for share in shares} == {global_batch // batch_size // num_processes}
    assert {len(part) for share in shares for part in share} == {batch_size}
    # Samples padded together are neighbours in length.
    parts = sorted((lengths[part[0][1]], lengths[part[-1][1]]) for share in shares for part in share)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(parts))


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize("budget", [1, 40, 100, 400, 10_000])
def test_token_packs_deal_out_the_global_batch_exactly(num_processes: int, budget: int) -> None:
    lengths = [10 + (index * 7919) % 91 for index in range(50)]
    visits = SampleOrder(50, seed=0).visits(0, 24)
    shares = [token_packs(visits, lengths, budget, process, num_processes) for process in range(num_processes)]
    packs = [pack for share in shares for pack in share]
    assert sorted(visit for pack in packs for visit in pack) == sorted(visits)
    assert all(packs), "no process has an empty forward"
    assert len({len(share) for share in shares}) == 1, "processes wait for each other at every forward"
    sizes = [sum(lengths[sample] for _, sample in pack) for pack in packs]
    assert all(size <= budget or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True))
    if budget == 10_000:
        assert len(packs) == num_processes
        assert max(sizes) - min(sizes) <= max(lengths), "nearly equal work"
    if budget == 1:
        assert {len(pack) for pack in packs} == {1}


def test_token_packs_written_out() -> None:
    visits = [(0, 0), (0, 1), (0, 2), (0, 3)]
    # Longest first: 60 | 40; then 30 to the emptier pack, and 20 to what is the emptier then.
    assert token_packs(visits, [20, 60, 30, 40], 90, 0, 1) == [[(0, 1), (0, 0)], [(0, 3), (0, 2)]]
    assert token_packs(visits, [20, 60, 30, 40], 150, 0, 1) == [[(0, 1), (0, 3), (0, 2), (0, 0)]]
    assert token_packs(visits, [20, 60, 30, 40], 150, 1, 2) == [[(0, 3), (0, 2)]]


def test_the_longest_row_is_the_longest_samples_together_or_a_pack() -> None:
    lengths = np.array([5, 30, 20, 10])
    assert longest_row(lengths, TrainingConfig(batch_size_lm=1)) == 30
    assert longest_row(lengths, TrainingConfig(batch_size_lm=3)) == 60
    assert longest_row(lengths, TrainingConfig(batch_size_lm=3, tokens_per_batch=40)) == 40
    assert longest_row(lengths, TrainingConfig(batch_size_lm=3, tokens_per_batch=7)) == 30
