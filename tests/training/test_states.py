import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from t3d.decoding import DecodingConfig, decode
from t3d.training.states import State, StateSettings, TrainingSample, draw_state, sample_stream

MASK, PAD = 47, 46
SETTINGS = StateSettings("trace", (4,), MASK, PAD, vocab_size=48, path_k_steps=2)
# Block size 4: the prompt's last two tokens share a block with two response tokens; two pads end the last.
SAMPLE = TrainingSample([1, 2, 3, 4, 5, 6], [10, 11, 12, 13, 14, 15, 16, 17], [2, 1, 5, 4, 3, 6, 8, 7], ended=True)


def draw(sample: TrainingSample = SAMPLE, seed: int = 0, **changes: object) -> State:
    return draw_state(sample, dataclasses.replace(SETTINGS, **changes), sample_stream(seed, 0, 0))


def masked(ratio: float, sample: TrainingSample = SAMPLE, **changes: object) -> list[int]:
    return draw(sample, mask_ratios=(ratio,), **changes).masked.astype(int).tolist()


def test_the_response_is_seen_in_the_decoders_blocks() -> None:
    state = draw()
    assert (state.noisy_start, state.origin, state.block_size) == (4, 0, 4)
    assert state.targets.tolist() == [5, 6, 10, 11, 12, 13, 14, 15, 16, 17, PAD, PAD]
    assert state.clean_ids.tolist() == [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15]
    assert state.inputs.tolist() == [5, 6, *[MASK] * 10]


def test_a_response_that_fills_its_last_block_gets_no_pads() -> None:
    state = draw(TrainingSample([1, 2], [10, 11, 12, 13, 14, 15], [1, 2, 3, 4, 5, 6], ended=True), post_num=2)
    assert state.targets.tolist() == [1, 2, 10, 11, 12, 13, 14, 15]
    assert state.clean_ids.tolist() == [1, 2, 10, 11]
    assert state.scored.tolist() == [False, False, *[True] * 6]


def test_response_alignment_counts_blocks_from_the_response() -> None:
    state = draw(alignment="response", mask_ratios=(0.25,))
    assert (state.noisy_start, state.origin) == (6, 6)
    assert state.targets.tolist() == SAMPLE.response_ids
    assert state.clean_ids.tolist() == [*SAMPLE.prompt_ids, 10, 11, 12, 13]
    # Steps 2 1 5 4 | 3 6 8 7: the latest of each block.
    assert state.masked.astype(int).tolist() == [0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        # Blocks: tail tail 2 1 | 5 4 3 6 | 8 7 pad pad. Pads are revealed last, both at once.
        (1.0, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (0.75, [0, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1]),
        (0.5, [0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1]),
        (0.25, [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1]),
    ],
)
def test_trace_masks_the_latest_revealed_share_of_each_block(ratio: float, expected: list[int]) -> None:
    assert masked(ratio) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.75, [0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]), (0.25, [0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0])],
)
def test_trace_earliest_is_its_mirror(ratio: float, expected: list[int]) -> None:
    assert masked(ratio, strategy="trace_earliest") == expected


def test_tokens_of_one_step_are_masked_together() -> None:
    pairs = TrainingSample([1], [2] * 7, [1, 2, 1, 4, 4, 3, 3], ended=False)
    # Blocks: tail 1 2 1 | 4 4 3 3. A quarter is one token; the decoder never stands between two of one step.
    assert masked(0.25, pairs) == [0, 0, 1, 0, 1, 1, 0, 0]
    assert masked(0.75, pairs) == [0, 1, 1, 1, 1, 1, 1, 1]
    assert masked(0.25, pairs, strategy="trace_earliest") == [0, 1, 0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("rollout_steps", [1, 2, 4])
@pytest.mark.parametrize("size", [4, 8])
def test_trace_states_are_states_the_decoder_visits(tiny_model, rollout_steps: int, size: int) -> None:
    config = DecodingConfig(MASK, 4, rollout_steps, max_new_tokens=21, temperature=1.0)
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8, 9], [1, 2, 3]]
    for done in decode(tiny_model, prompts, config):
        sample = TrainingSample(done.prompt_ids, done.response_ids, done.step_map, ended=False)
        for ratio in (1.0, 0.75, 0.5, 0.25):
            state = draw(sample, mask_ratios=(ratio,), block_sizes=(size,))
            steps = [0] * len(done.prompt_ids) + done.step_map
            for start in range(0, len(state.targets), size):
                block = range(start, start + size)
                places = [place for place in block if state.noisy_start + place < len(steps)]
                hidden = {steps[state.noisy_start + place] for place in places if state.masked[place]}
                shown = {steps[state.noisy_start + place] for place in places if not state.masked[place]}
                assert max(shown, default=0) < min(hidden, default=math.inf)
                assert all(state.masked[place] for place in block if place not in places) or not hidden


def test_rollouts_of_smaller_blocks_give_states_of_larger_ones() -> None:
    # Two blocks of 4 in one of 8: half of the mask is exactly the second block.
    sample = TrainingSample([], [2] * 8, [4, 3, 2, 1, 5, 6, 8, 7], ended=False)
    assert masked(0.5, sample, block_sizes=(8,)) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert masked(0.25, sample, block_sizes=(8,)) == [0, 0, 0, 0, 0, 0, 1, 1]
    assert draw(sample, block_sizes=(8,), path_k_steps=4).coarse_step.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        # tail tail 2 1 | 5 4 3 6 | 8 7 pad pad: rank within the block, k tokens to a coarse step; pads tie.
        (1, [0, 0, 2, 1, 3, 2, 1, 4, 2, 1, 3, 3]),
        (2, [0, 0, 1, 1, 2, 1, 1, 2, 1, 1, 2, 2]),
        (4, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (3, [0, 0, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]),
    ],
)
def test_coarse_steps_rank_tokens_within_their_block(k: int, expected: list[int]) -> None:
    assert draw(path_k_steps=k).coarse_step.tolist() == expected


@pytest.mark.parametrize("strategy", ["trace", "trace_earliest", "random", "uniform", "all_mask"])
@pytest.mark.parametrize("prompt_length", range(9))
@pytest.mark.parametrize("alignment", ["absolute", "response"])
def test_prompt_tails_are_never_masked_nor_scored_and_every_block_masks(
    strategy: str, prompt_length: int, alignment: str
) -> None:
    sample = TrainingSample([5] * prompt_length, [9] * 11, list(range(1, 12)), ended=True)
    for seed in range(5):
        state = draw(sample, seed, strategy=strategy, alignment=alignment, mask_ratios=(1.0, 0.25), post_num=2)
        tail = prompt_length - state.noisy_start
        assert not state.masked[:tail].any()
        assert not state.scored[:tail].any()
        assert (state.inputs[:tail] == 5).all()
        assert state.scored[tail : tail + 11].all()
        assert state.masked.reshape(-1, 4).any(1).all()
        assert (state.inputs[state.masked] == MASK).all()
        assert (state.inputs[~state.masked] == state.targets[~state.masked]).all()
        if strategy == "all_mask":
            assert state.masked[tail:].all()


@pytest.mark.parametrize(
    ("ended", "post_num", "num_scored_pads"),
    [(True, 0, 0), (True, 1, 1), (True, 2, 2), (True, 9, 3), (False, 2, 0)],
)
def test_pads_count_after_a_stop_token_up_to_post_num(ended: bool, post_num: int, num_scored_pads: int) -> None:
    sample = TrainingSample([1] * 4, [9] * 5, [1, 2, 3, 4, 5], ended=ended)
    state = draw(sample, post_num=post_num)
    assert state.targets.tolist() == [9] * 5 + [PAD] * 3
    assert state.scored.astype(int).tolist() == [1] * (5 + num_scored_pads) + [0] * (3 - num_scored_pads)


# Chance

LONG = TrainingSample([1] * 4, [9] * 4000, list(range(1, 4001)), ended=False)


def chi_square(counts: list[float], expected: list[float]) -> float:
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


def test_ratios_are_drawn_by_their_power() -> None:
    ratios, exponent, draws = (1.0, 0.75, 0.5, 0.25), 2.0, 3000
    block = TrainingSample([], [2] * 4, [1, 2, 3, 4], ended=False)
    settings = dataclasses.replace(SETTINGS, mask_ratios=ratios, mask_ratio_exponent=exponent)
    counts = Counter(
        int(draw_state(block, settings, sample_stream(1, 0, index)).masked.sum()) for index in range(draws)
    )
    weights = [ratio**exponent for ratio in ratios]
    expected = [draws * weight / sum(weights) for weight in weights]
    assert chi_square([counts[size] for size in (4, 3, 2, 1)], expected) < 16.27, "p < 0.001, 3 degrees of freedom"


def test_one_ratio_is_drawn_per_sample_not_per_block() -> None:
    for seed in range(20):
        counts = draw(LONG, seed, mask_ratios=(1.0, 0.75, 0.5, 0.25)).masked.reshape(-1, 4).sum(1)
        assert len(set(counts.tolist())) == 1


def test_random_states_keep_the_ratio_and_forget_the_order() -> None:
    state = draw(LONG, strategy="random", mask_ratios=(0.25,))
    blocks = state.masked.reshape(-1, 4)
    assert (blocks.sum(1) == 1).all()
    assert chi_square(blocks.sum(0).tolist(), [250] * 4) < 16.27 * 4


def test_uniform_states_mask_every_count_of_a_block_equally_often() -> None:
    blocks = draw(LONG, strategy="uniform").masked.reshape(-1, 4)
    counts = np.bincount(blocks.sum(1), minlength=5).tolist()
    assert counts[0] == 0
    assert chi_square(counts[1:], [len(blocks) / 4] * 4) < 16.27
    share = blocks.mean(0)
    assert np.abs(share - 0.625).max() < 4 * math.sqrt(0.25 / len(blocks)), "positions are alike"


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("strategy", ["trace", "random", "uniform"])
def test_pads_that_are_not_learnt_are_masked_while_any_token_of_their_block_is(strategy: str, ended: bool) -> None:
    """They are behind x_0 (Eq. 3): shown, they would tell where the response ends."""
    sample, learnt, counts = TrainingSample([5] * 8, [9] * 3, [3, 1, 2], ended=ended), 2 * ended, []
    for seed in range(400):
        state = draw(sample, seed, strategy=strategy, block_sizes=(8,), mask_ratios=(0.2, 0.6, 1.0), post_num=2)
        assert state.scored.tolist() == [True] * (3 + learnt) + [False] * (5 - learnt)
        assert state.masked[3 + learnt :].all()
        counts.append(int(state.masked[: 3 + learnt].sum()))
    if strategy == "uniform":
        found = np.bincount(counts, minlength=4 + learnt)
        assert found[0] == 0
        assert chi_square(found[1:].tolist(), [400 / (3 + learnt)] * (3 + learnt)) < 18.47
    if strategy == "random":
        assert set(counts) == ({1, 3, 5} if ended else {1, 2, 3})


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_masked_positions_show_a_random_token_at_the_given_rate(rate: float) -> None:
    # The mask token is one of the vocabulary, so a replacement shows as such 47 times in 48.
    state = draw(LONG, random_ratio=rate, mask_ratios=(0.5,))
    replaced = state.inputs[state.masked] != MASK
    expected = rate * 47 / 48
    error = 4 * math.sqrt(expected * (1 - expected) / len(replaced))
    assert abs(replaced.mean() - expected) <= error
    assert (state.inputs[~state.masked] == 9).all(), "visible tokens are never replaced"
    assert state.masked.sum() == 2000, "a replaced token is still masked: it counts in the loss"
    assert state.scored[state.masked].all()


def test_random_tokens_are_uniform_over_the_vocabulary() -> None:
    shown = draw(LONG, random_ratio=1.0).inputs
    counts = np.bincount(shown, minlength=48).tolist()
    assert len(counts) == 48
    assert chi_square(counts, [4000 / 48] * 48) < 82.7, "p < 0.001, 47 degrees of freedom"


def test_a_visit_repeats_by_seed_epoch_and_sample_and_by_nothing_else() -> None:
    settings = dataclasses.replace(SETTINGS, mask_ratios=(1.0, 0.5), random_ratio=0.3, strategy="random")

    def fingerprint(seed: int, epoch: int, sample: int) -> tuple:
        state = draw_state(LONG, settings, sample_stream(seed, epoch, sample))
        return (state.inputs.tobytes(), state.masked.tobytes(), state.uniforms.tobytes())

    visits = [(seed, epoch, sample) for seed in (0, 10086) for epoch in (0, 1, 29) for sample in (0, 1, 8522)]
    assert len({fingerprint(*visit) for visit in visits}) == len(visits)
    assert all(fingerprint(*visit) == fingerprint(*visit) for visit in visits[:3])


def test_block_sizes_are_drawn_per_sample() -> None:
    sizes = Counter(
        draw_state(SAMPLE, dataclasses.replace(SETTINGS, block_sizes=(4, 8)), sample_stream(0, 0, index)).block_size
        for index in range(400)
    )
    assert set(sizes) == {4, 8}
    assert abs(sizes[4] - 200) < 60


def test_uniforms_are_below_one() -> None:
    uniforms = draw(LONG).uniforms
    assert uniforms.dtype == np.float32
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
