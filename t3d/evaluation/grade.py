"""Grades every response of a rollout file: its answer is extracted, then compared or run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from t3d.config import ExecuteConfig
from t3d.devices import usable_cores
from t3d.evaluation.metrics import decoded_places
from t3d.evaluation.results import Disagreement, LeftOut
from t3d.grading.code_grader import Program, grade_code_many
from t3d.grading.extract import extract
from t3d.grading.math_grader import grade_math_many
from t3d.grading.sandbox import Limits

MOST_PROCESSES = 16


@dataclass(frozen=True)
class Grade:
    """One response's grade.

    Attributes:
        correct: whether the answer is right; None if that is not known, which is not the same as wrong.
        status: "graded"; "timeout" or "crashed" for mathematics too large to compare, which counts as wrong;
            "error" if grading itself failed and "failed" if decoding had, which both count as nothing.
        detail: the reason, where there is one to tell.
        execution_result: the outcome of each test of a program.
        shared_interpreter: tests of a program that had to share an interpreter with it.
        math_verify: plain math-verify's verdict on an answer to mathematics; None if it gave none.
    """

    correct: bool | None
    status: str = "graded"
    detail: str = ""
    execution_result: Sequence[str] | None = None
    shared_interpreter: int = 0
    math_verify: bool | None = None


OWN_FIELDS = {"code": ("execution_result", "shared_interpreter"), "math": ("math_verify",)}
"""What the records of one kind of problem say beside the rest of a `Grade`."""

Answer = tuple[str, dict[str, Any]]
"""An extracted answer and the record that it answers."""


def grade(records: Sequence[dict[str, Any]], data_type: str, execute: ExecuteConfig) -> list[dict[str, Any]]:
    """Grades every response, `execute.num_chunk` * 16 at a time.

    Args:
        records: dataset records with `full_output`; a response whose `finish_reason` is "error" is not graded.
        data_type: math, code or option.
        execute: processes and limits.

    Returns:
        The records with `extracted_output`, `correctness`, `grading`, `grading_detail` and, for code,
        `execution_result` and `shared_interpreter`, for mathematics `math_verify`, one entry per response: see
        `Grade`.

    Raises:
        UserError: no sandbox works on this machine.
    """
    answers = [
        [extract(text, record, data_type, execute.code_block) for text in record["full_output"]] for record in records
    ]
    grades = [
        [Grade(None, "failed", _failure(record, place)) for place in range(len(texts))]
        for record, texts in zip(records, answers, strict=True)
    ]
    decoded = [(index, place) for index, record in enumerate(records) for place in decoded_places(record)]
    with tqdm(total=len(decoded), desc="grade", unit="answer", leave=None) as progress:
        for start in range(0, len(decoded), execute.num_chunk * 16):
            part = decoded[start : start + execute.num_chunk * 16]
            chosen = [(answers[index][place], records[index]) for index, place in part]
            for (index, place), graded in zip(part, _GRADERS[data_type](chosen, execute), strict=True):
                grades[index][place] = graded
            progress.update(len(part))
    return [_graded(*row, data_type) for row in zip(records, answers, grades, strict=True)]


def left_out(graded: Sequence[dict[str, Any]]) -> list[LeftOut]:
    """Names the responses that have no grade."""
    return [
        LeftOut(index, place, f"{record['grading'][place]}: {record['grading_detail'][place]}")
        for index, record in enumerate(graded)
        for place, correct in enumerate(record["correctness"])
        if correct is None
    ]


def disagreements(graded: Sequence[dict[str, Any]]) -> list[Disagreement]:
    """Names the answers that plain math-verify and our grader judge differently."""
    return [
        Disagreement(index, place, record["extracted_output"][place], record["ground_truth_answer"], ours, other)
        for index, record in enumerate(graded)
        for place, (ours, other) in enumerate(zip(record["correctness"], record.get("math_verify", []), strict=False))
        if ours is not None and other is not None and ours != other
    ]


def acc_math_verify(graded: Sequence[dict[str, Any]]) -> float | None:
    """The accuracy by plain math-verify over the responses that have a grade; None if it was not asked.

    An answer on which it did not end in time is wrong, as it is to those who use it.
    """
    verdicts = [
        other
        for record in graded
        for ours, other in zip(record["correctness"], record.get("math_verify", []), strict=False)
        if ours is not None
    ]
    if all(verdict is None for verdict in verdicts):
        return None
    return sum(verdict is True for verdict in verdicts) / len(verdicts)


def _graded(record: dict[str, Any], answers: list[str], grades: list[Grade], data_type: str) -> dict[str, Any]:
    own = OWN_FIELDS.get(data_type, ())
    return {
        **record,
        "extracted_output": answers,
        "correctness": [grade.correct for grade in grades],
        "grading": [grade.status for grade in grades],
        "grading_detail": [grade.detail for grade in grades],
        **{name: [getattr(grade, name) for grade in grades] for name in own},
    }


def _failure(record: dict[str, Any], place: int) -> str:
    """Why decoding failed, as the rollout file tells."""
    return (record["error"][place] if "error" in record else None) or "no reason recorded"


def _processes(execute: ExecuteConfig) -> int:
    """How many grade at a time.  Half of the cores, as programs are stopped by the clock on the wall."""
    return execute.num_workers or max(2, min(MOST_PROCESSES, usable_cores() // 2))


def _grade_math(answers: Sequence[Answer], execute: ExecuteConfig) -> list[Grade]:
    pairs = [(answer, record["ground_truth_answer"]) for answer, record in answers]
    results = grade_math_many(pairs, _processes(execute), execute.timeout_s, execute.memory_mb, execute.math_verify)
    return [
        Grade(
            # That no answer equals an empty one is no merit: a response that was cut short has none.
            None if result.status == "error" else result.correct and bool(truth.strip()),
            result.status,
            result.detail,
            math_verify=result.math_verify,
        )
        for result, (_, truth) in zip(results, pairs, strict=True)
    ]


def _grade_option(answers: Sequence[Answer], execute: ExecuteConfig) -> list[Grade]:
    del execute
    return [Grade(answer == record["ground_truth_answer"]) for answer, record in answers]


def _grade_code(answers: Sequence[Answer], execute: ExecuteConfig) -> list[Grade]:
    programs = [
        Program(answer, record["test_time_limit"], tests=record["test_list"])
        if record["test_method"] == "function"
        else Program(answer, record["test_time_limit"], inputs=record["test_input"], outputs=record["test_output"])
        for answer, record in answers
    ]
    limits = Limits(execute.memory_mb, execute.num_threads, execute.file_mb, execute.output_mb)
    grades = []
    for verdicts in grade_code_many(programs, _processes(execute), execute.sandbox, limits):
        bad = [verdict for verdict in verdicts if not verdict.passed]
        # A solution that fails one test is wrong, whatever became of the others.
        unknown = bool(bad) and all(verdict.status == "error" for verdict in bad)
        detail = f"{bad[0].status}: {bad[0].detail}".removesuffix(": ") if bad else ""
        statuses = [verdict.status for verdict in verdicts]
        shared = sum(verdict.shared for verdict in verdicts)
        grades.append(Grade(None if unknown else not bad, "error" if unknown else "graded", detail, statuses, shared))
    return grades


_GRADERS: dict[str, Callable[[Sequence[Answer], ExecuteConfig], list[Grade]]] = {
    "math": _grade_math,
    "option": _grade_option,
    "code": _grade_code,
}
