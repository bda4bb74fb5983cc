"""What a process of an arena does, in one piece: the rollout, or one student and its evaluations."""

import time
from dataclasses import asdict, dataclass, field

from t3d.arena.plan import Data, Job
from t3d.data.preprocess import rename_answers
from t3d.rollout.pool import Workers
from t3d.rollout.run import rollout
from t3d.storage.files import write_json_atomic
from t3d.storage.folders import make_folder
from t3d.storage.locks import one_at_a_time
from t3d.tables.cells import Run, measure
from t3d.tables.outcomes import Outcomes
from t3d.training.loop import train

RIGHT, WRONG, UNGRADED = "1", "0", "-"


@dataclass(frozen=True)
class Score:
    """One evaluation.

    Attributes:
        acc: share of right answers.
        graded: a character for each problem, in the data set's order: 1 right, 0 wrong, - without a grade.
        tokens_per_step: tokens over denoising steps, of all responses.
        tokens_per_forward: tokens over forwards, prefill included.
    """

    acc: float
    graded: str
    tokens_per_step: float | None = None
    tokens_per_forward: float | None = None


@dataclass(frozen=True)
class Record:
    """A finished job: its scores by decoding, and the seconds that training and everything took."""

    scores: dict[str, Score]
    train_s: float | None = None
    seconds: float | None = None
    problems: list[str] = field(default_factory=list)


def answer(data: Data) -> None:
    """The teacher's answers, as training reads them.

    Raises:
        UserError: a mistake in configuration, data or checkpoint.
    """
    decoded = rollout(data.rollout)
    rename_answers(decoded, data.answers)


def work(job: Job) -> None:
    """Trains a job's student, if it is not there, evaluates it, and writes the record.

    Two jobs of one student, whoever runs them, wait for each other.

    Raises:
        UserError: a mistake in configuration, data or checkpoint.
    """
    started, train_s = time.perf_counter(), None
    if job.train is not None:
        place = make_folder(job.student.parents[1])
        with one_at_a_time(place.with_suffix(".lock")):
            if not job.student.is_dir():
                train(job.train)
                train_s = time.perf_counter() - started
    with Workers() as workers:
        runs = {name: measure(cell, job.folder, workers) for name, cell in job.cells.items()}
    [problems] = {tuple(_outcomes(run).questions) for run in runs.values()}
    scores = {name: score(run) for name, run in runs.items()}
    make_folder(job.record.parent)
    record = Record(scores, train_s, time.perf_counter() - started, list(problems))
    write_json_atomic(job.record, asdict(record))


def score(run: Run) -> Score:
    """The figures of an evaluation of one response per problem."""
    outcomes, results = _outcomes(run), run.results
    assert results is not None
    grades = [outcomes.graded.get(problem) for problem in outcomes.questions]
    graded = "".join(UNGRADED if not each else RIGHT if each[0] else WRONG for each in grades)
    figures = results.metrics
    return Score(figures.acc, graded, figures.tokens_per_step, figures.tokens_per_forward)


def _outcomes(run: Run) -> Outcomes:
    assert run.outcomes is not None
    return run.outcomes
