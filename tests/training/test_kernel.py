"""Which attention trains, with kernels that work and that do not."""

import logging
import subprocess

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from t3d.sdar.backend import Heads, masked_attention
from t3d.training import attention
from t3d.training.attention import FlexPlan, SmallFlexPlan, TiledPlan
from t3d.training.kernel import choose_plan, find_plan
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer
from tests.training.test_attention import draw_states, layout, random_inputs
from tests.training.test_models import configure

CPU, HEADS = torch.device("cpu"), Heads(4, 2, 16)


def flex_by_hand(query, key, value, block_mask, scale, enable_gqa, kernel_options):
    """What flex_attention documents, from the function in the block mask."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
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
        (
            lambda query, key, value, **layout: query + 0 * (key.sum() + value.sum()),
            "computes something else here, off by ",
        ),
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


class Half(torch.autograd.Function):
    @staticmethod
    def forward(context, states):
        return states.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient / 2


@pytest.mark.parametrize("wrong", ["query", "key", "value"])
def test_a_wrong_gradient_is_found(flex, wrong):
    def kernel(query, key, value, **layout):
        states = {"query": query, "key": key, "value": value}
        states[wrong] = Half.apply(states[wrong])
        return flex_by_hand(**states, **layout)

    flex(kernel)
    plan, why = find_plan(CPU, torch.float32, HEADS)
    assert plan is TiledPlan
    assert why == "flex_attention computes something else here, off by 50%"


def test_what_is_wrong_in_tiles_that_are_seen_in_full_is_found(flex):
    """Keys of such a tile are left out."""

    def kernel(query, key, value, block_mask, **layout):
        assert block_mask.full_kv_num_blocks.sum() > 0
        partial = block_mask.to_dense().bool() & ~_full(block_mask)
        mask = create_mask(block_mask.mask_mod, None, None, query.shape[2], query.shape[2], "cpu")
        mask &= partial.repeat_interleave(128, -1).repeat_interleave(128, -2)
        return masked_attention(query, key, value, mask[:, :1], layout["scale"])

    flex(kernel)
    plan, why = find_plan(CPU, torch.float32, HEADS)
    assert plan is TiledPlan
    assert "computes something else here" in why


def _full(block_mask):
    """Which tiles are seen in full [1, 1, tiles, tiles]."""
    counts, indices = block_mask.full_kv_num_blocks[0, 0], block_mask.full_kv_indices[0, 0]
    seen = torch.zeros(1, 1, *indices.shape, dtype=torch.bool)
    for row, (count, places) in enumerate(zip(counts.tolist(), indices, strict=True)):
        seen[0, 0, row, places[:count].long()] = True
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_card_with_little_shared_memory_computes_in_small_tiles(flex, caplog, dtype):
    def kernel(*given, kernel_options, **layout):
        tiles = kernel_options or {"BLOCK_M": 128, "BLOCK_N": 64, "num_stages": 3}
        held = tiles["BLOCK_M"] + 2 * tiles["num_stages"] * tiles["BLOCK_N"]  # queries; and keys and values by stage
        if held * 128 * dtype.itemsize > 101_376:
            raise RuntimeError("No valid triton configs. OutOfMemoryError: out of resource")
        return flex_by_hand(*given, kernel_options=kernel_options, **layout)

    flex(kernel)
    if dtype == torch.float32:
        assert choose_plan(CPU, dtype, HEADS) is TiledPlan
        return
    assert choose_plan(CPU, dtype, HEADS) is SmallFlexPlan
    assert [record.getMessage() for record in caplog.records] == [
        "training on cpu in bfloat16 with flex_attention in small tiles (flex_attention does not run here: No valid"
        " triton configs. OutOfMemoryError: out of resource)"
    ]


def test_rows_padded_for_the_kernel_give_what_they_give_alone(flex):
    flex(flex_by_hand)
    states = draw_states([(3, 5), (40, 90)])
    tokens, lengths = layout(states)
    results = []
    for longest in (0, 1000):
        inputs = random_inputs(sum(lengths))
        plan = FlexPlan(tokens, lengths, CPU, longest)
        seen = plan.attend(0, *inputs, scale=0.3)
        weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1))
        results.append((seen, *torch.autograd.grad((seen * weights).sum(), inputs)))
    for alone, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
    looked_at = (plan.block_mask.kv_num_blocks + plan.block_mask.full_kv_num_blocks)[0, 0].tolist()
    num_blocks = -(-sum(lengths) // 128)
    assert looked_at[num_blocks:] == [1] * (8 - num_blocks), "of 8 blocks of scores, pads are computed in their own"


@pytest.mark.parametrize(("length", "longest", "seen"), [(256, 0, 256), (256, 500, 512), (640, 500, 1024)])
def test_a_row_is_padded_to_the_longest_or_where_it_is_longer_to_few_lengths(length, longest, seen):
    assert FlexPlan.padded_length(length, longest) == seen


def test_a_runs_kernel_is_given_one_length_from_its_trial_on(flex, checkpoint, trajectories, tmp_path):
    lengths = []

    def kernel(query, *given, **layout):
        lengths.append(query.shape[2])
        return flex_by_hand(query, *given, **layout)

    flex(kernel)
    config = configure(checkpoint, trajectories, tmp_path / "run", "training.batch_size_lm=2")
    trainer = Trainer(config, make_accelerator(config))
    assert trainer.plan is FlexPlan
    trainer.train_step()
    assert len(lengths) > 2 * 4 * 2
    assert set(lengths) == {-(-trainer.longest // 128) * 128}


def test_a_cpu_has_no_other_kernel_to_try():
    assert find_plan(CPU, torch.bfloat16, HEADS) == (TiledPlan, "")
