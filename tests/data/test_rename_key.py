import json
import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from t3d.data.preprocess import rename_answers
from t3d.errors import DataError
from t3d.evaluation.grade import Grade, _graded
from t3d.storage import files
from t3d.storage.files import read_json, write_json_list

SCRIPT = Path(__file__).parents[2] / "data" / "rename_key.py"
STEPS, IDS = [1, 3, 2, 3, 2, 4], [10, 11, 12, 13, 14, 15]


def rollout(**changes: object) -> dict:
    """A record of this project, decoded with block size 4 after a prompt of 3 tokens."""
    record = {
        "question": "1+1?",
        "test_list": ["one", "two"],
        "prompt": "abc",
        "prompt_ids": [5, 6, 7],
        "block_size": 4,
        "full_output": ["first é", "second"],
        "extracted_output": ["1", "2"],
        "response_length": [6, 1],
        "response_ids": [IDS, [20]],
        "step_map": [STEPS, [1]],
        "finish_reason": ["stop", "length"],
        "num_forwards": [5, 1],
        "num_steps": [4, 1],
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def release(**changes: object) -> dict:
    return {"question": "1+1?", "prompt": "abc", "full_output": ["text"], "step_map": [STEPS], **changes}


def renamed(record: dict) -> dict:
    return {("answer" if key == "full_output" else key): value for key, value in record.items()}


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


STAGE_TWO = ("--model_name", "SDAR-4B-Chat", "--dataset", "MATH_train")
SOURCE, TARGET = "SDAR-4B-Chat-MATH_train.json", "SDAR-4B-Chat-MATH_train_renamed.json"


def one_error_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_script_renames_keeps_the_rest_and_drops_the_invalid(tmp_path):
    records = [rollout(), release(step_map=[[0, 1, 2]]), release(), rollout(step_map=[STEPS, [1, 2]])]
    (tmp_path / SOURCE).write_text(json.dumps(records))
    result = run_script(tmp_path, *STAGE_TWO)
    assert result.returncode == 0, result.stderr
    first, second = renamed(rollout()), renamed(release())
    one_response = {
        key: value[:1] if isinstance(value, list) and key not in ("test_list", "prompt_ids") else value
        for key, value in first.items()
    }
    written = read_json(tmp_path / TARGET)
    assert written == [first, second, one_response]
    assert list(written[0]) == list(first)
    assert sorted(os.listdir(tmp_path)) == [SOURCE, TARGET]
    assert result.stderr.splitlines() == [
        "dropped record 1: response 0, field step_map: expected whole numbers of at least 1, found 0 at position 0",
        "dropped record 3, response 1: field step_map: expected one step per token of response_ids, "
        "found 2 steps for 1 tokens",
        f"{TARGET}: 4 records read, 3 kept, 1 dropped (1 expected whole numbers of at least 1); "
        "1 single responses dropped (1 expected one step per token of response_ids)",
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (["no object"], "expected an object, found list"),
        (
            rollout(full_output=None),
            "field full_output: expected a list with one entry per response, found nothing",
        ),
        (renamed(rollout()), "field full_output: expected the field that stage 2 renames, found nothing"),
        (rollout(answer=["42", "41"]), "field answer: expected no such field before stage 2"),
        (rollout(response_ids=[IDS]), "field response_ids: expected one entry per response, found 1 for 2"),
        (rollout(step_map=None), "field step_map: expected a list"),
        (
            rollout(block_size=2, step_map=[STEPS, [0]]),
            "response 0, field step_map: expected steps that increase",
        ),
        (release(full_output=[]), "field full_output: expected at least one response"),
        (release(step_map=[[1, 2, True]]), "found True at position 2"),
        (release(step_map=[[2] + [1] * 39 + [1]]), "field step_map: expected steps that increase"),
    ],
)
def test_an_invalid_record_is_dropped_with_its_reason(tmp_path, caplog, bad, reason):
    write_json_list(tmp_path / "in.json", [bad, rollout()])
    with caplog.at_level(logging.WARNING):
        summary = rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    assert (summary.num_read, summary.num_kept, summary.dropped_records.total()) == (2, 1, 1)
    [report] = [record.getMessage() for record in caplog.records]
    assert report.startswith("dropped record 0: ")
    assert reason in report
    assert read_json(tmp_path / "out.json") == [renamed(rollout())]


def test_responses_that_failed_are_dropped_and_counted(tmp_path, caplog):
    failed = {"full_output": ["first é", ""], "response_ids": [IDS, []], "step_map": [STEPS, []]}
    failed |= {
        "finish_reason": ["stop", "error"],
        "error": [None, "prompt of 9000 tokens"],
        "logprob": [[-0.5] * 6, []],
    }
    all_failed = {"full_output": [""], "response_ids": [[]], "step_map": [[]], "finish_reason": ["error"]}
    all_failed |= {"error": ["no room"], "extracted_output": [""], "response_length": [0]}
    records = [rollout(**failed), rollout(**all_failed, num_forwards=[1], num_steps=[0]), rollout(error="my own field")]
    write_json_list(tmp_path / "in.json", records)
    with caplog.at_level(logging.WARNING):
        summary = rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    assert summary.dropped_responses == summary.dropped_records == {"a response that was decoded": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "dropped record 0, response 1: field error: expected a response that was decoded, found prompt of 9000 tokens",
        "dropped record 1: response 0, field error: expected a response that was decoded, found no room",
    ]
    first, second = read_json(tmp_path / "out.json")
    assert (first["answer"], first["response_ids"], first["logprob"]) == (["first é"], [IDS], [[-0.5] * 6])
    assert "error" not in first
    assert second == renamed(rollout(error="my own field"))


def test_the_problems_own_answer_is_kept_under_another_name(tmp_path):
    write_json_list(tmp_path / "in.json", [rollout(answer="42")])
    rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    assert read_json(tmp_path / "out.json") == [{**renamed(rollout()), "reference_answer": "42"}]


@pytest.mark.parametrize("data_type", ["math", "code"])
def test_what_grading_adds_is_dropped_with_its_response(tmp_path, data_type):
    grades = [Grade(True, "graded"), Grade(None, "failed", "no response")]
    record = rollout(finish_reason=["stop", "error"], error=[None, "too long"])
    write_json_list(tmp_path / "in.json", [_graded(record, ["2", ""], grades, data_type)])
    rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    [kept] = read_json(tmp_path / "out.json")
    added = kept.keys() - rollout().keys() - {"answer", "finish_reason"}
    assert {"correctness", "grading", "grading_detail"} < added
    assert {name: len(kept[name]) for name in added} == dict.fromkeys(added, 1)


def test_only_the_first_drops_are_listed_but_all_are_counted(tmp_path, caplog):
    write_json_list(tmp_path / "in.json", [rollout(), *([{}] * 30)])
    with caplog.at_level(logging.INFO):
        rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 22
    assert lines[20] == "dropped 10 more"
    assert "31 records read, 1 kept, 30 dropped (30 expected a string)" in lines[21]


def test_texts_with_unpaired_surrogates_pass_through(tmp_path):
    record = release(full_output=["\ud83d"])
    write_json_list(tmp_path / "in.json", [record])
    rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    assert read_json(tmp_path / "out.json") == [renamed(record)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, f"{SOURCE}: expected a readable file, found No such file"),
        ("", f"{SOURCE}, line 1 column 1: expected a JSON list, or an object on each line, found an empty file"),
        ("{\n}", f"{SOURCE}, line 1 column 1: expected a JSON list"),
        ("[]", f"{SOURCE}: expected at least one valid record, found none in 0"),
        (json.dumps([rollout()])[:-30], f"{SOURCE}, line 1 column"),
        (
            '[{"prompt": 3}]',
            "found none in 1, dropped record 0: field prompt: expected a string, found number",
        ),
    ],
    ids=["missing", "empty", "object", "no-records", "truncated", "none-valid"],
)
def test_an_unusable_file_is_one_line_and_leaves_the_old_output(tmp_path, text, complaint):
    if text is not None:
        (tmp_path / SOURCE).write_text(text)
    (tmp_path / TARGET).write_text("old")
    assert complaint in one_error_line(run_script(tmp_path, *STAGE_TWO))
    assert (tmp_path / TARGET).read_text() == "old"
    assert set(os.listdir(tmp_path)) <= {SOURCE, TARGET}


def test_a_file_that_breaks_off_after_valid_records_writes_nothing(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps([rollout(), rollout()])[:-30])
    with pytest.raises(DataError, match=r"in\.json, line 1 column"):
        rename_answers(tmp_path / "in.json", tmp_path / "out.json")
    assert os.listdir(tmp_path) == ["in.json"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [((), "--model_name, --dataset"), ((*STAGE_TWO, "--output", "x"), "unrecognized arguments: --output x")],
)
def test_usage_mistakes_are_one_line(tmp_path, arguments, complaint):
    assert complaint in one_error_line(run_script(tmp_path, *arguments))


def test_help_tells_purpose_and_an_example(tmp_path):
    result = run_script(tmp_path, "--help")
    assert result.returncode == 0
    assert "rename its full_output to answer" in " ".join(result.stdout.split())
    assert "python rename_key.py --model_name SDAR-4B-Chat --dataset MATH_train" in result.stdout


def peak_memory(path: Path, num_records: int) -> int:
    write_json_list(path, ({**rollout(), "question": "x" * 1000} for _ in range(num_records)))
    tracemalloc.start()
    rename_answers(path, path.with_suffix(".out"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_CHARS", 10_000)
    small, large = (peak_memory(tmp_path / f"{n}.json", n) for n in (100, 1000))
    assert (tmp_path / "1000.json").stat().st_size > 1_000_000
    assert large < 1.5 * small


def test_json_lines_are_read_where_there_is_no_json(tmp_path):
    lines = Path(tmp_path / SOURCE).with_suffix(".jsonl")
    lines.write_text("".join(json.dumps(record) + "\n" for record in (rollout(), release())))
    assert run_script(tmp_path, *STAGE_TWO).returncode == 0
    assert read_json(tmp_path / TARGET) == [renamed(rollout()), renamed(release())]
    write_json_list(tmp_path / SOURCE, [rollout()])
    assert run_script(tmp_path, *STAGE_TWO).returncode == 0
    assert read_json(tmp_path / TARGET) == [renamed(rollout())]
