"""Other engines' outputs, made from our own decoding in each engine's form, come back as the trajectories they were."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from t3d.config import TrainConfig, load_config
from t3d.data.engines import recount
from t3d.data.import_rollouts import main
from t3d.data.preprocess import rename_answers
from t3d.data.replay import replay
from t3d.decoding import DecodingConfig, decode
from t3d.errors import DataError, UserError
from t3d.prompts import build_prompt
from t3d.sdar.checkpoint import default_stop_ids, load_model, load_tokenizer
from t3d.storage.files import read_json
from t3d.toy.problems import generate
from t3d.training.loop import train
from t3d.trajectory import Trajectory, read_rollouts, record_trajectories

ITEMS = [{"question": item["question"], "ground_truth_answer": "1"} for item in islice(generate("train"), 4)]


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def decode_items(checkpoint, tokenizer) -> Callable[..., list[Trajectory]]:
    """Decodes ITEMS with the tiny checkpoint, two steps per block of four."""
    model = load_model(checkpoint)
    prompts = [build_prompt(tokenizer, item, "math")[1] for item in ITEMS]

    def run(**changes: Any) -> list[Trajectory]:
        fields: dict[str, Any] = {"denoising_steps": 2, "max_new_tokens": 22, "record": ("logprob", "entropy")}
        config = DecodingConfig(mask_id=tokenizer.mask_token_id, **(fields | changes))
        return decode(model, prompts, config)

    return run


@pytest.fixture(scope="module")
def decoded(decode_items, checkpoint, tokenizer) -> list[Trajectory]:
    """Greedy trajectories; the second is as if it had ended inside its third block with a stop token."""
    trajectories = decode_items()
    stop = default_stop_ids(checkpoint, tokenizer)[0]
    first, second, *others = trajectories
    end = 8 + (2 - len(second.prompt_ids)) % 4
    ended = replace(
        second,
        response_ids=[*second.response_ids[: end - 1], stop],
        step_map=second.step_map[:end],
        finish_reason="stop",
        logprobs=second.logprobs[:end],
        entropies=second.entropies[:end],
    )
    return [first, ended, *others]


def as_jetengine(one: Trajectory) -> dict[str, Any]:
    return {
        "text": "prompt and response",
        "token_ids": one.prompt_ids + one.response_ids,
        "trajectory": one.step_map,
        "logprobs": one.logprobs,
        "entropies": one.entropies,
    }


def as_jetengine_fork(one: Trajectory) -> dict[str, Any]:
    return {
        "text": "response",
        "token_ids": one.response_ids,
        "first_unmask_times": one.step_map,
        "prompt_ids": one.prompt_ids,
    }


def as_sglang(one: Trajectory) -> dict[str, Any]:
    """Steps counted anew in each block."""
    size, steps, done, highest = 4, [], 0, 0
    for place, step in enumerate(one.step_map):
        if (len(one.prompt_ids) + place) % size == 0:
            done = highest
        highest = max(highest, step)
        steps.append(step - done)
    return {
        "text": "response",
        "output_ids": one.response_ids,
        "meta_info": {
            "step_maps": steps,
            "prompt_tokens": len(one.prompt_ids),
            "finish_reason": {"type": one.finish_reason},
            "output_token_logprobs": [
                [value, token, None] for value, token in zip(one.logprobs or [], one.response_ids, strict=True)
            ],
        },
    }


def as_lmdeploy(one: Trajectory) -> dict[str, Any]:
    return {
        "text": "response",
        "generate_token_len": len(one.response_ids),
        "input_token_len": len(one.prompt_ids),
        "finish_reason": one.finish_reason,
        "token_ids": one.response_ids,
        "step_map": one.step_map,
        "logprobs": [
            {"5": -9.0, str(token): value} for value, token in zip(one.logprobs or [], one.response_ids, strict=True)
        ],
        "logits": None,
        "index": 0,
    }


ENGINES = {
    "jetengine": as_jetengine,
    "jetengine fork": as_jetengine_fork,
    "sglang": as_sglang,
    "lmdeploy": as_lmdeploy,
}


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    def write(values: list[Any], name: str = "engine.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(values))
        return path

    return write


@pytest.fixture
def run_import(tmp_path, checkpoint) -> Callable[..., list[dict[str, Any]]]:
    """Imports a file and returns the records."""

    def run(path: Path, form: str, *options: str) -> list[dict[str, Any]]:
        target = tmp_path / "imported.json"
        main([str(path), "--format", form.split()[0], "-o", str(target), "--tokenizer", str(checkpoint), *options])
        return [record for _, record in read_rollouts(target)]

    return run


@pytest.fixture
def data_set(write) -> Path:
    return write(ITEMS, "Tiny.json")


def release_records(decoded: list[Trajectory], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """In the release's form; of the texts those that come back as their own tokens."""
    for item, one in zip(ITEMS, decoded, strict=True):
        text = tokenizer.decode(one.response_ids)
        if tokenizer(text, add_special_tokens=False)["input_ids"] == one.response_ids:
            yield {
                **item,
                "prompt": tokenizer.decode(one.prompt_ids),
                "full_output": [text],
                "step_map": [one.step_map],
                "extracted_output": [""],
                "response_length": [len(one.response_ids)],
            }


@pytest.mark.parametrize("form", ENGINES)
def test_every_engines_form_comes_back_as_the_trajectory_it_was(form, decoded, write, run_import, data_set, tokenizer):
    path = write([ENGINES[form](one) for one in decoded])
    records = run_import(path, form, "--dataset", str(data_set))
    assert [record["question"] for record in records] == [item["question"] for item in ITEMS]
    for record, one in zip(records, decoded, strict=True):
        [found] = record_trajectories(record, "here")
        kept = {"logprobs": None, "entropies": None, "num_forwards": 0, "num_steps": max(one.step_map)}
        assert found == replace(one, **kept)
        assert record["prompt"] == tokenizer.decode(one.prompt_ids)
        ids = one.response_ids[:-1] if one.finish_reason == "stop" else one.response_ids
        assert record["full_output"] == [tokenizer.decode(ids)]
        assert record.get("logprob") == (None if form == "jetengine fork" else [one.logprobs])
        assert record.get("entropy") == ([one.entropies] if form == "jetengine" else None)


def test_the_releases_files_gain_token_ids(decoded, write, run_import, tokenizer):
    made = list(release_records(decoded, tokenizer))
    assert made
    for record, source in zip(run_import(write(made), "release"), made, strict=True):
        [found] = record_trajectories(record, "here")
        assert tokenizer.decode(found.response_ids) == source["full_output"][0]
        assert (found.step_map, record["block_size"]) == (source["step_map"][0], 4)


def test_imported_files_of_each_form_go_through_stages_2_and_3(
    decoded, write, run_import, data_set, tokenizer, checkpoint, tmp_path
):
    folder = tmp_path / "renamed"
    folder.mkdir()
    files = {name: [form(one) for one in decoded] for name, form in ENGINES.items()}
    files["release"] = list(release_records(decoded, tokenizer))
    for name, values in files.items():
        options = [] if name == "release" else ["--dataset", str(data_set)]
        run_import(write(values), name, *options)
        summary = rename_answers(tmp_path / "imported.json", folder / f"{name}.json")
        assert summary.num_kept == len(values)
    settings = [
        f"model.pretrained_model={checkpoint}",
        f"dataset.optimization_data={folder}",
        f"experiment.output_dir={tmp_path / 'run'}",
        "training.max_steps=1",
        "training.mixed_precision=no",
        f"training.global_batch_size={sum(map(len, files.values()))}",
    ]
    assert (train(load_config(TrainConfig, settings, "", "")) / "model.safetensors").is_file()


def test_what_was_generated_behind_the_stop_token_is_cut(decoded, write, run_import, data_set):
    ended = decoded[1]
    tail = -(len(ended.prompt_ids) + len(ended.response_ids)) % 4
    assert tail == 2
    whole = as_jetengine(ended)
    whole["token_ids"] += [9] * tail
    for name, value in (("trajectory", max(ended.step_map) + 1), ("logprobs", 0.0), ("entropies", 0.0)):
        whole[name] = whole[name] + [value] * tail
    [record] = run_import(write([whole | {"question": "?"}]), "jetengine")
    assert record["response_ids"] == [ended.response_ids]
    assert record["finish_reason"] == ["stop"]
    # The step that revealed what was cut was spent all the same.
    assert record["num_steps"] == [max(ended.step_map) + 1]
    assert record["question"] == "?"


def test_a_stop_that_left_no_token_counts_as_cut(decoded, write, run_import, caplog):
    one = as_lmdeploy(replace(decoded[0], finish_reason="stop")) | {"prompt_ids": decoded[0].prompt_ids}
    [record] = run_import(write([one]), "lmdeploy")
    assert record["finish_reason"] == ["length"]
    assert "1 response(s) that the engine calls stopped end without a stop token" in caplog.text


def test_several_outputs_to_a_problem_are_one_record(decoded, write, run_import, data_set):
    outputs = [as_jetengine(one) for one in decoded for _ in range(2)]
    records = run_import(write(outputs), "jetengine", "--dataset", str(data_set))
    assert [len(record["response_ids"]) for record in records] == [2] * len(ITEMS)


def test_without_a_tokenizer_what_the_file_holds_is_enough(decoded, write, tmp_path, caplog):
    one = as_sglang(decoded[1]) | {"prompt": "p", "prompt_ids": decoded[1].prompt_ids}
    target = tmp_path / "out.json"
    main([str(write([one])), "--format", "sglang", "-o", str(target)])
    [record] = read_json(target)
    assert (record["full_output"], record["finish_reason"]) == (["response"], ["stop"])
    assert "no tokenizer is given" in caplog.text


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("jetengine", lambda one: without(one, "trajectory"), "field trajectory: expected a list of whole numbers"),
        ("jetengine", lambda one: one | {"trajectory": [0, *one["trajectory"][1:]]}, "found 0 at position 0"),
        ("jetengine", lambda one: one | {"token_ids": [1]}, "at most one step per token of token_ids, found 22 steps"),
        ("jetengine", lambda one: one | {"logprobs": [0.0]}, "field logprobs: expected 22 numbers, one per step"),
        ("jetengine", lambda one: one | {"trajectory": one["trajectory"][::-1]}, "steps that increase from block to"),
        ("jetengine", lambda one: one | {"prompt_ids": [1, 2]}, "the tokens that stand beside the output, found"),
        ("jetengine", lambda one: one | {"token_ids": [-1, *one["token_ids"][1:]]}, "found -1 at position 0"),
        ("sglang", lambda one: one | {"meta_info": None}, "field meta_info: expected an object with step_maps"),
        ("sglang", lambda one: one | {"output_ids": one["output_ids"][:-1]}, "found 22 steps for 21 tokens"),
        ("sglang", lambda one: one | {"prompt_ids": [1, 2]}, "as many tokens as the engine counted, found"),
        ("sglang", lambda one: without(one, "prompt"), "expected the prompt: its tokens as prompt_ids beside"),
        ("lmdeploy", lambda one: one | {"finish_reason": "error"}, "stop or length: the response was generated"),
        ("lmdeploy", lambda one: one | {"step_map": [], "token_ids": []}, "one step for each of at least one token"),
        ("lmdeploy", lambda one: one | {"token_ids": "12"}, "field token_ids: expected a list of whole numbers"),
    ],
)
def test_an_invalid_output_is_one_error_that_names_it(
    form, change, said, decoded, write, run_import, tmp_path, tokenizer
):
    good, bad = (ENGINES[form](one) | {"prompt": tokenizer.decode(one.prompt_ids)} for one in decoded[:1] * 2)
    path = write([good, change(bad)])
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        run_import(path, form)
    assert str(caught.value).startswith(f"{path}, record 1")
    assert not (tmp_path / "imported.json").exists()
    assert len(run_import(path, form, "--skip-invalid")) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda outputs: outputs[:3], "as many outputs for each problem of the data set, found 3 for 4 problems"),
        (lambda outputs: outputs[::-1], "record 0, prompt: expected a prompt that asks the data set's question"),
    ],
)
def test_outputs_that_do_not_fit_the_data_set_are_refused(change, said, decoded, write, run_import, data_set):
    path = write(change([as_jetengine(one) for one in decoded]))
    with pytest.raises(DataError, match=said):
        run_import(path, "jetengine", "--dataset", str(data_set))


def test_a_release_text_of_other_tokens_is_refused_or_skipped(decoded, write, run_import, tokenizer):
    good, *_ = release_records(decoded, tokenizer)
    path = write([good, good | {"step_map": [good["step_map"][0][:-1]]}])
    with pytest.raises(
        DataError, match="record 1, response 0, field step_map: expected one step per token of the text"
    ):
        run_import(path, "release")
    assert len(run_import(path, "release", "--skip-invalid")) == 1


def test_a_file_without_a_valid_response_is_an_error(decoded, write, run_import):
    with pytest.raises(
        DataError, match=r"expected at least one valid response, found none \(.*record 0, field meta_info"
    ):
        run_import(write([{}]), "sglang", "--skip-invalid")


@pytest.mark.parametrize(
    ("steps", "prompt_length", "counted"),
    [
        ([1, 2, 1, 2, 3, 1, 1], 2, [1, 2, 3, 4, 5, 3, 6]),
        ([1, 1, 2, 2, 3, 4], 2, [1, 1, 2, 2, 3, 4]),
        ([1, 2, 2], 2, [1, 2, 4]),
        ([3, 1, 2], 1, [3, 1, 2]),
    ],
    ids=["anew", "on", "the last block's first token is cut", "one block"],
)
def test_steps_are_counted_over_the_response(steps, prompt_length, counted):
    assert recount(steps, 4, prompt_length, "here") == counted


@pytest.mark.parametrize("steps", [[1, 2, 2, 3, 2, 3, 1, 2, 3, 4], [1, 2, 9, 8, 7, 1]])
def test_blocks_that_count_in_no_way_are_refused(steps):
    with pytest.raises(DataError, match="steps that go on counting from block to block, or that begin at 1 in each"):
        recount(steps, 4, 2, "here")


@pytest.mark.parametrize(
    ("strategy", "rank_by", "temperature"),
    [
        ("low_confidence_static", "confidence", 0),
        ("low_confidence_static", "confidence", 0.001),  # confidences that tie at 1
        ("low_confidence_dynamic", "confidence", 0),
        ("entropy_bounded", "entropy", 0),
        ("sequential", "position", 0),
    ],
)
def test_what_our_decoder_wrote_replays_without_a_difference(
    strategy, rank_by, temperature, decode_items, checkpoint, tokenizer
):
    changes = {"remasking_strategy": strategy, "denoising_steps": 4, "dynamic_threshold": 0.05, "eb_threshold": 1.0}
    model, choices = load_model(checkpoint), 0
    for one in decode_items(**changes, temperature=temperature):
        found = replay(model, one, tokenizer.mask_token_id, 4, rank_by, temperature)
        assert (found.token_differences, found.step_differences) == ([], [])
        assert found.tokens + found.left_out == len(one.response_ids)
        assert found.left_out == (len(one.prompt_ids) + 22) % 4
        choices += found.choices
        if temperature == 0:
            replayed = torch.tensor([found.logprobs[place] for place in range(found.tokens)])
            torch.testing.assert_close(replayed, torch.tensor(one.logprobs[: found.tokens]), atol=1e-4, rtol=0)
    assert choices


def test_a_wrong_token_and_a_wrong_step_are_found_with_their_margins(decoded, checkpoint, tokenizer):
    model, one = load_model(checkpoint), decoded[0]
    place = next(place for place in range(4, 16) if (len(one.prompt_ids) + place) % 4 == 0)
    block = slice(place, place + 4)
    early = min(one.step_map[block])
    swapped = [2 * early + 1 - step for step in one.step_map[block]]
    wrong = replace(one, step_map=[*one.step_map[:place], *swapped, *one.step_map[place + 4 :]])
    found = replay(model, wrong, tokenizer.mask_token_id, 4)
    [step] = [step for step in found.step_differences if step.step == early]
    assert (step.position, step.expected) == (
        place + swapped.index(early),
        place + one.step_map[block].index(early),
    )
    assert step.margin > 0

    last = place + one.step_map[block].index(early + 1)
    ids = list(one.response_ids)
    ids[last] = 9 if ids[last] != 9 else 10
    [token, *_] = replay(model, replace(one, response_ids=ids), tokenizer.mask_token_id, 4).token_differences
    assert (token.position, token.recorded, token.best) == (last, ids[last], one.response_ids[last])
    # The margin by hand: the state before that step, shown whole.
    known = [
        token if step <= early else tokenizer.mask_token_id
        for token, step in zip(ids[: place + 4], one.step_map, strict=False)
    ]
    with torch.no_grad():
        logits = model(torch.tensor([one.prompt_ids + known])).logits[0, len(one.prompt_ids) + last].float()
    logits[tokenizer.mask_token_id] = -torch.inf
    assert token.margin == pytest.approx(float(logits.max() - logits[ids[last]]), abs=1e-4)


def test_verify_tells_what_differs_and_keeps_it_all(decoded, write, run_import, data_set, checkpoint, tmp_path, capsys):
    outputs = [as_jetengine(one) for one in decoded]
    outputs[0]["token_ids"] = [*outputs[0]["token_ids"][:-6], 9, *outputs[0]["token_ids"][-5:]]
    run_import(write(outputs), "jetengine", "--dataset", str(data_set), "--verify", str(checkpoint), "--sample", "2")
    said = capsys.readouterr().out
    assert "2 response(s) replayed" in said
    assert re.search(r"tokens that are not the most probable one: [1-9]\d* of \d+, \d+ of them by more than 0", said)
    assert re.search(r"record 0, response 0:\n  first token: position 16, step \d+: 9 where \d+ is more probable", said)
    assert "recorded log-probabilities: off by" in said
    report = read_json(tmp_path / "imported.verify.json")
    assert [one["record"] for one in report["responses"]] == [0, 2]
    assert report["responses"][0]["token_differences"][0]["position"] == 16
    assert report["responses"][1]["token_differences"] == []


def test_a_token_that_the_model_does_not_have_is_one_error(decoded, write, run_import, checkpoint):
    one = as_jetengine(decoded[0])
    one["token_ids"] = [*one["token_ids"][:-1], 5000]
    with pytest.raises(DataError, match="record 0, response 0: expected token ids below the model's vocab_size = 1080"):
        run_import(write([one]), "jetengine", "--verify", str(checkpoint))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "vllm"], "invalid choice: 'vllm'"),
        (["--format", "sglang", "--temperature", "-1"], "argument --temperature: invalid temperature value: '-1'"),
        (["--format", "sglang", "--sample", "0"], "argument --sample: invalid count value: '0'"),
        (["--format", "sglang", "-o", "x.json"], "x.json: expected another file than the engine's own, found the same"),
    ],
)
def test_a_usage_mistake_is_named(options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        main(["x.json", "-o", "out.json", *options])
