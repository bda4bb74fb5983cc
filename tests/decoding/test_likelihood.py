import dataclasses
import itertools
import math
import random

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.likelihood import Likelihood, iter_likelihoods
from t3d.errors import DataError
from t3d.sdar import SDARForCausalLM
from t3d.sdar.attention import block_causal_mask

MASK = 47


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    return build_tiny_model().double()


def ragged_pairs(lengths: list[tuple[int, int]], seed: int = 0) -> list[tuple[list[int], list[int]]]:
    chooser = random.Random(seed)
    return [tuple([chooser.randrange(MASK) for _ in range(length)] for length in pair) for pair in lengths]


def likelihoods(model, pairs, size: int, max_active: int = 32) -> list[Likelihood]:
    found = dict(iter_likelihoods(model, pairs, MASK, size, max_active))
    return [found[index] for index in range(len(pairs))]


@torch.inference_mode()
def token_by_token(model: SDARForCausalLM, prompt: list[int], response: list[int], size: int) -> Likelihood:
    """The definition: one forward per token, over what the sequential decoder sees when it reveals it."""
    log_prob, greedy, tokens = 0.0, True, prompt + response
    for place in range(len(prompt), len(tokens)):
        end = (place // size + 1) * size
        ids = torch.tensor([tokens[:place] + [MASK] * (end - place)])
        positions = torch.arange(end)
        mask = block_causal_mask(positions, positions, size)[None, None]
        scores = model(ids, attention_mask=mask).logits[0, place : place + 1].float()
        probabilities = scores.index_fill(-1, torch.tensor([MASK]), -torch.inf).softmax(-1)
        log_prob += math.log(float(probabilities[0, tokens[place]]))
        greedy &= int(probabilities.argmax()) == tokens[place]
    return Likelihood(log_prob, greedy)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_all_blocks_at_once_equal_a_forward_per_token(model, size):
    pairs = ragged_pairs([(0, 1), (1, 2 * size), (size, size), (2 * size + 1, 3), (size - 1, 2), (5, 9), (7, 0)])
    expected = [token_by_token(model, *pair, size) for pair in pairs]
    for max_active in (1, 3, 32):
        found = likelihoods(model, pairs, size, max_active)
        assert [score.log_prob for score in found] == pytest.approx([score.log_prob for score in expected], abs=1e-4)
        assert [score.is_greedy for score in found] == [score.is_greedy for score in expected]


@pytest.mark.parametrize("prompt_length", [0, 3, 4])
def test_the_probabilities_of_all_responses_of_one_length_sum_to_one(model, prompt_length):
    """A prompt of 3 puts the two tokens into different blocks."""
    ((prompt, _),) = ragged_pairs([(prompt_length, 0)])
    pairs = [(prompt, list(response)) for response in itertools.product(range(MASK), repeat=2)]
    total = sum(math.exp(score.log_prob) for score in likelihoods(model, pairs, 4, max_active=512))
    assert total == pytest.approx(1, abs=1e-4)


def test_a_response_is_greedy_exactly_if_the_sequential_decoder_writes_it(model):
    config = DecodingConfig(MASK, 4, 4, max_new_tokens=9, remasking_strategy="sequential")
    prompts = [prompt for prompt, _ in ragged_pairs([(2, 0), (4, 0), (9, 0)])]
    pairs = [(trajectory.prompt_ids, trajectory.response_ids) for trajectory in decode(model, prompts, config)]
    assert all(score.is_greedy for score in likelihoods(model, pairs, 4))
    for place in range(9):
        altered = [
            (prompt, [*response[:place], (response[place] + 1) % MASK, *response[place + 1 :]])
            for prompt, response in pairs
        ]
        assert not any(score.is_greedy for score in likelihoods(model, altered, 4))


def test_a_decoder_that_reveals_two_tokens_at_a_step_need_not_write_the_greedy_response(model):
    """What the estimate is not: the probability under few-step decoding."""
    config = DecodingConfig(MASK, 4, 4, max_new_tokens=8, remasking_strategy="sequential")
    prompts = [prompt for prompt, _ in ragged_pairs([(4, 0)] * 8)]
    few_steps = decode(model, prompts, dataclasses.replace(config, denoising_steps=2))
    scores = likelihoods(model, [(done.prompt_ids, done.response_ids) for done in few_steps], 4)
    assert not all(score.is_greedy for score in scores)


def test_an_empty_response_is_certain_and_the_mask_token_impossible(model):
    assert likelihoods(model, [([1, 2], []), ([], []), ([1], [2, MASK])], 4) == [
        (0.0, True),
        (0.0, True),
        (-math.inf, False),
    ]


def test_a_pair_that_does_not_fit_the_context_is_named(model):
    fits = ([1] * 200, [2] * 56)
    assert len(likelihoods(model, [fits], 8)) == 1
    with pytest.raises(DataError, match=r"pair 1: .*256 positions, found 200 \+ 57 tokens in blocks of 8"):
        likelihoods(model, [fits, ([1] * 200, [2] * 57)], 8)


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (4, 2), (4, 3), (8, 3)])
def test_of_few_steps_scored_is_the_sequential_decoder_that_takes_them(model, size, steps):
    """It writes exactly the responses that are greedy; a prompt's tail leaves its block fewer tokens."""
    config = DecodingConfig(MASK, size, steps, max_new_tokens=11, remasking_strategy="sequential")
    prompts = [prompt for prompt, _ in ragged_pairs([(length, 0) for length in (1, 2, 3, 4, 6, 9)])]
    pairs = [(done.prompt_ids, done.response_ids) for done in decode(model, prompts, config)]
    found = dict(iter_likelihoods(model, pairs, MASK, size, denoising_steps=steps))
    assert all(score.is_greedy for score in found.values())
    full = likelihoods(model, pairs, size)
    assert not all(score.is_greedy for score in full)
    assert found[0].log_prob != pytest.approx(full[0].log_prob, abs=1e-3)


@pytest.mark.parametrize("prompt_length", [0, 3])
def test_of_few_steps_too_the_probabilities_sum_to_one(model, prompt_length):
    ((prompt, _),) = ragged_pairs([(prompt_length, 0)])
    pairs = [(prompt, list(response)) for response in itertools.product(range(MASK), repeat=2)]
    found = dict(iter_likelihoods(model, pairs, MASK, 4, 512, denoising_steps=2))
    assert sum(math.exp(score.log_prob) for score in found.values()) == pytest.approx(1, abs=1e-4)
