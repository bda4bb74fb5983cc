import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from t3d.config import EvalConfig, load_config
from t3d.data.preprocess import rename_answers
from t3d.decoding.cache import PagedCache
from t3d.errors import CheckpointError, ConfigError, DataError
from t3d.rollout import rollout, rollout_path
from t3d.rollout import run as run_module
from t3d.rollout import worker as worker_module
from t3d.rollout.shard import Shard
from t3d.sdar.checkpoint import load_tokenizer
from t3d.trajectory import Trajectory, read_rollouts, record_trajectories

FIELDS = {
    "question": str,
    "ground_truth_answer": str,
    "prompt": str,
    "prompt_ids": list,
    "full_output": list,
    "extracted_output": list,
    "response_ids": list,
    "response_length": list,
    "step_map": list,
    "finish_reason": list,
    "num_forwards": list,
    "num_steps": list,
    "block_size": int,
}


def decoded(config: EvalConfig) -> list[dict]:
    return json.loads(rollout(config).read_text())


def common_token(records: list[dict]) -> int:
    """The token that most responses hold: a stop token that ends some of them and not others."""
    counts = Counter(token for record in records for token in set(record["response_ids"][0]))
    return next(token for token, count in counts.most_common() if count < len(records))


class TestFormat:
    def test_every_record_has_the_contracts_fields(self, settings, dataset, checkpoint):
        config = settings("rollout.num_response_per_task=2")
        path = rollout(config)
        assert path.name == "outputs-eval-checkpoint-TinyMath.json"
        assert path == rollout_path(config)
        records = json.loads(path.read_text())
        items = json.loads(dataset.read_text())
        tokenizer = load_tokenizer(checkpoint)
        assert len(records) == len(items)
        for record, item in zip(records, items, strict=True):
            assert {name: type(value) for name, value in record.items()} == FIELDS
            assert {name: record[name] for name in item} == item
            assert tokenizer(record["prompt"])["input_ids"] == record["prompt_ids"]
            for name, kind in FIELDS.items():
                if kind is list and name != "prompt_ids":
                    assert len(record[name]) == 2
            for index in range(2):
                ids, steps = record["response_ids"][index], record["step_map"][index]
                assert len(ids) == len(steps) == record["response_length"][index] <= 14
                assert min(steps) == 1
                assert max(steps) <= record["num_steps"][index] <= record["num_forwards"][index]
                assert record["finish_reason"][index] in ("stop", "length")
                assert record["finish_reason"][index] == "stop" or len(ids) == 14

    def test_every_response_is_a_trajectory_that_stage_2_accepts(self, settings):
        path = rollout(settings("rollout.num_response_per_task=2"))
        for index, record in read_rollouts(path):
            assert len(record_trajectories(record, f"record {index}")) == 2

    def test_the_files_beside_it_tell_how_it_was_made(self, settings, checkpoint):
        config = settings()
        path = rollout(config)
        assert sorted(file.name for file in path.parent.iterdir()) == [
            "outputs-eval-checkpoint-TinyMath.config.yaml",
            "outputs-eval-checkpoint-TinyMath.json",
            "outputs-eval-checkpoint-TinyMath.meta.json",
        ]
        assert load_config(EvalConfig, [f"config={path.with_suffix('.config.yaml')}"], "", "") == config
        details = json.loads(path.with_suffix(".meta.json").read_text())
        assert details["dataset"] == "TinyMath"
        assert details["checkpoint"] == str(checkpoint)
        assert details["seconds"] > 0
        assert details["fingerprint"]["prompt_style"] == "plain"

    def test_the_style_of_prompts_is_the_configurations_and_told(self, settings, tmp_path):
        data = tmp_path / "options.jsonl"
        data.write_text(json.dumps({"question": "Which?", "ground_truth_answer": "B"}) + "\n")
        ends = {}
        for style in ("plain", "release"):
            path = rollout(
                settings(
                    f"evaluation.eval_dataset={data}",
                    "evaluation.data_type=option",
                    "evaluation.limit=null",
                    f"evaluation.prompt_style={style}",
                )
            )
            details = json.loads(path.with_suffix(".meta.json").read_text())
            assert details["fingerprint"]["prompt_style"] == style
            ends[style] = json.loads(path.read_text())[0]["prompt"].partition("{}.")[2]
        assert ends == {
            "plain": "<|im_end|>\n<|im_start|>assistant\n",
            "release": " <|im_end|>\n<|im_start|>assistant\n",
        }

    def test_step_maps_are_left_out_on_request(self, settings):
        whole = decoded(settings())
        for record in whole:
            del record["step_map"]
        assert decoded(settings("evaluation.output_unmasking_history=false")) == whole

    def test_a_limit_takes_the_first_problems_and_changes_none_of_them(self, settings):
        whole = decoded(settings())
        assert decoded(settings("evaluation.limit=3")) == whole[:3]
        assert decoded(settings("evaluation.limit=99")) == whole


class TestStopTokens:
    @pytest.mark.parametrize("spelled", ["id", "string"])
    def test_a_response_ends_with_the_first_stop_token(self, settings, checkpoint, spelled):
        tokenizer = load_tokenizer(checkpoint)
        free = decoded(settings("rollout.stop_token_list=[]"))
        assert {reason for record in free for reason in record["finish_reason"]} == {"length"}
        stop = common_token(free)
        given = stop if spelled == "id" else json.dumps(tokenizer.convert_ids_to_tokens(stop))
        stopped = decoded(settings(f"rollout.stop_token_list=[{given}]"))
        for record, before in zip(stopped, free, strict=True):
            ids, unstopped = record["response_ids"][0], before["response_ids"][0]
            if stop in unstopped:
                assert ids == unstopped[: unstopped.index(stop) + 1]
                assert record["finish_reason"] == ["stop"]
                assert record["full_output"] == [tokenizer.decode(ids[:-1])]
            else:
                assert ids == unstopped
                assert record["finish_reason"] == ["length"]
                assert record["full_output"] == [tokenizer.decode(ids)]
        assert {record["finish_reason"][0] for record in stopped} == {"stop", "length"}

    @pytest.mark.parametrize("token", ["nonsense-token", "-1", "99999", "1.5", "true", "[1]", "null"])
    def test_a_token_that_the_model_does_not_have_is_refused(self, settings, tmp_path, token):
        with pytest.raises(ConfigError, match=r"rollout\.stop_token_list: expected tokens of the model's vocabulary"):
            rollout(settings(f"rollout.stop_token_list=[{token}]"))
        assert list(tmp_path.iterdir()) == []


class TestReproducibility:
    def test_batching_does_not_change_a_byte(self, settings, tmp_path):
        contents = []
        for number, batching in enumerate(
            (
                ["rollout.max_active=1"],
                ["rollout.max_active=3"],
                ["rollout.max_active=64"],
                ["rollout.batch_size=1"],
                ["rollout.batch_size=4", "rollout.max_active=2"],
                ["rollout.batch_size=0"],
                ["rollout.paged=true", "rollout.max_active=4"],
            )
        ):
            config = settings(f"experiment.project={tmp_path / str(number)}", *batching)
            contents.append(rollout(config).read_bytes())
        assert len(set(contents)) == 1

    def test_pages_are_used_where_they_are_asked_for_and_are_not_what_a_file_depends_on(self, settings, monkeypatch):
        made, begin = [], PagedCache.__init__
        monkeypatch.setattr(PagedCache, "__init__", lambda self, *given: made.append(given) or begin(self, *given))
        path = rollout(settings("rollout.paged=false"))
        assert not made, "nor by default on a CPU"
        assert rollout(settings("rollout.paged=true")) == path
        assert not made, "the file is whole"
        rollout(settings("rollout.paged=true", "rollout.resume=false"))
        assert made

    def test_responses_to_one_problem_differ_and_seeds_differ(self, settings):
        records = decoded(settings("rollout.num_response_per_task=2"))
        assert all(len({tuple(ids) for ids in record["response_ids"]}) == 2 for record in records)
        reseeded = decoded(settings("rollout.num_response_per_task=2", "rollout.seed=1"))
        assert all(one["response_ids"] != other["response_ids"] for one, other in zip(records, reseeded, strict=True))

    @pytest.mark.parametrize("num_node", [2, 3])
    def test_the_shares_of_several_machines_are_the_file_of_one(self, settings, num_node):
        responses = "rollout.num_response_per_task=2"
        whole = decoded(settings(responses))
        parts = []
        for index in range(num_node):
            config = settings(responses, f"evaluation.num_node={num_node}", f"evaluation.node_index={index}")
            assert rollout_path(config).name == f"outputs-{index}-eval-checkpoint-TinyMath.json"
            parts += decoded(config)
        assert parts == whole

    def test_more_machines_than_problems_are_refused(self, settings):
        with pytest.raises(ConfigError, match=r"evaluation.num_node: expected at most one machine per problem \(10\)"):
            rollout(settings("evaluation.num_node=11"))


class TestResume:
    def test_an_interrupted_run_decodes_only_what_is_left(self, settings, interrupted, monkeypatch, tmp_path):
        whole = rollout(settings(f"experiment.project={tmp_path / 'whole'}")).read_bytes()
        interrupted("rollout.max_active=2")
        added = []
        add = Shard.add
        monkeypatch.setattr(Shard, "add", lambda self, number, *rest: (added.append(number), add(self, number, *rest)))
        path = rollout(settings())
        assert len(added) == 6
        assert path.read_bytes() == whole
        assert not path.with_suffix(".partial-0.jsonl").exists()

    def test_other_settings_are_refused_and_leave_what_is_there(self, settings, interrupted):
        interrupted()
        partial = rollout_path(settings()).with_suffix(".partial-0.jsonl")
        before = partial.read_bytes()
        for override, change in (
            ("rollout.seed=1", "seed was 0, is 1"),
            ("rollout.temperature=0.5", "temperature was 0.7, is 0.5"),
            ("rollout.max_token=15", "max_new_tokens was 14, is 15"),
            ("evaluation.limit=9", "problems was"),
        ):
            with pytest.raises(DataError) as caught:
                rollout(settings(override))
            assert "rollout.resume=false starts over" in str(caught.value)
            assert change in str(caught.value)
        assert partial.read_bytes() == before

    def test_starting_over_forgets_the_interrupted_run(self, settings, interrupted, tmp_path):
        interrupted()
        path = rollout(settings("rollout.seed=1", "rollout.resume=false"))
        other = rollout(settings("rollout.seed=1", f"experiment.project={tmp_path / 'other'}"))
        assert path.read_bytes() == other.read_bytes()

    def test_a_cut_line_of_the_shard_is_decoded_again(self, settings, interrupted, tmp_path):
        whole = rollout(settings(f"experiment.project={tmp_path / 'whole'}")).read_bytes()
        interrupted()
        partial = rollout_path(settings()).with_suffix(".partial-0.jsonl")
        os.truncate(partial, partial.stat().st_size - 7)
        assert rollout(settings()).read_bytes() == whole

    def test_a_finished_file_is_kept_without_decoding(self, settings, monkeypatch):
        path = rollout(settings())
        before = path.stat().st_mtime_ns
        monkeypatch.setattr(run_module, "_decode", lambda *_: pytest.fail("decoded again"))
        assert rollout(settings("rollout.max_active=1")) == path
        assert path.stat().st_mtime_ns == before

    def test_a_finished_file_that_was_moved_away_is_not_decoded_again(self, settings, tmp_path):
        path = rollout(settings())
        content = path.read_bytes()
        path.rename(tmp_path / "moved.json")
        with pytest.raises(DataError) as caught:
            rollout(settings())
        assert str(caught.value) == (
            f"{path}: expected the finished rollout that {path.stem}.meta.json tells of: copy it elsewhere instead of"
            " moving it (rollout.resume=false decodes it again), found none there"
        )
        assert rollout(settings("rollout.resume=false")).read_bytes() == content
        path.unlink()
        rollout(settings("rollout.seed=1"))  # another rollout's meta file is in nobody's way

    def test_a_finished_file_of_other_settings_is_renamed(self, settings):
        path = rollout(settings())
        first = path.read_bytes()
        rollout(settings("rollout.seed=1"))
        second = path.read_bytes()
        rollout(settings("rollout.seed=2"))
        assert path.with_suffix(".old-1.json").read_bytes() == first
        assert path.with_suffix(".old-2.json").read_bytes() == second
        kept = json.loads(path.with_suffix(".old-1.meta.json").read_text())
        assert kept["fingerprint"]["seed"] == 0
        assert len({first, second, path.read_bytes()}) == 3

    def test_a_finished_file_stays_until_the_one_of_other_settings_is_ready(self, settings, interrupted):
        path = rollout(settings())
        before = path.read_bytes()
        interrupted("rollout.seed=1")
        assert path.read_bytes() == before
        assert rollout(settings()) == path
        rollout(settings("rollout.seed=1"))
        assert path.with_suffix(".old-1.json").read_bytes() == before


@pytest.fixture
def some_fail(monkeypatch):
    """Makes every third response fail, and the others tell their tokens' figures."""
    decode = worker_module.iter_decode

    def failing(model, prompts, decoding, max_active, streams, *others, **rest):
        for place, trajectory in decode(model, prompts, decoding, max_active, streams, *others, **rest):
            if streams[place] % 3 == 1:
                yield place, Trajectory(trajectory.prompt_ids, [], [], "error", 1, 0, error=f"reason {streams[place]}")
            else:
                figures = [float(step) for step in trajectory.step_map]
                yield place, replace(trajectory, logprobs=figures, entropies=figures)

    monkeypatch.setattr(worker_module, "iter_decode", failing)


@pytest.mark.usefixtures("some_fail")
class TestFailures:
    def test_failed_responses_keep_their_place_and_are_told_and_counted(self, settings, caplog):
        with caplog.at_level(logging.INFO):
            path = rollout(settings("rollout.num_response_per_task=2"))
        records = json.loads(path.read_text())
        reasons = [
            [f"reason {number}" if number % 3 == 1 else None for number in (2 * i, 2 * i + 1)] for i in range(10)
        ]
        assert [record.get("error", [None, None]) for record in records] == reasons
        for record, errors in zip(records, reasons, strict=True):
            for index, error in enumerate(errors):
                assert (
                    (error is None) == (record["finish_reason"][index] != "error") == bool(record["full_output"][index])
                )
                if error is not None:
                    assert record["response_ids"][index] == record["step_map"][index] == []
                    assert record["response_length"][index] == record["num_steps"][index] == 0
                    assert record["num_forwards"][index] == 1
        assert json.loads(path.with_suffix(".meta.json").read_text())["failed"] == 7
        messages = [record.getMessage() for record in caplog.records]
        assert "failed: item 0, response 1: reason 1" in messages
        assert messages[-1] == f"20 responses, 7 of them failed: {path}"

    def test_a_complete_file_with_failures_is_not_decoded_again(self, settings, monkeypatch):
        path = rollout(settings())
        monkeypatch.setattr(run_module, "_decode", lambda *_: pytest.fail("decoded again"))
        assert rollout(settings()) == path

    def test_failures_of_an_interrupted_run_are_stored_too(self, settings, interrupted, tmp_path):
        whole = rollout(settings(f"experiment.project={tmp_path / 'whole'}")).read_bytes()
        interrupted()
        path = rollout(settings())
        assert path.read_bytes() == whole
        assert json.loads(path.with_suffix(".meta.json").read_text())["failed"] == 3

    def test_stage_2_drops_them(self, settings, tmp_path):
        summary = rename_answers(rollout(settings("rollout.num_response_per_task=2")), tmp_path / "renamed.json")
        assert (summary.num_kept, summary.dropped_responses.total()) == (10, 7)

    def test_figures_per_token_are_kept_on_request(self, settings):
        for record in decoded(settings("rollout.record=[logprob,entropy]")):
            assert record["logprob"] == record["entropy"] == record["step_map"]
        [record, *_] = decoded(settings("rollout.record=[entropy]"))
        assert "logprob" not in record
        [record, *_] = decoded(settings())
        assert "entropy" not in record


class TestMistakes:
    def test_a_rollout_without_one_response_is_kept_and_ends_with_the_reason(self, settings, tmp_path, dataset):
        problems = [{**item, "question": "How many? " * 2000} for item in json.loads(dataset.read_text())[:2]]
        data = tmp_path / "long.json"
        data.write_text(json.dumps(problems))
        for _ in range(2):  # a finished file is no better for being there
            with pytest.raises(
                DataError, match=r"a response that could be decoded, found none of 2 \(the first: [0-9]+ prompt tok"
            ):
                rollout(settings(f"evaluation.eval_dataset={data}"))
        [path] = tmp_path.glob("**/outputs-*-long.json")
        assert [len(record["error"]) for record in json.loads(path.read_text())] == [1, 1]

    def test_what_an_earlier_rollout_left_in_the_problems_is_not_taken_for_the_new_ones(
        self, settings, tmp_path, dataset
    ):
        left = {"error": ["old"], "correctness": [True, False], "logprob": [[-1.0]], "level": 3}
        problems = [{**item, **left, "answer": "ours"} for item in json.loads(dataset.read_text())[:2]]
        data = tmp_path / "again.json"
        data.write_text(json.dumps(problems))
        records = decoded(settings(f"evaluation.eval_dataset={data}"))
        for record in records:
            assert not {"error", "correctness", "logprob", "answer"} & record.keys()
            assert (record["level"], record["reference_answer"]) == (3, "ours")
        [path] = tmp_path.glob("**/outputs-*-again.json")
        assert rename_answers(path, tmp_path / "renamed.json").num_kept == 2

    def test_a_prompt_without_room_fails_alone(self, settings, tmp_path, dataset, caplog):
        problems = json.loads(dataset.read_text())[:3]
        problems[1]["question"] = "How many? " * 2000
        data = tmp_path / "long.json"
        data.write_text(json.dumps(problems))
        whole = decoded(settings("evaluation.limit=3", "rollout.num_response_per_task=3"))
        records = decoded(settings(f"evaluation.eval_dataset={data}", "rollout.num_response_per_task=3"))
        assert [records[0], records[2]] == [whole[0], whole[2]]
        assert records[1]["finish_reason"] == ["error"] * 3
        assert all("prompt tokens" in reason for reason in records[1]["error"])
        assert f"failed: item 1, response 2: {records[1]['error'][2]}" in caplog.messages

    def test_a_checkpoint_without_weights_leaves_nothing_behind(self, settings, checkpoint, tmp_path):
        folder = tmp_path / "model" / "checkpoint"
        shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        with pytest.raises(CheckpointError) as caught:
            rollout(settings(f"evaluation.checkpoint_path={folder}"))
        assert str(caught.value) == f"{folder}: expected weights (*.safetensors), found none"
        assert not [path for path in (tmp_path / "temp_data").rglob("*") if path.is_file()]
        rollout(settings())  # the same output, with the weights

    def test_a_failed_run_keeps_the_finished_file(self, settings):
        path = rollout(settings())
        with pytest.raises(ConfigError):
            rollout(settings("rollout.seed=1", "rollout.device=cuda:77"))
        assert path.exists()
        assert not path.with_suffix(".old-1.json").exists()

    def test_a_missing_model_is_named(self, settings, tmp_path):
        with pytest.raises(CheckpointError, match="expected a model folder or a hub id"):
            rollout(settings(f"evaluation.checkpoint_path={tmp_path / 'none'}"))
        with pytest.raises(
            ConfigError, match=r"evaluation\.checkpoint_path: expected a model folder or hub id, found null"
        ):
            rollout(settings("evaluation.checkpoint_path=null"))

    def test_a_project_that_is_a_file_is_refused(self, settings, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="expected a folder that can be written to"):
            rollout(settings(f"experiment.project={tmp_path / 'file'}"))

    def test_names_with_dots_and_trailing_slashes_are_kept(self, settings, checkpoint, tmp_path):
        config = settings(f"evaluation.checkpoint_path={checkpoint}-1.7B/", "evaluation.eval_dataset=MATH-v1.5")
        assert rollout_path(config).name == "outputs-eval-checkpoint-1.7B-MATH-v1.5.json"

    def test_the_current_folder_has_a_name_too(self, settings, checkpoint, monkeypatch):
        monkeypatch.chdir(checkpoint)
        config = settings("evaluation.checkpoint_path=.", "evaluation.eval_dataset=MATH.jsonl")
        assert rollout_path(config).name == f"outputs-eval-{checkpoint.name}-MATH.json"

    @pytest.mark.parametrize("name", ["experiment.project", "experiment.output_dir"])
    def test_a_place_in_the_home_folder(self, settings, monkeypatch, tmp_path, name):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert rollout_path(settings(f"{name}=~/here")).parents[1] == tmp_path / "home" / "here"
