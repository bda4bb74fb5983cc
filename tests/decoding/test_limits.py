import math
import random

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.cache import padded_keys
from t3d.decoding.limits import PREFILL_TOKENS, prefill_forwards
from t3d.decoding.plain import decode_plain
from t3d.errors import ConfigError
from t3d.sdar import SDARForCausalLM

MASK = 47


def prompts_of(*lengths: int) -> list[list[int]]:
    chooser = random.Random(1)
    return [[chooser.randrange(MASK) for _ in range(length)] for length in lengths]


# Prompts that cannot be decoded


def test_a_prompt_that_cannot_be_decoded_is_reported_and_the_others_go_on(tiny_model) -> None:
    config = DecodingConfig(MASK, 4, 2, max_new_tokens=7)
    good, long = prompts_of(9, 250)
    done = decode(tiny_model, [long, good, [1, 48], [1, -1], []], config, max_active=2)
    assert [trajectory.finish_reason for trajectory in done] == ["error", "length", "error", "error", "length"]
    assert done[1] == decode_plain(tiny_model, good, config, 1)
    assert done[0].error == ("250 prompt tokens + up to 7 new ones in blocks of 4, beyond the model's 256 positions")
    assert done[2].error == "token id 48 in the prompt, outside the model's vocabulary of 48"
    assert (done[3].response_ids, done[3].step_map, done[3].num_steps, done[3].num_forwards) == ([], [], 0, 0)


def test_a_prompt_may_fill_the_context_to_its_last_block(tiny_model) -> None:
    (done,) = decode(tiny_model, prompts_of(250), DecodingConfig(MASK, 4, 4, max_new_tokens=6))
    assert len(done.response_ids) == 6


def test_a_mask_token_that_the_model_does_not_have_is_refused(tiny_model) -> None:
    with pytest.raises(ConfigError, match=r"decoding.mask_id: expected an id below the model's 48, found 48"):
        decode(tiny_model, [[1]], DecodingConfig(48))


# Logits that are no distribution


def poisoned(model: SDARForCausalLM, token: int, value: float) -> SDARForCausalLM:
    """A model that cannot stand one token in its input."""
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("max_active", [1, 2, 5])
def test_a_sequence_that_overflows_fails_alone(build_tiny_model, value: float, max_active: int) -> None:
    """Its cached keys and values are not finite: whoever gets its slot, or lies beside it, must not see them."""
    bad, config = 40, DecodingConfig(MASK, 4, 2, max_new_tokens=10, temperature=0.7)
    model = poisoned(build_tiny_model().double(), bad, value)
    with torch.no_grad():
        model.lm_head.weight[bad] = 0  # hardly ever drawn
    prompts = [[token % bad for token in prompt] for prompt in prompts_of(30, 25, 6, 9, 3, 17, 12)]
    for prompt in prompts[1::2]:
        prompt[3] = bad
    done = decode(model, prompts, config, max_active)
    assert done == [decode_plain(model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
    for index, trajectory in enumerate(done):
        if index % 2:
            assert trajectory.error == "logits that are not finite at denoising step 1"
            assert (trajectory.response_ids, trajectory.step_map, trajectory.finish_reason) == ([], [], "error")
            assert trajectory.num_steps == 1
        elif trajectory.error is None:
            assert len(trajectory.response_ids) == 10
    assert sum(trajectory.error is None for trajectory in done) >= 3


def test_logits_without_any_possible_token_fail(build_tiny_model) -> None:
    model = build_tiny_model()
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: torch.full_like(head(hidden), -math.inf)
    (done,) = decode(model, prompts_of(5), DecodingConfig(MASK, 4, 2, max_new_tokens=4, temperature=1.0))
    assert done.error == "logits that are not finite at denoising step 1"


def test_single_impossible_tokens_are_no_failure(build_tiny_model) -> None:
    model = build_tiny_model()
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden).index_fill(-1, torch.tensor([7]), -math.inf)
    (done,) = decode(model, prompts_of(5), DecodingConfig(MASK, 4, 2, max_new_tokens=60, temperature=2.0))
    assert done.error is None
    assert 7 not in done.response_ids


# Prefill


@pytest.fixture(scope="module")
def long_model(build_tiny_model) -> SDARForCausalLM:
    return build_tiny_model(max_position_embeddings=2048).double()


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_running_sequences(long_model, monkeypatch) -> None:
    config = DecodingConfig(MASK, 4, 2, max_new_tokens=24)
    prompts = prompts_of(10, 1100, 600, 300, 5)
    expected = [decode_plain(long_model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
    sizes = []
    forward = long_model.forward
    monkeypatch.setattr(long_model, "forward", lambda ids, **rest: sizes.append(ids.shape[1]) or forward(ids, **rest))
    done = decode(long_model, prompts, config, max_active=5)
    assert done == expected
    assert [trajectory.num_forwards - trajectory.num_steps for trajectory in done] == [1, 3, 2, 1, 1]
    assert max(sizes) <= PREFILL_TOKENS + 5 * 2 * 4, "prompts are fed in bounded portions"
    assert len(sizes) < sum(trajectory.num_forwards for trajectory in done) / 2, "and share their forwards"
    assert decode(long_model, prompts, config, max_active=1) == expected


@pytest.mark.parametrize(
    ("length", "size", "expected"), [(3, 4, 0), (4, 4, 1), (512, 4, 1), (515, 4, 1), (516, 4, 2), (1530, 3, 3)]
)
def test_forwards_of_a_prefill(length: int, size: int, expected: int) -> None:
    assert prefill_forwards(length, size) == expected


def test_key_counts_are_coarse() -> None:
    assert [padded_keys(count) for count in (1, 64, 65, 256, 257, 700)] == [64, 64, 128, 256, 512, 768]
