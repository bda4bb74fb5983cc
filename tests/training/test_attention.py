"""Packed attention: whatever a plan leaves out or rounds up, every query gets what a dense mask would give it."""

import dataclasses
import random
import subprocess
import sys

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from t3d.sdar.attention import TrainingTokens, training_mask
from t3d.sdar.backend import masked_attention
from t3d.training import attention, packing
from t3d.training.attention import FlexPlan, TiledPlan, _mask_mod
from t3d.training.packing import Batch, collate
from t3d.training.states import State, StateSettings, TrainingSample, draw_state, sample_stream

MASK, PAD = 47, 46
CPU = torch.device("cpu")


def draw_states(lengths: list[tuple[int, int]], sizes: tuple[int, ...] = (4,), alignment: str = "absolute") -> list:
    settings = StateSettings("trace", sizes, MASK, PAD, vocab_size=48, alignment=alignment)
    states = []
    for index, (prompt, response) in enumerate(lengths):
        chooser = random.Random(index)
        ids = [chooser.randrange(46) for _ in range(prompt + response)]
        sample = TrainingSample(ids[:prompt], ids[prompt:], list(range(1, response + 1)), ended=True)
        states.append(draw_state(sample, settings, sample_stream(0, 0, index)))
    return states


def layout(states: list[State]) -> tuple[TrainingTokens, list[int]]:
    tokens, _ = packing._places(states, 0)
    return tokens, [len(state.clean_ids) + len(state.targets) for state in states]


def random_inputs(num_tokens: int, heads: int = 4, kv_heads: int = 2, dim: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, num, num_tokens, dim, generator=generator).requires_grad_()
        for num in (heads, kv_heads, kv_heads)
    ]


MIXES = {
    "short documents": [(3, 5), (1, 1), (9, 2), (0, 4), (30, 60)],
    "one long": [(40, 500)],
    "longer than its prompt's block": [(2, 3)],
    "long prompt": [(400, 9)],
    "tile edges inside blocks": [(131, 259)],
    "short and long": [(5, 6), (100, 200), (3, 4), (7, 90), (20, 300), (1, 2)],
}


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("alignment", ["absolute", "response"])
@pytest.mark.parametrize("mix", MIXES)
def test_tiles_give_what_a_dense_mask_gives_forwards_and_backwards(mix: str, alignment: str, size: int) -> None:
    tokens, lengths = layout(draw_states(MIXES[mix], (size,), alignment))
    plan = TiledPlan(tokens, lengths, CPU)
    ours, theirs = random_inputs(sum(lengths)), random_inputs(sum(lengths))
    seen = plan.attend(0, *ours, scale=0.3)
    expected = masked_attention(*theirs, training_mask(tokens, tokens)[None, None], 0.3).transpose(1, 2)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1))
    (seen * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_tiles_leave_out_most_of_what_the_mask_hides() -> None:
    tokens, lengths = layout(draw_states([(128, 384)], (8,)))
    plan = TiledPlan(tokens, lengths, CPU)
    computed = sum(tile.mask.numel() for group in plan.groups for tile in group.tiles)
    assert all(tile.last - tile.first <= attention.TILE for group in plan.groups for tile in group.tiles)
    assert computed < 0.45 * lengths[0] ** 2
    assert training_mask(tokens, tokens).sum() < computed


def test_short_documents_share_tiles_and_long_ones_do_not() -> None:
    tokens, lengths = layout(draw_states([(30, 30)] * 5 + [(100, 200), (30, 30)]))
    plan = TiledPlan(tokens, lengths, CPU)
    assert [len(group.tiles) == 1 for group in plan.groups] == [True, True, True, False, True]
    assert sum(group.length for group in plan.groups) == sum(lengths)


@pytest.mark.parametrize("alignment", ["absolute", "response"])
@pytest.mark.parametrize("mix", MIXES)
def test_the_function_given_to_flex_attention_is_the_mask(mix: str, alignment: str) -> None:
    tokens, lengths = layout(draw_states(MIXES[mix], alignment=alignment))
    size = sum(lengths)
    mask = create_mask(_mask_mod(tokens), None, None, size, size, "cpu")
    assert torch.equal(mask[0, 0], training_mask(tokens, tokens))


FLEX = """
import torch
from t3d.sdar.attention import TrainingTokens
from t3d.training.attention import FlexPlan, TiledPlan

block = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2] + [3, 3, 4, 4, 4, 4] + [0] * 114)
noisy = torch.tensor([False] * 4 + [True] * 4 + [False] * 4 + [True] * 2 + [False] * 114)
document = torch.tensor([0] * 8 + [1] * 6 + [2] * 114)
tokens, lengths, cpu = TrainingTokens(block, noisy, document), [8, 6, 114], torch.device("cpu")
for heads in (2, 4):
    query, key, value = torch.randn(1, heads, 128, 8), torch.randn(1, 2, 128, 8), torch.randn(1, 2, 128, 8)
    tiled, flex = (plan(tokens, lengths, cpu).attend(0, query, key, value, 0.3) for plan in (TiledPlan, FlexPlan))
    torch.testing.assert_close(flex, tiled, rtol=1e-4, atol=1e-5)
half = FlexPlan(tokens, lengths, cpu).attend(0, query, key, value.bfloat16(), 0.3)  # as under autocast
torch.testing.assert_close(half.float(), tiled, rtol=0.05, atol=0.05)
"""


@pytest.mark.slow
def test_flex_attention_gives_what_tiles_give() -> None:
    # In a process of its own, as it cannot trace functions whose annotations are checked.
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", FLEX], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_only_cuda_has_a_plan_of_its_own() -> None:
    assert attention.plan_of(torch.device("cuda", 1)) is FlexPlan
    assert attention.plan_of(CPU) is attention.plan_of(torch.device("mps")) is TiledPlan


class RoundedPlan(TiledPlan):
    multiple = 128


@torch.no_grad()
def test_padding_to_a_round_number_changes_no_row(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    states = draw_states([(5, 6), (3, 4)])

    def rows(batch: Batch) -> torch.Tensor:
        inputs = {"attention_mask": batch.plan, "position_ids": batch.position_ids, "logit_rows": batch.logit_rows}
        return tiny_model(batch.input_ids, **inputs).logits

    plain = collate(states, PAD, CPU)
    monkeypatch.setitem(attention.PLANS, "cpu", RoundedPlan)
    padded = collate(states, PAD, CPU)
    assert padded.input_ids.shape == (1, 128)
    assert plain.input_ids.shape[1] < 128
    assert padded.num_tokens == plain.num_tokens
    for name in (field.name for field in dataclasses.fields(Batch) if field.name not in PADDED):
        assert torch.equal(torch.as_tensor(getattr(padded, name)), torch.as_tensor(getattr(plain, name))), name
    torch.testing.assert_close(rows(padded), rows(plain), rtol=1e-4, atol=1e-5)


PADDED = ("input_ids", "position_ids", "document", "plan")


def test_nearly_every_computed_token_of_a_math_like_mix_is_real() -> None:
    chooser = random.Random(0)
    mix = [(chooser.randint(60, 250), min(1024, int(chooser.lognormvariate(5.7, 0.6)))) for _ in range(64)]
    states = draw_states(mix, (8,))
    batch = collate(states, PAD, CPU)
    share = batch.num_tokens / batch.input_ids.numel()
    assert share >= 0.95
    assert -(-batch.input_ids.numel() // 128) * 128 / batch.input_ids.numel() < 1.01, "also where flex pads the row"
