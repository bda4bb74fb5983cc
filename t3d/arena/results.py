"""The results of an arena: one JSON file with every figure, from the records of its jobs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t3d.arena.plan import Job
from t3d.arena.settings import ArenaConfig, alternatives, results_path
from t3d.arena.work import Record, Score
from t3d.errors import DataError
from t3d.evaluation.environment import environment
from t3d.storage.fields import read_fields
from t3d.storage.files import read_json, write_json_atomic
from t3d.storage.folders import make_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Student:
    """A row with a seed (None: the teacher itself), what it scored by decoding, and why it failed, if it did."""

    row: str
    seed: int | None
    keys: list[str]
    scores: dict[str, Score] = field(default_factory=dict)
    train_s: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class ArenaResults:
    """Every figure of an arena.

    Attributes:
        config: its settings.
        environment: versions, commit and machine.
        problems: digests of the evaluated problems, in the order of `Score.graded`.
        families: of these problems, see `worlds.problem_families`.
        students: its rows' students.
        chosen: grid -> the keys of its best combination, by the mean accuracy over `config.averaged()`.
    """

    config: ArenaConfig
    environment: dict[str, Any]
    problems: list[str]
    families: list[int]
    students: list[Student]
    chosen: dict[str, list[str]] = field(default_factory=dict)


def collect(config: ArenaConfig, jobs: Sequence[Job], errors: Mapping[int, str], families: list[int]) -> ArenaResults:
    """Reads the records that there are.

    Args:
        config: the arena.
        jobs: its jobs.
        errors: number of a job -> why it failed.
        families: of the evaluated problems.

    Raises:
        DataError: a record cannot be read, or records are of different problems.
    """
    students: list[Student] = []
    problems: list[str] = []
    for number, job in enumerate(jobs):
        if not job.record.exists():
            students.append(Student(job.row, job.seed, job.keys, error=errors.get(number, "not done yet")))
            continue
        record = _read_record(job)
        if problems and problems != record.problems:
            raise DataError(job.record, "the problems of the other records", "others")
        problems = record.problems
        students.append(Student(job.row, job.seed, job.keys, record.scores, record.train_s, record.seconds))
    return ArenaResults(config, environment(), problems, families, students, _chosen(config, students))


def has_record(job: Job) -> bool:
    """Whether a job's figures are there; what cannot be read is logged and removed, so that it is measured again."""
    if not job.record.exists():
        return False
    try:
        _read_record(job)
    except DataError as error:
        log.warning("%s: measured again", error)
        job.record.unlink()
        return False
    return True


def _read_record(job: Job) -> Record:
    record = read_fields(Record, read_json(job.record), job.record)
    if record.scores.keys() != job.cells.keys():
        raise DataError(f"{job.record}, field scores", ", ".join(job.cells), ", ".join(record.scores) or "none")
    return record


def save(results: ArenaResults) -> Path:
    """Writes the file of an arena's figures, whole or not at all."""
    path = results_path(results.config)
    make_folder(path.parent)
    write(results, path)
    return path


def write(results: ArenaResults, path: Path) -> None:
    """Writes the figures to a file of any name."""
    write_json_atomic(path, asdict(results))


def load(path: Path) -> ArenaResults:
    """Reads what `write` wrote.

    Raises:
        DataError: another kind of file, or one whose parts do not fit together; the field is named.
    """
    results = read_fields(ArenaResults, read_json(path), path)
    number, rows = len(results.problems), results.config.row_names()
    if number and len(results.families) != number:  # none are known before a student is finished
        raise DataError(f"{path}, field families", f"one for each of {number} problems", len(results.families))
    known: set[tuple[str, int | None]] = set()
    for index, student in enumerate(results.students):
        where, named = f"{path}, field students, {index}", f"{student.row} with seed {student.seed}"
        if student.row not in rows or (student.row, student.seed) in known:
            raise DataError(where, "a row of the arena, once with each seed", named)
        known.add((student.row, student.seed))
        if student.scores and student.scores.keys() != results.config.decodings.keys():
            raise DataError(f"{where} ({named})", "scores at every decoding", ", ".join(student.scores))
        for name, score in student.scores.items():
            if len(score.graded) != number:
                raise DataError(f"{where} ({named}), {name}", f"grades of {number} problems", len(score.graded))
    return results


def few_step_mean(config: ArenaConfig, student: Student) -> float:
    """Mean accuracy over the decodings that stand for a row."""
    names = config.averaged()
    return sum(student.scores[name].acc for name in names) / len(names)


def _chosen(config: ArenaConfig, students: Sequence[Student]) -> dict[str, list[str]]:
    """What each grid chose; a grid with a combination that failed chooses nothing."""
    found = {}
    for row, text in config.grids.items():
        tried = [
            [student for student in students if student.row == f"{row} {number}"]
            for number in range(1, len(alternatives(text)) + 1)
        ]
        if all(student.scores for same in tried for student in same):
            best = max(tried, key=lambda same: sum(few_step_mean(config, student) for student in same))
            found[row] = best[0].keys
    return found
