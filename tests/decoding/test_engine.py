import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from t3d.decoding import DecodingConfig, decode, iter_decode
from t3d.decoding.plain import decode_plain
from t3d.errors import ConfigError
from t3d.remasking import STRATEGIES
from t3d.sdar import SDARForCausalLM
from t3d.trajectory import Trajectory, validate_trajectory

MASK = 47
STOPS = (3, 17, 30)


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    """In double precision: no two ways of adding up the same logits may part at a near-tie."""
    return build_tiny_model().double()


def ragged_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    chooser = random.Random(seed)
    return [[chooser.randrange(MASK) for _ in range(length)] for length in lengths]


def step_counts(size: int) -> list[int]:
    return sorted({1, min(2, size), max(1, size // 2), size})


GRID = [
    pytest.param(strategy, size, steps, temperature, marks=[] if size in (1, 3, 4, 8) else pytest.mark.slow)
    for size in (1, 2, 3, 4, 8, 16, 32)
    for steps in step_counts(size)
    for strategy in STRATEGIES
    for temperature in (0.0, 0.7)
]


@pytest.mark.parametrize(("strategy", "size", "steps", "temperature"), GRID)
def test_the_engine_equals_the_plain_decoder(model, strategy: str, size: int, steps: int, temperature: float) -> None:
    config = DecodingConfig(
        mask_id=MASK,
        block_size=size,
        denoising_steps=steps,
        max_new_tokens=2 * size + 3,
        temperature=temperature,
        remasking_strategy=strategy,
        dynamic_threshold=0.5,
        eb_threshold=1.5,
        stop_ids=STOPS,
        seed=size,
        confidence="raw" if steps == 2 else "scaled",
        end_early=size != 3,
    )
    prompts = ragged_prompts([1, size, 2 * size + 1, size + size // 2 + 1, 5], seed=steps)
    expected = [decode_plain(model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
    # Field by field: tokens, steps, how it ended, and forwards.
    assert decode(model, prompts, config, max_active=3) == expected


def denoise_by_hand(
    logits: np.ndarray, masked: list[int], step: int, uniforms: np.ndarray, config: DecodingConfig
) -> dict[int, int]:
    """Offset -> token revealed at one step of low_confidence_static, in plain numbers."""
    drawn: dict[int, tuple[float, int]] = {}
    for offset in masked:
        scores = logits[offset].astype(np.float64).copy()
        scores[config.mask_id] = -np.inf
        scores = scores / (config.temperature or 1.0)
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        token = int(probabilities.argmax())
        if config.temperature > 0:
            token = int(np.searchsorted(probabilities.cumsum(), uniforms[offset], side="right"))
        drawn[offset] = (float(probabilities[token]), token)
    per_step, remainder = divmod(config.block_size, config.denoising_steps)
    quota = per_step + (step < remainder)
    best = sorted(masked, key=lambda offset: (-drawn[offset][0], offset))[:quota]
    return {offset: drawn[offset][1] for offset in best}


@torch.no_grad()
def decode_with_separate_commits(
    model: SDARForCausalLM, prompt: list[int], config: DecodingConfig, stream: int
) -> tuple[Trajectory, int]:
    """A third decoder, as peers write it: cached, S forwards and one commit per block, numpy sampling."""
    size = config.block_size
    generator = np.random.Generator(np.random.Philox(key=np.array([config.seed, stream], dtype=np.uint64)))
    cache = DynamicCache()

    def forward(tokens: list[int], start: int) -> np.ndarray:
        positions = torch.arange(start, start + len(tokens))[None]
        blocks, key_blocks = positions[0] // size, torch.arange(start + len(tokens)) // size
        mask = (key_blocks[None, :] <= blocks[:, None])[None, None]
        out = model(torch.tensor([tokens]), attention_mask=mask, position_ids=positions, past_key_values=cache)
        return out.logits[0].numpy()

    start = len(prompt) // size * size
    num_forwards = 0
    if start:
        forward(prompt[:start], 0)
        num_forwards += 1
    block, steps = prompt[start:], [0] * (len(prompt) - start)
    response: list[int] = []
    step_map: list[int] = []
    num_steps = 0
    while True:
        block, steps = block + [MASK] * (size - len(block)), steps + [0] * (size - len(steps))
        fresh = [offset for offset in range(size) if start + offset >= len(prompt)]
        masked = list(fresh)
        uniforms = generator.random((config.denoising_steps, size), dtype=np.float32)
        for step in range(config.denoising_steps):
            if not masked:
                break
            logits = forward(block, start)
            cache.crop(start - cache.get_seq_length())
            num_forwards += 1
            num_steps += 1
            for offset, token in denoise_by_hand(logits, masked, step, uniforms[step], config).items():
                block[offset], steps[offset] = token, num_steps
                masked.remove(offset)
        assert not masked
        response += [block[offset] for offset in fresh]
        step_map += [steps[offset] for offset in fresh]
        ends = [place for place, token in enumerate(response) if token in config.stop_ids]
        if ends or len(response) >= config.max_new_tokens:
            break
        forward(block, start)
        num_forwards += 1
        start, block, steps = start + size, [], []
    length = min([place + 1 for place in ends[:1]] + [config.max_new_tokens])
    reason = "stop" if response[length - 1] in config.stop_ids else "length"
    commits = num_forwards - num_steps - (len(prompt) >= size)
    fused = num_forwards - commits
    return Trajectory(prompt, response[:length], step_map[:length], reason, fused, num_steps), commits


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("size", "steps"), [(4, 1), (4, 2), (4, 3), (4, 4), (8, 3)])
def test_the_fused_commit_equals_a_commit_of_its_own(model, size: int, steps: int, temperature: float) -> None:
    config = DecodingConfig(
        MASK, size, steps, 21, temperature=temperature, stop_ids=STOPS[:1], seed=steps, end_early=False
    )
    prompts = ragged_prompts([1, 4, 6, 11, 16])
    ours = decode(model, prompts, config, max_active=2)
    total_commits = 0
    for stream, prompt in enumerate(prompts):
        expected, commits = decode_with_separate_commits(model, prompt, config, stream)
        assert ours[stream] == expected
        total_commits += commits
    assert total_commits > 0, "no block was ever committed: the test compares nothing"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_results_do_not_depend_on_max_active(model, temperature: float) -> None:
    config = DecodingConfig(MASK, 4, 2, max_new_tokens=13, temperature=temperature, stop_ids=STOPS)
    prompts = ragged_prompts([3, 9, 1, 4, 17, 8, 2])
    alone = decode(model, prompts, config, max_active=1)
    for max_active in (2, 3, 7, 100):
        assert decode(model, prompts, config, max_active=max_active) == alone


def test_a_response_depends_on_its_stream_not_on_its_place(model) -> None:
    config = DecodingConfig(MASK, 4, 4, max_new_tokens=12, temperature=1.0)
    prompts = ragged_prompts([3, 6, 5])
    inorder = decode(model, prompts, config)
    backwards = dict(iter_decode(model, prompts[::-1], config, streams=[2, 1, 0]))
    assert [backwards[index] for index in (2, 1, 0)] == inorder
    same_prompt = dict(iter_decode(model, [prompts[0]] * 2, config, streams=[0, 1]))
    assert same_prompt[0] != same_prompt[1]


def test_the_seed_decides_sampled_responses_and_no_others(model) -> None:
    prompts = ragged_prompts([3, 6])
    for temperature, differs in ((1.0, True), (0.0, False)):
        first, again, other = (
            decode(model, prompts, DecodingConfig(MASK, max_new_tokens=12, temperature=temperature, seed=seed))
            for seed in (0, 0, 1)
        )
        assert first == again
        assert (first != other) == differs


def test_single_precision_decodes_the_same(tiny_model) -> None:
    config = DecodingConfig(MASK, 4, 2, max_new_tokens=18, temperature=0.7)
    prompts = ragged_prompts([3, 9, 1, 4])
    expected = [decode_plain(tiny_model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
    assert decode(tiny_model, prompts, config, max_active=2) == expected


# Lengths and stops


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8, 61, 64])
def test_max_new_tokens_is_exact(model, limit: int) -> None:
    for prompt_length in (1, 3, 4):
        config = DecodingConfig(MASK, 4, 2, max_new_tokens=limit)
        (done,) = decode(model, ragged_prompts([prompt_length]), config)
        assert len(done.response_ids) == len(done.step_map) == limit
        assert done.finish_reason == "length"


def test_a_stop_token_ends_the_response_wherever_it_stands_in_its_block(model) -> None:
    (whole,) = decode(model, ragged_prompts([6]), DecodingConfig(MASK, 4, 2, max_new_tokens=30))
    offsets = set()
    for stop in set(whole.response_ids):
        place = whole.response_ids.index(stop)
        config = DecodingConfig(MASK, 4, 2, max_new_tokens=30, stop_ids=(stop,))
        (done,) = decode(model, ragged_prompts([6]), config)
        assert done.response_ids == whole.response_ids[: place + 1], "the last block is decoded whole, then cut"
        assert done.step_map == whole.step_map[: place + 1]
        assert done.finish_reason == "stop"
        whole_block = decode(model, ragged_prompts([6]), dataclasses.replace(config, end_early=False))[0]
        assert (done.response_ids, done.step_map) == (whole_block.response_ids, whole_block.step_map)
        # The last step that reveals what is kept, and all of the block.
        assert done.num_steps == max(done.step_map)
        assert whole_block.num_steps == 2 * ((6 + place) // 4) - 1, "the prompt's tail leaves one step"
        offsets.add((6 + place) % 4)
    assert offsets == {0, 1, 2, 3}


def test_a_stop_token_beyond_the_limit_is_no_stop(model) -> None:
    free = DecodingConfig(MASK, 4, 1, max_new_tokens=4, temperature=2.0)
    (whole,) = decode(model, ragged_prompts([4]), free)
    last = whole.response_ids[3]
    assert last not in whole.response_ids[:3]
    for limit, reason in ((3, "length"), (4, "stop")):
        config = dataclasses.replace(free, max_new_tokens=limit, stop_ids=(last,))
        (done,) = decode(model, ragged_prompts([4]), config)
        assert (done.response_ids, done.finish_reason) == (whole.response_ids[:limit], reason)


def test_stop_tokens_of_the_prompt_stop_nothing(model) -> None:
    # RELEASE 16: the release ends a generation at a stop token in the prompt's tail.
    (free,) = decode(model, [[5, 9, 3, 8, 3, 3]], DecodingConfig(MASK, 4, 2, max_new_tokens=10))
    unused = next(token for token in range(MASK) if token not in free.response_ids)
    prompt = [5, 9, unused, 8, unused, unused]
    (expected,) = decode(model, [prompt], DecodingConfig(MASK, 4, 2, max_new_tokens=10))
    config = DecodingConfig(MASK, 4, 2, max_new_tokens=10, stop_ids=(unused,))
    (done,) = decode(model, [prompt], config)
    place = expected.response_ids.index(unused) + 1 if unused in expected.response_ids else 10
    assert len(done.response_ids) == place
    assert done.response_ids == expected.response_ids[:place]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_prompts_tail_is_never_touched(model, strategy: str, steps: int) -> None:
    # RELEASE 14: with one step, top-k over fewer masks than n_s overwrites the tail of the prompt.
    prompts = ragged_prompts([1, 2, 3, 5, 7, 9, 15])
    config = DecodingConfig(MASK, 8, steps, max_new_tokens=17, remasking_strategy=strategy)
    for prompt, done in zip(prompts, decode(model, prompts, config), strict=True):
        assert done.prompt_ids == prompt
        # The response is what the model makes of the untouched prompt, position by position.
        assert done == decode_plain(model, prompt, config)
        assert len(done.response_ids) == 17


def test_an_empty_prompt_is_decoded(model) -> None:
    empty, other = decode(model, [[], [5, 6]], DecodingConfig(MASK, 4, 2, max_new_tokens=10, temperature=0.7))
    assert len(empty.response_ids) == len(other.response_ids) == 10
    assert empty.num_forwards == empty.num_steps == 6


def test_no_prompts_give_no_answers(model) -> None:
    assert decode(model, [], DecodingConfig(MASK)) == []


def test_the_mask_token_is_never_generated(model, build_tiny_model) -> None:
    model = build_tiny_model().double()
    with torch.no_grad():
        model.lm_head.weight[MASK] = model.lm_head.weight.sum(0) * 10
    for temperature in (0.0, 2.0):
        done = decode(model, ragged_prompts([3, 8]), DecodingConfig(MASK, max_new_tokens=40, temperature=temperature))
        assert not any(MASK in trajectory.response_ids for trajectory in done)


# Steps and forwards


def steps_by_block(trajectory: Trajectory, size: int) -> list[list[int]]:
    steps = [0] * len(trajectory.prompt_ids) + trajectory.step_map
    start = len(trajectory.prompt_ids) // size * size
    blocks = [steps[place : place + size] for place in range(start, len(steps), size)]
    return [[step for step in block if step] for block in blocks]


@pytest.mark.parametrize(
    ("size", "steps", "quotas"), [(4, 4, [1, 1, 1, 1]), (8, 3, [3, 3, 2]), (7, 4, [2, 2, 2, 1]), (4, 1, [4])]
)
@pytest.mark.parametrize("strategy", ["low_confidence_static", "sequential"])
def test_whole_blocks_follow_the_quota_of_each_step(model, strategy: str, size: int, steps: int, quotas) -> None:
    config = DecodingConfig(MASK, size, steps, max_new_tokens=4 * size, remasking_strategy=strategy)
    (done,) = decode(model, ragged_prompts([size]), config)
    assert done.num_steps == 4 * steps
    assert done.num_forwards == 1 + 4 * steps
    for index, block in enumerate(steps_by_block(done, size)):
        assert [block.count(index * steps + step + 1) for step in range(steps)] == quotas
        if strategy == "sequential":
            assert block == sorted(block)


def test_a_block_ends_when_no_mask_is_left(model) -> None:
    # Three of four positions belong to the prompt: one step, not four. Nothing to prefill.
    (done,) = decode(model, ragged_prompts([3]), DecodingConfig(MASK, 4, 4, max_new_tokens=1))
    assert (done.num_steps, done.num_forwards, done.step_map) == (1, 1, [1])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("size", "steps"), [(4, 2), (8, 8), (8, 3)])
def test_every_token_was_revealed_at_a_recorded_step(model, strategy: str, size: int, steps: int) -> None:
    # RELEASE 17: the release commits masks that the last step left over as step 0.
    config = DecodingConfig(
        MASK,
        size,
        steps,
        37,
        temperature=0.8,
        remasking_strategy=strategy,
        eb_threshold=0.5,
        stop_ids=STOPS[:1],
    )
    for done in decode(model, ragged_prompts([1, 5, 8, 12, 23]), config, max_active=2):
        validate_trajectory(done, "test", size)
        assert min(done.step_map) >= 1
        blocks = steps_by_block(done, size)
        assert all(max(before) < min(after) for before, after in itertools.pairwise(blocks))
        assert all(len(set(block)) <= steps for block in blocks)
        assert done.num_steps <= steps * len(blocks)
        assert done.num_forwards == done.num_steps + (len(done.prompt_ids) >= size)
        # Steps are consecutive but for those whose tokens were all cut off with the end of the last block.
        whole = [step for block in blocks[:-1] for step in block]
        assert sorted(set(whole)) == list(range(1, max(whole, default=0) + 1))


def test_a_certain_model_decodes_a_block_per_step_dynamically(model) -> None:
    config = DecodingConfig(MASK, 4, 4, 16, remasking_strategy="low_confidence_dynamic", dynamic_threshold=0.0)
    (done,) = decode(model, ragged_prompts([4]), config)
    assert done.step_map == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_top_k_one_samples_greedily(model) -> None:
    prompts = ragged_prompts([3, 6])
    config = DecodingConfig(MASK, 4, 4, 12, remasking_strategy="sequential")
    sampled = dataclasses.replace(config, temperature=1.0, top_k=1)
    assert decode(model, prompts, sampled) == decode(model, prompts, config)


# Mistakes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_id", -1),
        ("block_size", 0),
        ("denoising_steps", 0),
        ("denoising_steps", 5),
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("remasking_strategy", "low_confidence"),
        ("dynamic_threshold", 1.5),
        ("dynamic_threshold", -0.5),
        ("eb_threshold", -1.0),
        ("stop_ids", (1, MASK)),
        ("seed", -1),
        ("confidence", "tempered"),
        ("record", ("logits",)),
    ],
)
def test_an_invalid_setting_is_named_with_what_was_found(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        DecodingConfig(**{"mask_id": MASK, field: value})
    # A block size of 0 leaves no valid number of steps either; the first in order is told.
    assert caught.value.where == f"decoding.{field}"
    assert caught.value.found == str(value)
