"""Bad input to eval.py: one line on standard error, status 2, and nothing written."""

from t3d.entry import CACHES, run_entry

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import eval as eval_entry

MATH = {"question": "1+1?", "ground_truth_answer": "2", "full_output": [r"\boxed{2}"]}
CODE = {
    "question": "One.",
    "test_method": "function",
    "test_list": ["assert x == 1"],
    "test_time_limit": 5,
    "full_output": ["```python\nx = 1\n```"],
}
OPTION = {"question": "Which?", "ground_truth_answer": "B", "full_output": [r"\boxed{B}"]}
DETAILS: dict[str, Any] = {
    "dataset": "TinyMath",
    "checkpoint": "model",
    "problems": 1,
    "seconds": 1.5,
    "fingerprint": {
        "block_size": 4,
        "denoising_steps": 2,
        "temperature": 0.1,
        "top_k": 0,
        "top_p": 1.0,
        "remasking_strategy": "sequential",
        "seed": 0,
        "dynamic_threshold": 0.9,
        "max_new_tokens": 8,
    },
}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Caches and working folder of this test alone."""
    monkeypatch.setenv("T3D_CACHE_ROOT", str(tmp_path / "cache"))
    for variable in CACHES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def start(*overrides: str) -> None:
    sys.argv = ["eval.py", "experiment.project=project", "execute.sandbox=none", "execute.num_workers=1", *overrides]
    run_entry(eval_entry.main)


def complaint(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What eval.py says of a mistake, after `error: `; checks form, status and that nothing was written."""
    with pytest.raises(SystemExit) as caught:
        start(*overrides)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"error: [^\n]+: expected [^\n]+, found [^\n]+\n", output.err), output.err
    assert not [path for path in Path("project").rglob("*") if path.is_file()]
    return output.err.removeprefix("error: ").strip()


def changed(record: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    return [record, {name: value for name, value in (record | changes).items() if value is not ...}]


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "r.json, line 1 column 1: expected a JSON list, or an object on each line, found an empty file"),
        ('[{"question": "1+1?", "ground_tr', "r.json, line 1 column 23: expected JSON, found Unterminated string"),
        ('[\n{"question": "1+1?"}', 'r.json, line 2 column 21: expected "," or "]" after a value'),
        ("{}", "r.json, record 0, field question: expected the field, found nothing"),
        ("[]", "r.json: expected at least one record, found an empty list"),
        ("[1]", "r.json, record 0: expected an object, found number"),
        ("[" * 100_000, "r.json, line 1 column 2: expected JSON, found values nested too deeply"),
        (b"[\xff]", "r.json: expected UTF-8 text, found byte 0xff at line 1, byte 2"),
        (b"[\n'\xe4\n]", "r.json: expected UTF-8 text, found byte 0xe4 at line 2, byte 2"),
        (b"\x1f\x8b\x08", "r.json: expected UTF-8 text, found a gzip archive"),
    ],
)
def test_files_that_hold_no_records(capsys, text, said):
    Path("r.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert complaint(capsys, "evaluation.rollouts=r.json").startswith(said)


@pytest.mark.parametrize(
    ("data_type", "records", "said"),
    [
        ("math", changed(MATH, question=5), "field question: expected a string, found int 5"),
        ("math", changed(MATH, question=" \n"), "field question: expected a problem, found none: an empty text"),
        ("math", changed(MATH, question="a\0"), "field question: expected text without NUL and unpaired surrogates"),
        ("math", changed(MATH, question="\ud800"), "field question: expected text without NUL and unpaired surrogates"),
        (
            "math",
            changed(MATH, ground_truth_answer=...),
            "field ground_truth_answer: expected the field, found nothing",
        ),
        ("math", changed(MATH, ground_truth_answer=["2"]), "field ground_truth_answer: expected a string, found list"),
        ("math", changed(MATH, full_output=...), "field full_output: expected a list of responses, found null"),
        ("math", changed(MATH, full_output="2"), "field full_output: expected a list of responses, found string"),
        ("math", changed(MATH, full_output=[]), "field full_output: expected a list of responses, found an empty list"),
        (
            "math",
            changed(MATH, response_length=3),
            "field response_length: expected a list of 1, one per response, found number",
        ),
        (
            "math",
            changed(MATH, num_steps=[1, 2]),
            "field num_steps: expected a list of 1, one per response, found 2",
        ),
        ("math", changed(MATH, num_steps=[True]), "field num_steps: expected whole numbers of at least 0, found True"),
        (
            "math",
            changed(MATH, num_forwards=[-1]),
            "field num_forwards: expected whole numbers of at least 0, found -1",
        ),
        ("math", changed(MATH, finish_reason=[None]), "field finish_reason: expected strings, found None"),
        ("math", changed(MATH, error=[0]), "field error: expected strings or nulls, found 0"),
        ("math", changed(MATH, prompt_ids="1"), "field prompt_ids: expected a list of token ids, found string"),
        ("math", changed(MATH, block_size=4.0), "field block_size: expected a whole number, found 4.0"),
        ("option", changed(OPTION, ground_truth_answer="E"), "expected one of A, B, C, D, found 'E'"),
        ("code", changed(CODE, test_list="assert x"), "field test_list: expected a list of at least one string"),
        ("code", changed(CODE, test_list=["\0"]), "field test_list, entry 0: expected text without NUL"),
        ("code", changed(CODE, test_time_limit="1"), "field test_time_limit: expected a number of seconds above 0"),
        ("code", changed(CODE, test_method="exec"), "field test_method: expected function or stdio, found 'exec'"),
        (
            "math",
            [MATH | {"task_id": 7}, MATH | {"task_id": 7}],
            "field task_id: expected an id of its own, found 7, the id of record 0",
        ),
    ],
)
def test_records_of_the_wrong_shape_are_named_with_their_field(capsys, data_type, records, said):
    Path("r.json").write_text(json.dumps(records))
    line = complaint(capsys, "evaluation.rollouts=r.json", f"evaluation.data_type={data_type}")
    assert line.startswith("r.json, record 1, field ")
    assert said in line


@pytest.mark.parametrize(
    ("details", "said"),
    [
        (
            {},
            "r.meta.json, field dataset: expected a string (without the file, rollouts are graded too), found nothing",
        ),
        ([], "r.meta.json: expected an object (without the file, rollouts are graded too), found list"),
        ({**DETAILS, "seconds": None}, "r.meta.json, field seconds: expected "),
        ({**DETAILS, "problems": "1"}, "r.meta.json, field problems: expected "),
        ({**DETAILS, "fingerprint": {"block_size": 4}}, "r.meta.json, field fingerprint.denoising_steps: expected "),
        ("{", "r.meta.json, line 1 column 2: expected JSON"),
    ],
)
def test_details_of_an_older_version_are_answered_in_one_line(capsys, details, said):
    Path("r.json").write_text(json.dumps([MATH]))
    Path("r.meta.json").write_text(details if isinstance(details, str) else json.dumps(details))
    assert complaint(capsys, "evaluation.rollouts=r.json").startswith(said)


@pytest.mark.parametrize("recorded", [{"confidence": "raw"}, {}])
def test_results_name_the_confidence_and_files_without_it_are_graded_too(recorded):
    Path("r.json").write_text(json.dumps([MATH]))
    details = {**DETAILS, "fingerprint": DETAILS["fingerprint"] | recorded}
    Path("r.meta.json").write_text(json.dumps(details))
    start("evaluation.rollouts=r.json")
    (results,) = Path("project/results").glob("results-*.json")
    assert json.loads(results.read_text())["confidence"] == recorded.get("confidence")


def test_results_in_the_place_of_rollouts_are_refused(capsys):
    Path("r.json").write_text(json.dumps([MATH]))
    start("evaluation.rollouts=r.json", "experiment.project=other")
    capsys.readouterr()
    (results,) = Path("other/results").glob("results-*.json")
    said = complaint(capsys, f"evaluation.rollouts={results}")
    assert said.endswith("expected a JSON list, or an object on each line, found an object over several lines")


def test_rollouts_of_another_data_set_are_refused(capsys):
    Path("data").mkdir()
    Path("data/Mine.json").write_text(json.dumps([MATH, MATH | {"question": "2+2?"}]))
    Path("r.json").write_text(json.dumps([MATH, MATH | {"question": "3+3?"}]))
    said = complaint(capsys, "evaluation.rollouts=r.json", "evaluation.eval_dataset=Mine")
    assert said.startswith("r.json, record 1, field question: expected a problem of evaluation.eval_dataset (")
    assert said.endswith("Mine.json), once, found '3+3?'")


def test_the_configuration_of_a_training_run_that_cannot_be_read(capsys):
    folder = Path("run/ckpt/optimized")
    folder.mkdir(parents=True)
    Path("run/config.yaml").write_text("a: [")
    Path("r.json").write_text(json.dumps([MATH]))
    said = complaint(capsys, "evaluation.rollouts=r.json", f"evaluation.checkpoint_path={folder}")
    assert "config.yaml: expected the configuration of a training run, found " in said


TEXTS = {
    "NUL": "\0",
    "surrogate": "\ud800",
    "emoji": "\U0001f600",
    "right to left": "\u202e",
    "50 MB line": "7" * (50 << 20),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("data_type", "record"), [("math", MATH), ("option", OPTION), ("code", CODE)])
def test_any_text_of_a_model_is_a_wrong_answer_and_no_crash(name, data_type, record):
    """The right answer beside it still counts."""
    wrong = f"```python\n{TEXTS[name]}\n```" if data_type == "code" else rf"\boxed{{{TEXTS[name]}}}"
    Path("r.json").write_text(json.dumps([record | {"full_output": [wrong, *record["full_output"]]}]))
    began = time.monotonic()
    start("evaluation.rollouts=r.json", f"evaluation.data_type={data_type}")
    assert time.monotonic() - began < 60
    graded = json.loads(next(Path("project/results").glob("graded-r-*.json")).read_text())
    assert graded[0]["correctness"] == [False, True]
    assert graded[0]["grading"] == ["graded", "graded"]
    assert json.loads(next(Path("project/results").glob("results-r-*.json")).read_text())["acc"] == 0.5
