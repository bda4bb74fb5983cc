import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from t3d.errors import DataError
from t3d.trajectory import (
    Trajectory,
    check_step_map,
    noted_beside,
    read_rollouts,
    record_trajectories,
    validate_trajectory,
)

TOKENIZER = Path(__file__).parents[1].parent / "shared" / "data" / "sdar-tokenizer"

# Block size 4: the prompt's three tokens share the first block with the first response token.
VALID = Trajectory(
    prompt_ids=[5, 6, 7],
    response_ids=[10, 11, 12, 13, 14, 15],
    step_map=[1, 3, 2, 3, 2, 4],
    finish_reason="stop",
    num_forwards=5,
    num_steps=4,
)


def rollout(**changes: object) -> dict:
    record = {
        "question": "1+1?",
        "prompt": "abc",
        "prompt_ids": [5, 6, 7],
        "block_size": 4,
        "full_output": ["first", "second"],
        "response_ids": [[10, 11, 12, 13, 14, 15], [20]],
        "step_map": [[1, 3, 2, 3, 2, 4], [1]],
        "finish_reason": ["stop", "length"],
        "num_forwards": [5, 1],
        "num_steps": [4, 1],
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def test_a_decoded_trajectory_is_accepted_at_its_block_size_only():
    validate_trajectory(VALID, "here", block_size=4)
    with pytest.raises(DataError, match=r"here, field step_map: .* block size 2"):
        validate_trajectory(VALID, "here", block_size=2)


def test_blocks_count_from_the_start_of_the_prompt():
    check_step_map([1, 2, 3, 2, 3, 4], "here", block_size=4, prompt_length=3 + 4)
    for prompt_length in (0, 1, 2):
        with pytest.raises(DataError, match="from block to block"):
            check_step_map([1, 4, 3, 2, 2, 5], "here", block_size=4, prompt_length=prompt_length)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"step_map": [1, 2, 3, 2, 3]},
            "field step_map: expected one step per token .* found 5 steps for 6 tokens",
        ),
        (
            {"step_map": [0, 1, 1, 1, 1, 2]},
            "field step_map: expected whole numbers of at least 1, found 0 at position 0",
        ),
        ({"step_map": [True, 2, 2, 2, 2, 3]}, "found True at position 0"),
        ({"step_map": [1.0] * 6}, "found 1.0 at position 0"),
        ({"step_map": 3}, "field step_map: expected a list of whole numbers, found number"),
        ({"response_ids": [], "step_map": []}, "expected at least one token, found an empty response"),
        ({"response_ids": [1, 2, 3, 4, 5, -1]}, "field response_ids: .* found -1 at position 5"),
        ({"prompt_ids": [1, 2, True]}, "field prompt_ids: .* found True at position 2"),
        ({"finish_reason": "eos"}, "field finish_reason: expected stop or length, found 'eos'"),
        ({"num_forwards": None}, "field num_forwards: expected a whole number of at least 0, found None"),
        ({"num_forwards": True}, "field num_forwards: .* found True"),
        ({"num_steps": 3}, "field num_steps: expected no fewer steps .* found 3, with step 4"),
    ],
)
def test_an_impossible_trajectory_is_named(changes, complaint):
    with pytest.raises(DataError, match=f"^record 7, .*{complaint}"):
        validate_trajectory(dataclasses.replace(VALID, **changes), "record 7", block_size=4)


def test_neighbouring_blocks_never_share_a_step():
    with pytest.raises(DataError, match="token 2 that is not above"):
        check_step_map([1, 2, 2, 3], "here", block_size=2, prompt_length=0)


def test_a_block_begun_before_the_last_one_ended_is_refused_at_any_size():
    steps = list(range(1, 81))
    steps[40], steps[0] = steps[0], steps[40]
    with pytest.raises(DataError, match="block size 1 to 32"):
        check_step_map(steps, "here", prompt_length=0)
    with pytest.raises(DataError, match="block size 1 to 32"):
        check_step_map(steps, "here")


@pytest.mark.parametrize("block_size", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("prompt_length", [0, 3, 37])
def test_maps_of_unknown_block_size_pass_if_some_size_fits(block_size, prompt_length):
    blocks = [(prompt_length + i) // block_size for i in range(100)]
    steps = [(b - blocks[0]) * block_size + (block_size - i % block_size) for i, b in enumerate(blocks)]
    check_step_map(steps, "here", None, prompt_length)
    check_step_map(steps, "here")


def test_an_unknown_alignment_is_searched_a_known_one_is_not():
    steps = [1, 3, 2, 5, 4, 7, 6, 8]
    check_step_map(steps, "here", block_size=2)
    check_step_map(steps, "here", block_size=2, prompt_length=1)
    with pytest.raises(DataError, match="from block to block"):
        check_step_map(steps, "here", block_size=2, prompt_length=2)


def test_stored_ids_are_used_as_they_are():
    assert record_trajectories(rollout(), "record 0") == [
        VALID,
        Trajectory([5, 6, 7], [20], [1], "length", 1, 1),
    ]


def test_records_are_read_before_and_after_stage_two(tmp_path):
    renamed = {("answer" if key == "full_output" else key): value for key, value in rollout().items()}
    path = tmp_path / "rollouts.json"
    path.write_text(json.dumps([rollout(), renamed]))
    read = list(read_rollouts(path))
    assert read == [(0, rollout()), (1, renamed)]
    assert record_trajectories(read[0][1], "a") == record_trajectories(read[1][1], "b")


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ([], "record 1: expected an object, found list"),
        (rollout(prompt=None), "record 1, field prompt: expected a string, found nothing"),
        (
            rollout(prompt_ids="a"),
            "record 1, field prompt_ids: expected a list of whole numbers, found string",
        ),
        (
            rollout(prompt_ids=None),
            "record 1, field prompt_ids: expected the prompt's ids beside response_ids",
        ),
        (rollout(full_output=None), "record 1, field full_output: expected a list .*, found nothing"),
        (rollout(full_output=[]), "record 1, field full_output: expected at least one response"),
        (rollout(full_output=["a", 1]), "record 1, field full_output: expected strings, found number"),
        (rollout(step_map=None), "record 1, field step_map: expected a list .*, found nothing"),
        (rollout(num_steps=None), "record 1, field num_steps: expected a list .*, found nothing"),
        (
            rollout(num_forwards=[1]),
            "record 1, field num_forwards: expected one entry .*, found 1 for 2 responses",
        ),
        (rollout(response_length=[1, 2, 3]), "record 1, field response_length: .* found 3 for 2 responses"),
        (rollout(block_size=0), "record 1, field block_size: expected a whole number of at least 1, found 0"),
    ],
)
def test_a_record_of_another_shape_is_named_with_its_field(tmp_path, bad, complaint):
    path = tmp_path / "rollouts.json"
    path.write_text(json.dumps([rollout(), bad]))
    reader = read_rollouts(path)
    assert next(reader) == (0, rollout())
    with pytest.raises(DataError, match=f"^{path}, {complaint}"):
        next(reader)


def test_a_bad_response_is_named_by_its_index():
    record = rollout(step_map=[[1, 3, 2, 3, 2, 4], [0]])
    with pytest.raises(DataError, match=r"^record 3, response 1, field step_map: .* found 0 at position 0"):
        record_trajectories(record, "record 3")


def test_the_recorded_block_size_is_enforced():
    with pytest.raises(DataError, match=r"response 0, field step_map: .* block size 2"):
        record_trajectories(rollout(block_size=2), "record 3")
    assert record_trajectories(rollout(block_size=None), "record 3")[0] == VALID


class WordTokenizer:
    """One token per word: its length; the word END is special."""

    all_special_ids = (3,)

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict:
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


def release_record(**changes: object) -> dict:
    record = {"prompt": "two words", "full_output": ["a bb END", "a bb"], "step_map": [[1, 2, 3], [2, 1]]}
    return {**record, **changes}


@pytest.mark.parametrize("text_field", ["full_output", "answer"])
def test_texts_without_ids_are_tokenised_again(text_field):
    record = release_record()
    record[text_field] = record.pop("full_output")
    assert record_trajectories(record, "record 0", WordTokenizer()) == [
        Trajectory([3, 5], [1, 2, 3], [1, 2, 3], "stop", 0, 3),
        Trajectory([3, 5], [1, 2], [2, 1], "length", 0, 2),
    ]


def test_texts_that_tokenise_to_another_length_are_rejected_not_trimmed():
    record = release_record(step_map=[[1, 2, 3], [1, 2, 3]])
    with pytest.raises(DataError, match=r"record 4, response 1, field step_map: .* found 2 tokens for 3 steps"):
        record_trajectories(record, "record 4", WordTokenizer())


def test_texts_without_ids_need_a_tokenizer():
    with pytest.raises(DataError, match="record 4, field prompt_ids: expected stored token ids"):
        record_trajectories(release_record(), "record 4")


@pytest.mark.skipif(not TOKENIZER.is_dir(), reason="the real tokenizer is not here")
def test_the_real_tokenizer_ends_a_response_at_its_chat_end():
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    record = {"prompt": "1+1?", "answer": ["2<|im_end|>"], "step_map": [[1, 2]]}
    [trajectory] = record_trajectories(record, "record 0", tokenizer)
    assert (trajectory.response_ids, trajectory.finish_reason) == ([17, 151645], "stop")


def test_what_is_noted_beside_a_file_is_stage_1s_or_a_graded_ones_results(tmp_path):
    (tmp_path / "outputs-a.meta.json").write_text(json.dumps({"checkpoint": "M", "fingerprint": {"seed": 3}}))
    (tmp_path / "results-a.json").write_text(json.dumps({"checkpoint": "N", "seed": 4}))
    assert noted_beside(tmp_path / "outputs-a.json") == {"checkpoint": "M", "fingerprint": {"seed": 3}, "seed": 3}
    assert noted_beside(tmp_path / "graded-a.json") == {"checkpoint": "N", "seed": 4}
    assert noted_beside(tmp_path / "outputs-b.json") == {}
