"""The factorisation meter against its definition, by enumeration of every response of a small block."""

import itertools
import math
from functools import cache

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.factorisation import Factorisation, Gap, gaps, joined, mean_gap, num_blocks
from t3d.sdar import SDARForCausalLM
from t3d.sdar.attention import block_causal_mask

TOKENS, SIZE = 4, 4
MASK = TOKENS
SEEN = [2, 0, 1, 3, 1, 2, 2, 0]
"""A prompt's tokens; of its first ones some end a block and some do not."""


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    changes = {"vocab_size": TOKENS + 1, "mask_token_id": MASK, "block_size": SIZE, "initializer_range": 0.6}
    return build_tiny_model(seed=3, **changes).double()


def own_samples(
    model: SDARForCausalLM, prompt: list[int], count: int, length: int, stop_ids: tuple[int, ...] = ()
) -> list[tuple[list[int], list[int]]]:
    config = DecodingConfig(
        MASK, SIZE, SIZE, length, temperature=1.0, remasking_strategy="sequential", stop_ids=stop_ids, seed=1
    )
    return [(done.prompt_ids, done.response_ids) for done in decode(model, [prompt] * count, config, max_active=256)]


@cache
@torch.inference_mode()
def marginals(model: SDARForCausalLM, known: tuple[int, ...], end: int) -> torch.Tensor:
    """Distributions [positions, tokens] of the masks behind `known`, up to `end`."""
    ids = torch.tensor([[*known, *[MASK] * (end - len(known))]])
    mask = block_causal_mask(torch.arange(end), torch.arange(end), SIZE)[None, None]
    logits = model(ids, attention_mask=mask).logits[0, len(known) :].double()
    return logits[:, :TOKENS].softmax(-1)


def joint(model: SDARForCausalLM, prompt: list[int], steps: list[int]) -> torch.Tensor:
    """Probability [token, token, ...] of every way to fill the block, by so many tokens at each step."""
    end = len(prompt) + sum(steps)
    found = torch.zeros((TOKENS,) * sum(steps), dtype=torch.float64)
    for tokens in itertools.product(range(TOKENS), repeat=sum(steps)):
        probability, done = 1.0, 0
        for count in steps:
            each = marginals(model, (*prompt, *tokens[:done]), end)
            for place in range(count):
                probability *= float(each[place, tokens[done + place]])
            done += count
        found[tokens] = probability
    return found


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p * (p / q).log()).sum())


def independent(p: torch.Tensor) -> list[torch.Tensor]:
    """The marginals of a joint distribution."""
    axes = range(p.ndim)
    return [p.sum([other for other in axes if other != axis]) for axis in axes]


def product(each: list[torch.Tensor]) -> torch.Tensor:
    found = torch.ones((), dtype=torch.float64)
    for one in each:
        found = found[..., None] * one
    return found


def expected_gap(model: SDARForCausalLM, prompt: list[int], p: torch.Tensor, steps: int) -> float:
    """The mean under p of what `gaps` says of every response."""
    responses = [list(tokens) for tokens in itertools.product(range(TOKENS), repeat=p.ndim)]
    pairs = [(prompt, response) for response in responses]
    found = gaps(model, pairs, MASK, SIZE, [steps], max_active=128)[steps]
    assert [math.exp(-gap.surprise) for gap in found] == pytest.approx(p.flatten().tolist(), rel=1e-4)
    assert {(gap.num_blocks, gap.num_tokens) for gap in found} == {(1, p.ndim)}
    return float(p.flatten() @ torch.tensor([gap.nats for gap in found], dtype=torch.float64))


@pytest.mark.parametrize("known", [4, 5, 6])
def test_the_mean_gap_of_one_step_is_total_correlation_and_how_far_its_marginals_are_off(model, known):
    """Equal to the sum, so at least the total correlation; a prompt of 5 or 6 leaves a part of a block."""
    prompt, left = SEEN[:known], 2 * SIZE - max(known, SIZE)
    p = joint(model, prompt, [1] * left)
    assert float(p.sum()) == pytest.approx(1)
    correlation = kl(p, product(independent(p)))
    one_step = list(marginals(model, tuple(prompt), len(prompt) + left))
    off = sum(kl(own, drawn) for own, drawn in zip(independent(p), one_step, strict=True))
    assert correlation > 0.01
    assert off > 0.01
    found = expected_gap(model, prompt, p, steps=1)
    assert found == pytest.approx(correlation + off, rel=1e-4)


def test_the_mean_gap_of_two_steps_adds_up_those_of_its_halves(model):
    """The first half's, and the second's given the first: Equation 22 with half of the block revealed."""
    prompt = SEEN[:SIZE]
    p = joint(model, prompt, [1] * SIZE)
    first = p.sum((2, 3))
    halves = kl(first, product(independent(first)))
    off = sum(map(kl, independent(first), marginals(model, tuple(prompt), 2 * SIZE)[:2]))
    for tokens in itertools.product(range(TOKENS), repeat=2):
        second = p[tokens] / first[tokens]
        drawn = marginals(model, (*prompt, *tokens), 2 * SIZE)
        halves += float(first[tokens]) * kl(second, product(independent(second)))
        off += float(first[tokens]) * sum(map(kl, independent(second), drawn))
    assert expected_gap(model, prompt, p, steps=2) == pytest.approx(halves + off, rel=1e-4)
    assert expected_gap(model, prompt, p, steps=3) == pytest.approx(kl(p, joint(model, prompt, [2, 1, 1])), rel=1e-4)
    assert expected_gap(model, prompt, p, steps=SIZE) == 0


@pytest.mark.parametrize("stop_ids", [(), (2,)])
def test_the_estimate_from_samples_agrees_with_the_exact_mean_within_its_error(model, stop_ids):
    """Cut at a stop token, a response has the probability of all that could have followed, under either decoder."""
    prompt, count = SEEN[:5], 3
    cut = {}
    for tokens in itertools.product(range(TOKENS), repeat=count):
        ends = [place for place, token in enumerate(tokens, 1) if token in stop_ids]
        cut.setdefault(tokens[: ends[0] if ends else count], []).append(tokens)
    p, q = joint(model, prompt, [1] * count), joint(model, prompt, [count])
    sums = [[sum(float(each[tokens]) for tokens in same) for same in cut.values()] for each in (p, q)]
    exact = kl(*(torch.tensor(each, dtype=torch.float64) for each in sums))
    entropy = -sum(probability * math.log(probability) for probability in sums[0])
    pairs = own_samples(model, prompt, 1000, count, stop_ids)
    found = mean_gap(gaps(model, pairs, MASK, SIZE, max_active=512)[1])
    assert found.nats_per_block == pytest.approx(exact, abs=4 * found.stderr)
    assert found.stderr < exact / 4
    assert found.entropy_per_block == pytest.approx(entropy, rel=0.1)


def test_a_model_whose_tokens_do_not_see_each_other_has_no_gap(build_tiny_model):
    alone = build_tiny_model(seed=3, vocab_size=TOKENS + 1, mask_token_id=MASK)
    with torch.no_grad():
        for layer in alone.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    seen = []
    found = gaps(alone, own_samples(alone, SEEN[:3], 8, 9), MASK, SIZE, [1, 2], report=lambda: seen.append(1))
    assert len(seen) == 3 * 8
    assert [gap.nats for each in found.values() for gap in each] == pytest.approx([0.0] * 16, abs=1e-4)
    assert mean_gap(found[1]).entropy_per_block > 1


def test_blocks_are_counted_from_the_start_of_the_prompt():
    sizes = [(0, 4), (0, 5), (3, 1), (3, 2), (4, 1), (7, 9), (5, 0)]
    assert [num_blocks(*lengths, 4) for lengths in sizes] == [1, 2, 1, 2, 1, 3, 0]


def test_the_mean_is_a_ratio_of_sums_with_its_linearised_error():
    found = mean_gap([Gap(1.0, 3.0, 1, 4), Gap(5.0, 5.0, 3, 8)])
    # r = 6 / 4; residuals 1 - 1.5 and 5 - 4.5
    assert found == Factorisation(1.5, math.sqrt(0.25 + 0.25) / 4, 0.5, 2.0, 2, 4, 12)
    assert joined([Gap(1.0, 3.0, 1, 4), Gap(5.0, 5.0, 3, 8)]) == Gap(6.0, 8.0, 4, 12)


def test_without_a_token_there_is_no_figure():
    for found in (mean_gap([]), mean_gap([Gap(0.0, 0.0, 0, 0)])):
        assert all(math.isnan(value) for value in (found.nats_per_block, found.stderr, found.nats_per_token))
