"""An arena's rows by decoding: each with its accuracy, and the difference of two."""

import math
from dataclasses import dataclass

import numpy as np

from t3d.arena.results import ArenaResults, Student
from t3d.arena.statistics import Estimate, estimate, paired, table

MEAN = "few-step mean"
"""What stands for a row: the mean over `config.averaged()`, a problem's value being that mean."""


@dataclass(frozen=True)
class Compared:
    """A row at a decoding (or `MEAN`).

    Attributes:
        accuracy: in 0-1.
        tokens_per_forward: mean over the seeds; None for `MEAN`.
    """

    accuracy: Estimate
    tokens_per_forward: float | None


def compare(results: ArenaResults) -> dict[tuple[str, str], Compared]:
    """Every row (or combination of a grid) with at least one finished student, at every decoding and `MEAN`."""
    config, families = results.config, np.array(results.families)
    found = {}
    for row in config.row_names():
        students = _finished(results, row)
        if not students:
            continue
        for name in (*config.decodings, MEAN):
            names = _names(results, name)
            accuracy = estimate(np.array([_values(student, names) for student in students]), families)
            costs = [student.scores[each].tokens_per_forward for student in students for each in names]
            known = [cost for cost in costs if cost is not None]
            cost = math.fsum(known) / len(known) if known and name != MEAN else None
            found[row, name] = Compared(accuracy, cost)
    return found


def contrast(
    results: ArenaResults, baseline: str, row: str, decoding: str, beside: ArenaResults | None = None
) -> Estimate | None:
    """A row's difference from another at a decoding or `MEAN`, paired by problem and by the seeds that both have.

    The teacher has one answer for every seed.  None: no seed in common, or a row without a finished student.

    Args:
        results: the row's arena.
        baseline: what it is compared with.
        row: its name.
        decoding: one of the arena's, or `MEAN`.
        beside: the arena of the baseline, of the same problems and decodings; None: the row's.
    """
    names = _names(results, decoding)
    pairs = [
        (one, other)
        for one in _finished(beside or results, baseline)
        for other in _finished(results, row)
        if one.seed == other.seed or one.seed is None or other.seed is None
    ]
    if not pairs:
        return None
    a, b = (np.array([_values(student, names) for student in side]) for side in zip(*pairs, strict=True))
    return paired(a, b, np.array(results.families))


def _names(results: ArenaResults, decoding: str) -> list[str]:
    return results.config.averaged() if decoding == MEAN else [decoding]


def _finished(results: ArenaResults, row: str) -> list[Student]:
    return [student for student in results.students if student.row == row and student.scores]


def _values(student: Student, names: list[str]) -> np.ndarray:
    """A problem's share of right answers over the decodings."""
    return table([student.scores[name].graded for name in names]).mean(axis=0)
