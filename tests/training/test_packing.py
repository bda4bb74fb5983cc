import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.sdar import SDARForCausalLM
from t3d.training.packing import Batch, collate
from t3d.training.states import State, StateSettings, TrainingSample, draw_state, sample_stream

MASK, PAD = 47, 46
CPU = torch.device("cpu")


def draw(sample: TrainingSample, size: int = 4, index: int = 0, **changes: object) -> State:
    fields = {"strategy": "trace", "block_sizes": (size,), "mask_id": MASK, "pad_id": PAD, "vocab_size": 48}
    return draw_state(sample, StateSettings(**(fields | changes)), sample_stream(0, 0, index))


def forward(model: SDARForCausalLM, batch: Batch) -> torch.Tensor:
    """Logits at every place of the row [tokens, vocab]."""
    return model(batch.input_ids, attention_mask=batch.plan, position_ids=batch.position_ids).logits[0]


def test_the_layout_written_out() -> None:
    # Block size 2: prompt 1 2 3, response 4 5, a pad; 4 and the pad masked. Then prompt 6, response 7.
    first = draw(TrainingSample([1, 2, 3], [4, 5], [1, 2], ended=True), 2, mask_ratios=(0.5,), post_num=1)
    second = draw(TrainingSample([6], [7], [1], ended=False), 2)
    assert first.masked.tolist() == [False, True, False, True]
    batch = collate([first, second], PAD, CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 3, MASK, 5, MASK, 6, MASK]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5, 0, 1]]
    assert batch.logit_rows.tolist() == [5, 7, 9]
    assert batch.targets.tolist() == [4, PAD, 7]
    assert batch.masked.tolist() == [True] * 3
    assert batch.coarse_step.tolist() == [1, 2, 1]
    assert batch.sample.tolist() == [0, 0, 1]
    assert batch.block.tolist() == [1, 2, 3]
    assert batch.num_samples == 2
    assert batch.num_tokens == 9, "the pad that fills the last block is no real token"
    (group,) = batch.plan.groups
    (tile,) = group.tiles
    assert (tile.first, tile.last, tile.keys, group.pieces) == (0, 10, [0], [10])
    assert tile.mask[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
    ]


@torch.no_grad()
def test_samples_of_several_block_sizes_share_a_row_as_each_would_have_it_alone(build_tiny_model) -> None:
    """As `training.block_size_choices` draws them: layout and logits are those of that one block size."""
    model = build_tiny_model().double()
    sample, sizes = TrainingSample([1, 2, 3], list(range(10, 21)), list(range(1, 12)), ended=True), (1, 2, 4, 8)
    states = [draw(sample, index=index, block_sizes=sizes) for index in range(12)]
    assert {state.block_size for state in states} == set(sizes)
    # Of one size each, and told apart by nothing but the size: the same visit draws the same numbers.
    for index, state in enumerate(states):
        alone = draw(sample, index=index, block_sizes=(state.block_size,) * len(sizes))
        assert all(np.array_equal(value, vars(alone)[name]) for name, value in vars(state).items())
    together = forward(model, collate(states, PAD, CPU))
    apart = torch.cat([forward(model, collate([state], PAD, CPU)) for state in states])
    torch.testing.assert_close(together, apart)


def test_visible_rows_add_what_counts_and_nothing_else() -> None:
    state = draw(TrainingSample([1, 2, 3], [4, 5], [1, 2], ended=True), 2, mask_ratios=(0.5,))
    batch = collate([state], PAD, CPU, visible_rows=True)
    assert batch.targets.tolist() == [4, 5], "neither the prompt's tail nor pads"
    assert batch.masked.tolist() == [True, False]
    assert batch.coarse_step.tolist() == [1, 1]


def test_rows_of_the_batch_belong_to_their_logits(tiny_model) -> None:
    chooser = random.Random(2)
    states = [
        draw(
            TrainingSample([1] * chooser.randint(0, 6), list(range(length)), list(range(1, length + 1)), ended=True),
            index=index,
            strategy="random",
            mask_ratios=(0.5,),
            post_num=1,
        )
        for index, length in enumerate((5, 1, 9))
    ]
    batch = collate(states, PAD, CPU)
    rows = batch.logit_rows.tolist()
    num_rows = len(rows)
    starts = np.cumsum([0, *(len(state.clean_ids) + len(state.targets) for state in states)])
    assert {len(getattr(batch, name)) for name in ("targets", "masked", "coarse_step", "sample", "block")} == {num_rows}
    pairs = []
    for row, place in enumerate(rows):
        sample = int(np.searchsorted(starts, place, side="right")) - 1
        state = states[sample]
        noisy = place - starts[sample] - len(state.clean_ids)
        assert noisy >= 0
        assert batch.sample[row] == sample
        assert batch.targets[row] == state.targets[noisy]
        assert batch.uniforms[row] == state.uniforms[noisy]
        assert batch.position_ids[0, place] == state.noisy_start + noisy
        pairs.append((sample, int(batch.position_ids[0, place]) // 4))
    numbers = batch.block.tolist()
    assert len(set(zip(pairs, numbers, strict=True))) == len(set(pairs)) == len(set(numbers)), "one number per block"


@torch.no_grad()
def test_samples_do_not_see_each_other(tiny_model) -> None:
    samples = [
        TrainingSample([1, 2, 3], [4, 5, 6, 7, 8], [1, 2, 3, 4, 5], ended=True),
        TrainingSample([9], [10, 11], [1, 2], ended=True),
    ]
    states = [draw(sample, index=index) for index, sample in enumerate(samples)]
    alone = [forward(tiny_model, collate([state], PAD, CPU)) for state in states]
    torch.testing.assert_close(forward(tiny_model, collate(states, PAD, CPU)), torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("post_num", [0, 2])
def test_a_batch_without_any_counted_position_still_collates(tiny_model, post_num: int) -> None:
    state = draw(TrainingSample([1, 2, 3, 4], [9], [1], ended=False), mask_ratios=(0.25,), post_num=post_num)
    batch = collate([state, state], PAD, CPU)
    assert len(batch.targets) == len(batch.block) == 0
    assert batch.num_samples == 2
    logits = tiny_model(
        batch.input_ids,
        attention_mask=batch.plan,
        position_ids=batch.position_ids,
        logit_rows=batch.logit_rows,
    ).logits
    assert logits.shape == (0, 48)


# The layout shows the network exactly what the decoder shows it


@torch.no_grad()
def check_layout(model: SDARForCausalLM, sample: TrainingSample, state: State, origin: int, size: int) -> int:
    """Compares each noisy block with a plain forward over prompt, clean earlier blocks and that block."""
    batch = collate([state], PAD, CPU)
    logits = forward(model, batch)[len(state.clean_ids) :]
    full = [*sample.prompt_ids, *sample.response_ids]
    full += [PAD] * (state.noisy_start + len(state.targets) - len(full))
    for left in range(state.noisy_start, len(full), size):
        noisy = state.inputs[left - state.noisy_start : left - state.noisy_start + size].tolist()
        tokens = torch.tensor([full[:left] + noisy])
        blocks = (torch.arange(left + size) - origin).div(size, rounding_mode="floor")
        mask = (blocks[None, :] <= blocks[:, None])[None, None]
        decoded = model(tokens, attention_mask=mask).logits[0, left:]
        trained = logits[left - state.noisy_start : left - state.noisy_start + size]
        torch.testing.assert_close(trained, decoded, rtol=1e-4, atol=1e-4)
    return len(state.targets) // size


@pytest.mark.parametrize("alignment", ["absolute", "response"])
@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("prompt_length", [1, 3, 4, 9])
def test_noisy_blocks_see_the_prompt_clean_earlier_blocks_and_themselves(
    tiny_model, prompt_length: int, size: int, alignment: str
) -> None:
    sample = TrainingSample(list(range(prompt_length)), list(range(20, 31)), list(range(1, 12)), ended=True)
    state = draw(sample, size, strategy="random", mask_ratios=(0.5,), random_ratio=0.3, alignment=alignment)
    origin = 0 if alignment == "absolute" else prompt_length
    assert check_layout(tiny_model, sample, state, origin, size) >= 2


def state_before(sample: TrainingSample, step: int, size: int, left: int) -> State:
    """The block at `left` just before a denoising step: what that step or a later one reveals is masked.

    Every other block is wholly masked, which must not matter.
    """
    state = draw(sample, size)
    steps = np.array([0] * len(sample.prompt_ids) + sample.step_map)[state.noisy_start :]
    places = np.arange(len(steps)) + state.noisy_start
    inside = (left <= places) & (places < left + size)
    masked = np.where(inside, steps >= step, steps > 0)
    return dataclasses.replace(state, masked=masked, inputs=np.where(masked, MASK, state.targets))


class Kept(torch.nn.Module):
    """An output head whose logits are kept as they were: the decoder writes to what it is given."""

    def __init__(self, lm_head: torch.nn.Module, logits: list[torch.Tensor]) -> None:
        super().__init__()
        self.lm_head, self.logits = lm_head, logits

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.logits.append(self.lm_head(rows))
        return self.logits[-1].clone()


@torch.no_grad()
@pytest.mark.parametrize(("rollout_size", "size"), [(4, 4), (8, 8), (4, 8)])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prompt_length", [1, 3, 4, 10])
def test_the_layout_gives_the_decoders_logits_in_every_state_of_a_trajectory(
    tiny_model,
    monkeypatch: pytest.MonkeyPatch,
    prompt_length: int,
    steps: int,
    rollout_size: int,
    size: int,
) -> None:
    recorded = []
    true_forward = tiny_model.forward

    def recording_forward(input_ids: torch.Tensor, head: Callable[..., object], **inputs: Any) -> object:
        logits: list[torch.Tensor] = []
        out = true_forward(input_ids, head=lambda lm_head, rows: head(Kept(lm_head, logits), rows), **inputs)
        if logits:
            wanted = input_ids[0] == MASK
            recorded.append((input_ids[0], inputs["position_ids"][0], wanted, torch.cat(logits)))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "forward", recording_forward)
        config = DecodingConfig(MASK, rollout_size, steps, max_new_tokens=19, temperature=0.8)
        (done,) = decode(tiny_model, [list(range(5, 5 + prompt_length))], config)
    assert len(recorded) == done.num_steps
    # Whole blocks only: of a block cut at the limit not every state is on record.
    num_kept = (prompt_length + 19) // size * size - prompt_length
    sample = TrainingSample(done.prompt_ids, done.response_ids[:num_kept], done.step_map[:num_kept], ended=False)
    num_compared = 0
    for step, (ids, positions, wanted, decoded) in enumerate(recorded, start=1):
        left = int(positions[-1]) // size * size
        if left + size > prompt_length + num_kept:
            continue
        state = state_before(sample, step, size, left)
        trained = forward(tiny_model, collate([state], PAD, CPU))[len(state.clean_ids) :]
        block = slice(left - state.noisy_start, left - state.noisy_start + size)
        if rollout_size == size:
            # The very logits of the engine's cached forward, in the very state that it was in.
            assert state.inputs[block].tolist() == ids[-size:].tolist()
            places = positions[wanted] - state.noisy_start
            torch.testing.assert_close(trained[places], decoded, rtol=1e-4, atol=1e-4)
        tokens = [*sample.prompt_ids, *sample.response_ids][:left] + state.inputs[block].tolist()
        blocks = torch.arange(len(tokens)) // size
        mask = (blocks[None, :] <= blocks[:, None])[None, None]
        plain = tiny_model(torch.tensor([tokens]), attention_mask=mask).logits[0, left:]
        torch.testing.assert_close(trained[block], plain, rtol=1e-4, atol=1e-4)
        num_compared += 1
    assert num_compared >= 2
