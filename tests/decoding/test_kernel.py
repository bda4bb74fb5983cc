"""Which attention decodes, with a flash-attn of our own making and cards that are not there."""

import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from t3d.decoding import DecodingConfig, decode
from t3d.decoding import kernel as kernel_module
from t3d.decoding.kernel import Kernel, choose_kernel, choose_paging, find_kernel
from t3d.decoding.pages import Paging
from t3d.decoding.plan import FlashPlan, SdpaPlan, WidePlan
from t3d.sdar.backend import Heads, masked_attention, masked_kernels
from tests.decoding.test_plan import filled_cache, flash_by_hand, spans_of

CPU, HEADS = torch.device("cpu"), Heads(4, 2, 8)
PROMPTS = [[5, 9, 1, 4, 4, 8, 2], [7], [1, 2, 3, 4], [6] * 13]


@pytest.fixture(autouse=True)
def undecided():
    kernel_module._chosen.cache_clear()
    yield
    kernel_module._chosen.cache_clear()


@pytest.fixture
def card(monkeypatch):
    """Makes the CPU a CUDA card of some compute capability, as far as the choice can tell."""

    def build(major: int = 9, minor: int = 0) -> None:
        monkeypatch.setattr(kernel_module, "capability", lambda device: (major, minor))

    return build


@pytest.fixture
def flash_attn(monkeypatch, tmp_path):
    """Installs a `flash_attn` package with this source; `flash_by_hand` and `calls` are there for it."""
    calls: list[Any] = []
    sys.modules.pop("flash_attn", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.flash_by_hand", flash_by_hand, raising=False)
    monkeypatch.setattr("builtins.calls", calls, raising=False)

    def install(source: str) -> list[Any]:
        (tmp_path / "flash_attn.py").write_text(source)
        return calls

    yield install
    sys.modules.pop("flash_attn", None)


WORKING = """
def flash_attn_with_kvcache(query, keys, values, **layout):
    calls.append(layout)
    return flash_by_hand(query.float(), keys.float(), values.float(), **layout).to(query.dtype)
"""


def messages(caplog) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if "kernel" in record.name]


def test_a_flash_attn_that_works_decodes_what_torch_decodes(card, flash_attn, build_tiny_model, caplog) -> None:
    caplog.set_level(logging.INFO)
    model = build_tiny_model().bfloat16()
    config = DecodingConfig(47, 4, 2, max_new_tokens=15, stop_ids=(3,))
    expected = decode(model, PROMPTS, config, max_active=3)
    kernel_module._chosen.cache_clear()
    card()
    calls = flash_attn(WORKING)
    assert [done.num_steps for done in decode(model, PROMPTS, config, max_active=3)] == [
        done.num_steps for done in expected
    ]
    assert len(calls) > 10
    assert messages(caplog) == [
        (logging.INFO, "decoding on cpu in bfloat16 with torch's scaled_dot_product_attention"),
        (logging.INFO, "decoding on cpu in bfloat16 with flash-attn"),
    ]


def test_the_choice_is_made_once_per_process(card, flash_attn, build_tiny_model, caplog) -> None:
    caplog.set_level(logging.INFO)
    card()
    calls = flash_attn(WORKING)
    model = build_tiny_model().bfloat16()
    assert choose_kernel(model) is choose_kernel(model)
    assert [layout.keys() & {"cache_batch_idx", "block_table"} for layout in calls] == [
        {"cache_batch_idx"},
        {"block_table"},
    ]
    assert len(messages(caplog)) == 1


BROKEN = {
    "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c10\\nmore')": (
        "flash-attn cannot be loaded: flash_attn_2_cuda.so: undefined symbol: _ZN3c10"
    ),
    "raise OSError('libcudart.so.12: cannot open shared object file')": (
        "flash-attn cannot be loaded: libcudart.so.12: cannot open shared object file"
    ),
    "import flash_attn_2_cuda_that_is_not_there": (
        "flash-attn cannot be loaded: No module named 'flash_attn_2_cuda_that_is_not_there'"
    ),
    "flash_attn_func = None": (
        "flash-attn cannot be loaded: module 'flash_attn' has no attribute 'flash_attn_with_kvcache'"
    ),
    "def flash_attn_with_kvcache(*given, **layout): raise RuntimeError('no kernel image is available\\nmore')": (
        "flash-attn does not run here: no kernel image is available"
    ),
    "def flash_attn_with_kvcache(query, keys, values, causal): pass": (
        "flash-attn does not run here: flash_attn_with_kvcache() got an unexpected keyword argument 'cache_seqlens'"
    ),
    "def flash_attn_with_kvcache(query, *given, **layout): return query": (
        "flash-attn computes something else here, off by"
    ),
    "def flash_attn_with_kvcache(query, *given, **layout): return query * float('nan')": (
        "flash-attn computes something else here, off by nan%"
    ),
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_flash_attn_that_does_not_work_is_a_logged_fallback(
    card, flash_attn, build_tiny_model, caplog, source: str
) -> None:
    card()
    flash_attn(source)
    model = build_tiny_model().bfloat16()
    config = DecodingConfig(47, 4, 2, max_new_tokens=5)
    assert all(done.error is None for done in decode(model, PROMPTS, config))
    ((level, line),) = messages(caplog)
    assert level == logging.WARNING
    assert line.startswith(f"decoding on cpu in bfloat16 with torch's scaled_dot_product_attention ({BROKEN[source]}")


@pytest.mark.parametrize(
    ("level", "dtype", "why"),
    [
        ((9, 0), torch.bfloat16, "flash-attn is not installed"),
        ((9, 0), torch.float32, "flash-attn computes in bfloat16 and float16 only"),
        ((7, 5), torch.float16, "flash-attn needs compute capability 8.0, the card has 7.5"),
        (
            (7, 5),
            torch.bfloat16,
            "flash-attn needs compute capability 8.0, the card has 7.5; bfloat16 is slow there, rollout.dtype=float16 "
            "or float32 may be faster",
        ),
    ],
)
def test_what_no_flash_attn_would_help_is_told_and_no_warning(card, level, dtype, why: str) -> None:
    card(*level)
    kernel = find_kernel(CPU, dtype, HEADS)
    assert (kernel.plan, kernel.why, kernel.is_fallback) == (SdpaPlan, why, False)


WITHOUT_PAGES = """
def flash_attn_with_kvcache(query, keys, values, cache_seqlens, softmax_scale, causal, cache_batch_idx):
    return flash_by_hand(
        query.float(), keys.float(), values.float(), cache_seqlens, softmax_scale, causal, cache_batch_idx
    ).to(query.dtype)
"""


def test_a_flash_attn_that_reads_no_pages_decodes_without_them(card, flash_attn) -> None:
    card()
    flash_attn(WITHOUT_PAGES)
    kernel = find_kernel(CPU, torch.bfloat16, HEADS)
    assert (kernel.name, kernel.is_paged, kernel.is_fallback) == ("flash-attn", False, False)
    assert kernel.why.startswith("without pages: flash-attn does not run here: flash_attn_with_kvcache() got an unexp")
    assert choose_paging(kernel, None) is None


def test_pages_are_used_where_attention_reads_them_or_where_they_are_asked_for(card, flash_attn) -> None:
    card()
    flash_attn(WORKING)
    flash, torchs = find_kernel(CPU, torch.bfloat16, HEADS), find_kernel(CPU, torch.float32, HEADS)
    chosen = [[choose_paging(kernel, wanted) for wanted in (None, True, False)] for kernel in (flash, torchs)]
    assert chosen == [[Paging(256), Paging(256), None], [None, Paging(256, is_gathered=True), None]]


def test_a_card_without_flash_attn_attends_once_for_all(card) -> None:
    card()
    assert find_kernel(torch.device("cuda"), torch.float32, HEADS).plan is WidePlan
    assert find_kernel(CPU, torch.float32, HEADS).plan is SdpaPlan


def test_an_old_card_asks_no_flash_attn(card, flash_attn) -> None:
    card(7, 0)
    calls = flash_attn(WORKING)
    assert find_kernel(CPU, torch.float16, HEADS).plan is SdpaPlan
    assert not calls


def test_a_cpu_uses_torch_and_has_no_reason_to_tell(flash_attn) -> None:
    calls = flash_attn(WORKING)
    kernel = find_kernel(CPU, torch.bfloat16, HEADS)
    assert (kernel.plan, kernel.why) == (SdpaPlan, "")
    assert not calls


def test_flash_attn_lays_out_forwards_with_the_function_that_was_tried(card, flash_attn) -> None:
    card(8, 0)
    flash_attn(WORKING)
    kernel = find_kernel(CPU, torch.float16, HEADS)
    plan = kernel.plan(spans_of((0, 0, 1)), filled_cache(1))
    assert isinstance(plan, FlashPlan)
    assert plan.flash is sys.modules["flash_attn"].flash_attn_with_kvcache


# torch's kernels


def enabled() -> dict[str, bool]:
    names = ("flash", "mem_efficient", "math", "cudnn")
    return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in names}


def test_on_cuda_masks_are_left_to_the_efficient_kernel_and_settings_are_put_back() -> None:
    before = enabled()
    with masked_kernels("cuda"):
        assert enabled() == {"flash": False, "mem_efficient": True, "math": True, "cudnn": False}
    assert enabled() == before
    with masked_kernels("cpu"):
        assert enabled() == before


def test_every_forward_runs_within_the_kernels_settings(tiny_model, monkeypatch) -> None:
    seen = []
    forward = tiny_model.forward
    monkeypatch.setattr(tiny_model, "forward", lambda *ids, **rest: seen.append(enabled()) or forward(*ids, **rest))
    kernel = Kernel("torch", SdpaPlan, lambda: masked_kernels("cuda"))
    monkeypatch.setattr("t3d.decoding.engine.choose_kernel", lambda model: kernel)
    decode(tiny_model, PROMPTS, DecodingConfig(47, 4, 2, max_new_tokens=5))
    assert seen
    assert not any(flags["cudnn"] or flags["flash"] for flags in seen)
    assert enabled()["flash"], "and is put back"


def test_dense_masks_are_left_to_it_too(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("t3d.sdar.backend.masked_kernels", lambda kind: asked.append(kind) or masked_kernels(kind))
    states = torch.ones(1, 2, 3, 8)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    shown: Tensor = masked_attention(states, states, states, mask, 0.3)
    assert shown.shape == states.shape
    masked_attention(states, states, states, None, 0.3)
    assert asked == ["cpu"], "without a mask every kernel may be taken"
