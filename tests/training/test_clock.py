"""A step's figures: seconds of its parts, and operations counted by a slow, obvious count."""

import math
from itertools import count

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from t3d.config import TrainingConfig
from t3d.errors import ConfigError
from t3d.training import clock as clocks
from t3d.training.clock import StepClock
from t3d.training.forward import batch_losses
from t3d.training.operations import Work, _known_peak, peak_operations
from t3d.training.reference import frozen_copy
from tests.training.test_forward import SETTINGS, make_batch, rows_per_chunk

CPU = torch.device("cpu")


def test_parts_inside_parts_are_taken_off_the_outer_one() -> None:
    moments = count()
    clock = StepClock(lambda: next(moments), lambda first, last: float(last - first))
    with clock.part("student"), clock.part("reference"), clock.part("student"):
        pass
    with pytest.raises(KeyError), clock.part("backward"), clock.part("reference"):
        raise KeyError
    with clock.part("student"):
        pass
    # Marks 1 to 6 nest student, reference, student; 7 to 10 backward, reference; 11 and 12 student again.
    assert clock.seconds() == {"seconds/student": 4.0, "seconds/reference": 3.0, "seconds/backward": 2.0}


def test_cuda_has_its_own_clock_and_everything_else_the_hosts(monkeypatch) -> None:
    class Event:
        """As torch.cuda.Event: a time in milliseconds, known once it was waited for."""

        made = count()

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.time, self.waited = None, False

        def record(self) -> None:
            self.time = 1000 * next(self.made)

        def synchronize(self) -> None:
            self.waited = True

        def elapsed_time(self, other: "Event") -> float:
            assert other.waited
            return other.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = StepClock.of(torch.device("cuda"))
    with clock.part("data"):
        pass
    assert clock.seconds() == {"seconds/data": 1.0}
    clock = StepClock.of(CPU)
    with clock.part("data"):
        pass
    assert 0 <= clock.seconds()["seconds/data"] < 1


@pytest.mark.parametrize("chunk", [1000, 4])
def test_a_losses_parts_are_the_students_and_the_references(build_tiny_model, monkeypatch, chunk: int) -> None:
    rows_per_chunk(monkeypatch, chunk)
    student = build_tiny_model()
    clock = StepClock.of(CPU)
    losses = batch_losses(student, frozen_copy(student), make_batch(), SETTINGS, clock.part)
    with clock.part("backward"):
        losses["loss/total"].sum().backward()
    assert set(clock.seconds()) == {"seconds/reference", "seconds/student", "seconds/backward"}
    assert clocks.REST not in clock.seconds()


@pytest.mark.parametrize("trained", ["all", "some", "none"])
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_operations_are_those_of_a_count_product_by_product(
    build_tiny_model, build_tiny_mixture, kind: str, trained: str
) -> None:
    """Without attention's, which are products of batches of matrices where torch has no kernel for them."""
    if kind == "mixture" and trained == "some":
        pytest.skip("a mixture's weights are trained together")
    build = build_tiny_model if kind == "dense" else build_tiny_mixture
    student, batch = build(num_hidden_layers=3), make_batch()
    for name, weight in student.named_parameters():
        wanted = {"all": True, "some": "norm" in name or "up_proj" in name or "embed" in name, "none": False}[trained]
        weight.requires_grad_(wanted)
    inputs = {"attention_mask": batch.plan, "position_ids": batch.position_ids, "logit_rows": batch.logit_rows}
    with FlopCounterMode(display=False) as counter:
        logits = student(batch.input_ids, **inputs).logits
        if trained != "none":
            logits.sum().backward()
    products = counter.get_flop_counts()["Global"]
    linear = products[torch.ops.aten.mm]
    assert Work.of(student).count(batch.input_ids.numel(), len(batch.logit_rows)) == linear


def test_peaks_are_known_by_name_or_given() -> None:
    training = TrainingConfig()
    assert math.isnan(peak_operations(training, CPU))
    training.device_peak_tflops = 2.5
    assert peak_operations(training, CPU) == 2.5e12
    for name, expected in (
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ):
        assert _known_peak(name, "bf16") == expected * 1e12, name
    with pytest.raises(ConfigError, match=r"device_peak_tflops: expected null, or above 0"):
        TrainingConfig(device_peak_tflops=0.0)


def test_an_unknown_device_is_said_once(caplog) -> None:
    caplog.set_level("INFO")
    assert all(math.isnan(_known_peak("NVIDIA Z1", "bf16")) for _ in range(2))
    assert math.isnan(_known_peak("NVIDIA A100", "no"))
    assert [record.getMessage() for record in caplog.records] == [
        "mfu is null: unknown device NVIDIA Z1 (training.device_peak_tflops says what it can do)",
        "mfu is null: unknown in single precision on NVIDIA A100 (training.device_peak_tflops says what it can do)",
    ]
