import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t3d.decoding import DecodingConfig, decode
from t3d.decoding import engine as engine_module
from t3d.decoding.cache import SlotCache
from t3d.decoding.kernel import Kernel
from t3d.decoding.plan import SLOT_TILE, FlashPlan, SdpaPlan, Spans, WidePlan
from t3d.parcel import Parcel
from t3d.sdar.backend import AttentionPlan
from tests.conftest import make_tiny_config

LENGTH, SIZE, HEADS, KEY_HEADS, DIM = 64, 4, 4, 2, 8


def flash_by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    cache_batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """What flash_attn_with_kvcache documents: row i sees the first cache_seqlens[i] keys of slot cache_batch_idx[i],
    or of the pages block_table[i], one after the other."""
    assert not causal
    out, places = torch.empty_like(query), cache_batch_idx if block_table is None else block_table
    assert (cache_batch_idx is None) != (block_table is None)
    assert cache_seqlens.dtype == places.dtype == torch.int32
    for row in range(len(query)):
        seen, place = int(cache_seqlens[row]), places[row].tolist()
        for head in range(query.shape[2]):
            key_head = head // (query.shape[2] // keys.shape[2])
            key, value = (buffer[place].flatten(0, -3)[:seen, key_head] for buffer in (keys, values))
            out[row, :, head] = (query[row, :, head] @ key.T * softmax_scale).softmax(-1) @ value
    return out


def spans_of(*runs: tuple[int, int, int]) -> Spans:
    return Spans(*(np.array(column) for column in zip(*runs, strict=True)), SIZE)


def filled_cache(num_slots: int) -> SlotCache:
    config = make_tiny_config(num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=DIM)
    cache = SlotCache(config, num_slots, LENGTH, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for buffer in (cache.keys, cache.values):
        buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
    return cache


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 8, 1), (1, 20, 1), (2, 4, 1)],  # everybody denoises
        [(0, 8, 2), (1, 20, 2)],  # everybody commits, too
        [(0, 8, 1), (1, 20, 2), (3, 0, 1), (4, 0, 7), (5, 12, 5), (6, 8, 2)],  # all sorts, and a slot left out
        [(slot, 4 * (slot % 9), 1 + slot % 2) for slot in range(SLOT_TILE + 3)],  # more than a tile
    ],
)
def test_both_plans_show_each_block_its_slots_keys_up_to_its_own_end(runs: list[tuple[int, int, int]]) -> None:
    spans, num_slots = spans_of(*runs), max(slot for slot, _, _ in runs) + 1
    generator = torch.Generator().manual_seed(1)
    num_tokens = int(spans.edges[-1])
    query, key, value = (
        torch.randn(1, heads, num_tokens, DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    results = []
    for build in (SdpaPlan, WidePlan, partial(FlashPlan, flash=flash_by_hand)):
        cache = filled_cache(num_slots)
        results.append(build(spans, cache).attend(1, query, key, value, 0.3))
        token = 0
        for slot, start, count in runs:
            rows = slice(token, token + count * SIZE)
            assert torch.equal(cache.keys[1, slot, start : start + count * SIZE], key[0, :, rows].transpose(0, 1))
            assert torch.equal(cache.values[1, slot, start : start + count * SIZE], value[0, :, rows].transpose(0, 1))
            token = rows.stop
        assert torch.equal(cache.keys[0], filled_cache(num_slots).keys[0]), "other layers are not touched"
    assert results[0].shape == (1, num_tokens, HEADS, DIM)
    assert torch.allclose(results[0], results[2], atol=1e-12)
    assert torch.allclose(results[1], results[2], atol=1e-12)


def test_what_a_plan_sends_is_no_read_only_view() -> None:
    """Torch warns of those, once in a process.  Blocks of one position under one head need no copy to be broadcast."""

    class Writable(Parcel):
        def add(self, array: np.ndarray) -> int:
            assert array.flags.writeable
            return super().add(array)

    config = make_tiny_config(num_attention_heads=KEY_HEADS, num_key_value_heads=KEY_HEADS, head_dim=DIM)
    cache = SlotCache(config, 1, LENGTH, torch.float64, torch.device("cpu"))
    chunk = Spans(np.array([0]), np.array([0]), np.array([3]), 1)
    assert SdpaPlan(chunk, cache, Writable(torch.device("cpu"))).tiles


def test_a_wide_plan_attends_once_for_all_that_run_and_once_for_each_chunk() -> None:
    runs = [(0, 8, 1), (1, 20, 2), (3, 0, 9), (4, 0, 1), (30, 40, 2), (31, 0, 3)]
    tiles = WidePlan(spans_of(*runs), filled_cache(32)).tiles
    assert [tile.slots for tile in tiles] == [slice(0, 31), slice(3, 4), slice(31, 32)]
    assert tiles[0].grid is not None
    assert len(tiles[0].grid) == 31 * 2 * SIZE
    alone = WidePlan(spans_of((0, 8, 1), (1, 20, 1)), filled_cache(2)).tiles
    assert [(tile.slots, tile.grid) for tile in alone] == [(slice(0, 2), None)], "nothing is gathered in vain"


def test_flash_attention_gets_the_heads_of_a_key_as_more_queries_of_it() -> None:
    shapes = []

    def flash(query: Tensor, *given: Tensor, **layout: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return flash_by_hand(query, *given, **layout)

    states = [torch.ones(1, heads, 3 * SIZE, DIM, dtype=torch.float64) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    FlashPlan(spans_of((0, 8, 1), (1, 20, 2)), filled_cache(2), flash=flash).attend(0, *states, 0.3)
    assert shapes == [(3, SIZE * HEADS // KEY_HEADS, KEY_HEADS, DIM)]


@pytest.mark.parametrize("kind", [WidePlan, partial(FlashPlan, flash=flash_by_hand)])
def test_the_engine_decodes_the_same_over_every_plan(build_tiny_model, monkeypatch, kind) -> None:
    model = build_tiny_model().double()
    config = DecodingConfig(47, 4, 2, max_new_tokens=15, stop_ids=(3,))
    prompts = [[5, 9, 1, 4, 4, 8, 2], [7], [1, 2, 3, 4], [6] * 13]
    expected = decode(model, prompts, config, max_active=3)
    calls: list[Any] = []

    def plan(spans: Spans, cache: SlotCache, parcel: Parcel) -> AttentionPlan:
        calls.append(spans)
        return kind(spans, cache, parcel)

    monkeypatch.setattr(engine_module, "choose_kernel", lambda model: Kernel("by hand", plan))
    assert decode(model, prompts, config, max_active=3) == expected
    assert calls


def test_moved_keys_leave_nothing_behind() -> None:
    cache = filled_cache(3)
    cache.keys[:, 2, 3] = math.nan
    before = cache.keys[:, 2].clone()
    cache.move(2, 0, 20)
    assert torch.equal(cache.keys[:, 0, :20].nan_to_num(), before[:, :20].nan_to_num())
    assert torch.equal(cache.keys[:, 2, :20], torch.zeros_like(before[:, :20]))
    cache.clear(0)
    assert cache.keys[:, 0].abs().sum() == cache.values[:, 0].abs().sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_flash_attention_equals_torchs() -> None:
    flash = pytest.importorskip("flash_attn").flash_attn_with_kvcache
    spans = spans_of((0, 8, 1), (1, 20, 2), (2, 0, 7))
    results = []
    for plan in (SdpaPlan, partial(FlashPlan, flash=flash)):
        cache = filled_cache(3)
        cache.keys, cache.values = (buffer.cuda().bfloat16() for buffer in (cache.keys, cache.values))
        states = [torch.ones(1, heads, int(spans.edges[-1]), DIM).cuda().bfloat16() for heads in (HEADS, 2, 2)]
        results.append(plan(spans, cache).attend(0, *states, 0.3))
    assert torch.allclose(*results, atol=2e-2)
