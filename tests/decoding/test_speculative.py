"""Speculative decoding gives the ordinary decoder's responses, whoever drafts, and in fewer forwards."""

import random
from dataclasses import replace
from itertools import islice

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.plain import decode_plain
from t3d.decoding.speculative import Draft, Drafted, iter_speculative
from t3d.errors import ConfigError
from t3d.prompts import build_prompt
from t3d.sdar import SDARForCausalLM
from t3d.sdar.checkpoint import default_stop_ids, load_decoder, load_tokenizer
from t3d.storage.paths import TOY_TEACHER, model_path
from t3d.toy.problems import generate
from t3d.trajectory import Trajectory

MASK = 47
CONFIG = DecodingConfig(MASK, max_new_tokens=19, eb_threshold=1.5, dynamic_threshold=0.5, stop_ids=(3, 17, 30))
CASES = [
    # strategy, block, steps, temperature, source
    ("low_confidence_static", 4, 4, 0.0, "self"),
    ("low_confidence_static", 4, 4, 0.7, "both"),
    ("low_confidence_static", 8, 8, 0.7, "self"),
    ("low_confidence_static", 8, 4, 0.0, "student"),
    ("low_confidence_static", 4, 1, 0.7, "student"),
    ("low_confidence_dynamic", 4, 4, 0.7, "student"),
    ("entropy_bounded", 8, 8, 0.0, "both"),
    ("sequential", 4, 2, 0.7, "self"),
]


@pytest.fixture(scope="module")
def model(build_tiny_model) -> SDARForCausalLM:
    """In double precision: no two ways of adding up the same logits may part at a near-tie."""
    return build_tiny_model().double()


@pytest.fixture(scope="module")
def student(build_tiny_model) -> SDARForCausalLM:
    return build_tiny_model(1).double()


def prompts_of(lengths: list[int]) -> list[list[int]]:
    chooser = random.Random(0)
    return [[chooser.randrange(MASK) for _ in range(length)] for length in lengths]


def speculate(model, prompts, config, draft=None, max_active=3) -> list[Drafted]:
    found = dict(iter_speculative(model, prompts, config, draft, max_active))
    return [found[index] for index in range(len(prompts))]


def without_forwards(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, num_forwards=0, num_draft_forwards=0)


@pytest.mark.parametrize(("strategy", "size", "steps", "temperature", "source"), CASES)
def test_responses_and_step_maps_are_the_plain_decoders(
    model, student, strategy: str, size: int, steps: int, temperature: float, source: str
) -> None:
    config = replace(
        CONFIG,
        block_size=size,
        denoising_steps=steps,
        temperature=temperature,
        remasking_strategy=strategy,
        seed=steps,
        top_k=20 if size == 8 else 0,
        top_p=0.9 if steps == 4 else 1.0,
        end_early=strategy != "sequential",
    )
    prompts = prompts_of([1, 4, 9, 0, 12])
    found = speculate(model, prompts, config, Draft(source, None if source == "self" else student))
    expected = [decode_plain(model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
    assert [without_forwards(one.trajectory) for one in found] == [without_forwards(one) for one in expected]
    for one, plain in zip(found, expected, strict=True):
        assert one.own_forwards <= plain.num_forwards
    assert any(one.draft_forwards for one in found) == (source != "self")
    if steps > 1:
        assert sum(one.own_forwards for one in found) < sum(plain.num_forwards for plain in expected)


@pytest.mark.parametrize(("size", "temperature"), [(4, 0.0), (8, 0.7)])
def test_the_toy_teacher_saves_forwards_and_its_records_are_equal_to_the_bit(size: int, temperature: float) -> None:
    folder = model_path(TOY_TEACHER)
    tokenizer, model = load_tokenizer(folder), load_decoder(folder, "auto", torch.device("cpu"))
    prompts = [build_prompt(tokenizer, problem, "math")[1] for problem in islice(generate("test"), 4)]
    stops = default_stop_ids(folder, tokenizer)
    config = DecodingConfig(
        model.config.mask_token_id, size, size, 24, temperature, stop_ids=stops, record=("logprob", "entropy")
    )
    expected = decode(model, prompts, config)
    found = speculate(model, prompts, config)
    assert [without_forwards(one.trajectory) for one in found] == [without_forwards(one) for one in expected]
    assert sum(one.own_forwards for one in found) < 0.75 * sum(one.num_forwards for one in expected)


@pytest.mark.parametrize("copied", [1, 4000])
def test_committed_keys_are_copied_a_few_positions_at_a_time(model, monkeypatch, copied: int) -> None:
    """One at a time, and a few; by default 64 MiB, more than all of these."""
    prompts, sizes, select = prompts_of([1, 9, 30]), [], torch.Tensor.index_select
    expected = speculate(model, prompts, CONFIG)
    monkeypatch.setattr("t3d.decoding.speculative.COPIED_BYTES", copied)

    def noted(tensor, dim, index):
        if tensor.dim() == 4:  # keys or values of all layers
            sizes.append(len(index))
        return select(tensor, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", noted)
    assert speculate(model, prompts, CONFIG) == expected
    assert set(sizes) == {1} if copied == 1 else 1 < max(sizes) < 20


def test_where_a_step_reveals_a_block_nothing_is_saved_and_nothing_lost(model) -> None:
    config = replace(CONFIG, block_size=4, denoising_steps=4, remasking_strategy="low_confidence_dynamic", stop_ids=())
    config = replace(config, dynamic_threshold=0.0, max_new_tokens=16)  # every block in one step
    (one,) = speculate(model, prompts_of([4]), config)
    assert one.trajectory.step_map == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert one.own_forwards == 1 + 4
    assert one.positions == 4 + 3 * 8  # each but the first carries the block before it


def test_logits_that_are_not_finite_fail_one_response_and_poison_no_other(build_tiny_model) -> None:
    model = build_tiny_model().double()
    prompts = prompts_of([5, 6, 8, 3])
    for token in (11, 12):
        model.model.embed_tokens.weight.data[token] = float("nan")
    found = speculate(model, prompts, CONFIG, max_active=2)
    expected = decode(model, prompts, CONFIG)
    assert {one.trajectory.error is None for one in found} == {True, False}
    assert [without_forwards(one.trajectory) for one in found] == [without_forwards(one) for one in expected]


def test_a_prompt_that_does_not_fit_is_told_and_the_others_go_on(model) -> None:
    found = speculate(model, [[1] * 300, [1, 2, 3]], CONFIG)
    assert "300 prompt tokens" in (found[0].trajectory.error or "")
    assert found[1].trajectory.response_ids


def test_a_student_of_another_vocabulary_is_refused(model, build_tiny_model) -> None:
    other = build_tiny_model(vocab_size=50).double()
    with pytest.raises(ConfigError, match=r"48 tokens.*50"):
        speculate(model, [[1]], CONFIG, Draft("student", other))
    with pytest.raises(ConfigError, match="with a network"):
        Draft("student")
