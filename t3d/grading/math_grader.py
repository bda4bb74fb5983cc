"""Grades answers to mathematical problems: see `t3d.grading.answers` for the rules."""

import atexit
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

from t3d.errors import UserError
from t3d.grading.extract import extract_boxed
from t3d.grading.math_workers import Reply, Status, Worker

PATIENCE_S = 0.5
MATH_VERIFY_PATIENCE_S = 5.0
MEMORY_MB = 1024
MAX_CHARACTERS = 2000
MAX_NESTING = 40
OURS = "t3d.grading.answers.comparison"
MATH_VERIFY = "t3d.grading.plain_math_verify"
_DECIMAL = re.compile(r"-?\d{1,1000}(?:\.\d{1,1000})?")


@dataclass(frozen=True)
class GradeResult:
    """Whether an answer is right, and how that was found.

    What takes too long ("timeout") or too much memory or recursion ("crashed") to compare counts as wrong;
    "error" means that no worker could be started, so that nothing was learnt about the answer: see `detail`.

    Attributes:
        correct: our verdict.
        status: how it was reached.
        detail: the reason of an "error".
        math_verify: plain math-verify's verdict; None if it was not asked, or did not end in time.
    """

    correct: bool
    status: Status = "graded"
    detail: str = ""
    math_verify: bool | None = None


def grade_math(prediction: str, truth: str) -> bool:
    r"""Returns whether `prediction` states the answer `truth`.

    May be called from any thread. What needs more than spelling goes to one worker process of this module,
    so that no expression can hang or crash the caller: one that takes longer than `PATIENCE_S` is not right.
    For many pairs: `grade_math_many`.

    Args:
        prediction: an answer, or a text whose last \\boxed{...} holds it.
        truth: the benchmark's answer.

    Raises:
        UserError: the machine has no room for a worker process.
    """
    settled = _settle(prediction, truth)
    if isinstance(settled, bool):
        return settled
    with _lock:
        reply = _worker.compare(OURS, settled, PATIENCE_S)
    if reply.status == "error":
        raise UserError("math grading", "a worker process", reply.detail)
    return reply.same


def grade_math_many(
    pairs: Sequence[tuple[str, str]],
    num_workers: int = 1,
    timeout_s: float = PATIENCE_S,
    memory_mb: int = MEMORY_MB,
    math_verify: bool = False,
    math_verify_timeout_s: float = MATH_VERIFY_PATIENCE_S,
) -> list[GradeResult]:
    """Grades (prediction, truth) pairs in fresh worker processes; returns the results in order.

    Args:
        pairs: what to grade; equal pairs are graded once.
        num_workers: processes that grade at a time.
        timeout_s: seconds that one pair may compute before its worker is killed and replaced.
        memory_mb: address space of each worker.
        math_verify: also ask plain math-verify, in the same workers.
        math_verify_timeout_s: seconds that it may compute for one pair.
    """
    local = threading.local()
    workers: list[Worker] = []
    modules = (OURS, MATH_VERIFY) if math_verify else (OURS,)

    def worker() -> Worker:
        if not hasattr(local, "worker"):
            local.worker = Worker(memory_mb, *modules)
            workers.append(local.worker)
        return local.worker

    def grade(pair: tuple[str, str]) -> GradeResult:
        settled = _settle(*pair)
        reply = Reply(settled) if isinstance(settled, bool) else worker().compare(OURS, settled, timeout_s)
        other = worker().compare(MATH_VERIFY, _clipped(pair), math_verify_timeout_s) if math_verify else None
        verdict = other.same if other is not None and other.status == "graded" else None
        return GradeResult(reply.same, reply.status, reply.detail, verdict)

    distinct = list(dict.fromkeys(pairs))
    try:
        with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
            results = dict(zip(distinct, pool.map(grade, distinct), strict=True))
    finally:
        for each in workers:
            each.stop()
    return [results[pair] for pair in pairs]


def _clipped(pair: tuple[str, str]) -> tuple[str, str]:
    """What math-verify is asked: the boxed answer where there is one, of no more than thousands of characters."""
    prediction, truth = pair
    return _unboxed(prediction)[: 10 * MAX_CHARACTERS], truth


def _unboxed(text: str) -> str:
    boxed = extract_boxed(text) if "\\" in text else None
    return text if boxed is None else boxed


def _settle(prediction: str, truth: str) -> bool | tuple[str, str]:
    """Returns the grade if the characters alone decide it, otherwise the answer and the truth."""
    prediction, truth = (_unboxed(side).strip() for side in (prediction, truth))
    if "".join(prediction.split()) == "".join(truth.split()):
        return True
    if not prediction or not truth:
        return False
    if max(len(prediction), len(truth)) > MAX_CHARACTERS or _nesting(prediction) > MAX_NESTING:
        return False
    if _DECIMAL.fullmatch(prediction) and _DECIMAL.fullmatch(truth):
        return Fraction(prediction) == Fraction(truth)
    return prediction, truth


def _nesting(text: str) -> int:
    """Returns how deeply brackets and braces are nested."""
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


_worker = Worker(MEMORY_MB, OURS)
_lock = threading.Lock()
atexit.register(_worker.stop)
