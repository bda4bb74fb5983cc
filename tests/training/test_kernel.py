"""Which attention trains, with kernels that work and that do not."""

import logging
import subprocess

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from t3d.sdar.backend import Heads, masked_attention
from t3d.training import attention
from t3d.training.attention import FlexPlan, TiledPlan
from t3d.training.kernel import choose_plan, find_plan

CPU, HEADS = torch.device("cpu"), Heads(4, 2, 16)


def flex_by_hand(query, key, value, block_mask, scale, enable_gqa):
    """What flex_attention documents, from the function in the block mask."""
    assert enable_gqa
    size = query.shape[2]
    mask = create_mask(block_mask.mask_mod, None, None, size, size, "cpu")
    return masked_attention(query, key, value, mask[:, :1], scale)


@pytest.fixture
def flex(monkeypatch):
    """Makes the CPU a device whose plan is `FlexPlan`, with this kernel."""
    choose_plan.cache_clear()
    monkeypatch.setitem(attention.PLANS, "cpu", FlexPlan)

    def build(kernel) -> None:
        monkeypatch.setattr(attention, "_flex_kernel", lambda device_type: kernel)

    yield build
    choose_plan.cache_clear()


def fail(error):
    def kernel(*given, **layout):
        raise error

    return kernel


def test_a_kernel_that_works_is_taken_and_told_once(flex, caplog):
    caplog.set_level(logging.INFO)
    flex(flex_by_hand)
    for _ in range(2):
        assert choose_plan(CPU, torch.bfloat16, HEADS) is FlexPlan
    assert [record.getMessage() for record in caplog.records] == ["training on cpu in bfloat16 with flex_attention"]


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (fail(RuntimeError("no kernel image is available\nmore")), "does not run here: no kernel image is available"),
        (fail(ImportError("No module named 'triton'")), "does not run here: No module named 'triton'"),
        (fail(FileNotFoundError(2, "No such file", "gcc")), "does not run here: [Errno 2] No such file: 'gcc'"),
        (
            fail(subprocess.CalledProcessError(1, ["gcc"])),
            "does not run here: Command '['gcc']' returned non-zero exit status 1.",
        ),
        (lambda query, *given, **layout: query, "computes something else here, off by "),
        (lambda *given, **layout: flex_by_hand(*given, **layout).detach(), "does not run here: element 0 of tensors"),
        (lambda *given, **layout: flex_by_hand(*given, **layout) * float("nan"), "computes something else here"),
    ],
)
def test_a_kernel_that_does_not_work_is_a_logged_fallback(flex, caplog, kernel, why):
    flex(kernel)
    assert choose_plan(CPU, torch.float32, HEADS) is TiledPlan
    (record,) = caplog.records
    told = "training on cpu in float32 with torch's scaled_dot_product_attention in tiles (flex_attention "
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(told + why)


def test_a_wrong_gradient_is_found(flex):
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(context, seen):
            return seen.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient / 2

    flex(lambda *given, **layout: Half.apply(flex_by_hand(*given, **layout)))
    plan, why = find_plan(CPU, torch.float32, HEADS)
    assert plan is TiledPlan
    assert why == "flex_attention computes something else here, off by 50%"


def test_a_cpu_has_no_other_kernel_to_try():
    assert find_plan(CPU, torch.bfloat16, HEADS) == (TiledPlan, "")
