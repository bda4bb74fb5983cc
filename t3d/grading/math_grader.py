r"""Grades answers to mathematical problems, strictly where the benchmarks need it.

Structure is compared here (order in tuples, kinds of brackets, entries of matrices, members of lists and
unions in any order), numbers exactly, units and texts by name; only what is left, algebra, goes to
math-verify. A percent sign is a unit: `50\%` equals 50 and never 0.5. Bare lists are sets of answers; 1/3 is
not 0.333.
"""

import atexit
import json
import logging
import os
import re
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from t3d.errors import UserError
from t3d.grading import math_answers as read
from t3d.grading.extract import extract_boxed

PATIENCE_S = 10.0
MEMORY_MB = 1024
MAX_CHARACTERS = 2000
MAX_NESTING = 40
_MAX_ALGEBRA = 400
_ASSIGNMENT = re.compile(
    r"((?:\\[a-zA-Z]+|[a-zA-Z])'?(?:_\{\w+\})?(?:\([a-zA-Z,]+\))?)\s*(?:=|\\in(?![a-zA-Z]))(.+)", re.DOTALL
)
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_CLOCK = re.compile(r"(\d+)((?::\d+)+)\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)
_BASED = re.compile(r"[0-9A-Za-z]+_\{\d+\}")
# Powers of powers, five-digit exponents and factorials of more than four digits would keep sympy busy until
# the timeout.
_EXPLOSIVE = re.compile(
    r"(?:\^|\*\*)[{(\s]*-?[\d.]*\d[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[{(\s]*-?\d{5}|\d{5,}\s*!|![\s)}]*!|\)[\s}]*!"
)
_STAR_POWER = re.compile(r"\*\*\(?(-?\w+)\)?")


@dataclass(frozen=True)
class GradeResult:
    """Whether an answer is right, and how that was found.

    What takes too long ("timeout") or too much memory or recursion ("crashed") to compare counts as wrong;
    "error" means that no worker could be started, so that nothing was learnt about the answer: see `detail`.
    """

    correct: bool
    status: Literal["graded", "timeout", "crashed", "error"] = "graded"
    detail: str = ""


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
        result = _worker.grade(settled, PATIENCE_S)
    if result.status == "error":
        raise UserError("math grading", "a worker process", result.detail)
    return result.correct


def grade_math_many(
    pairs: Sequence[tuple[str, str]],
    num_workers: int = 1,
    timeout_s: float = PATIENCE_S,
    memory_mb: int = MEMORY_MB,
) -> list[GradeResult]:
    """Grades (prediction, truth) pairs in fresh worker processes; returns the results in order.

    Args:
        pairs: what to grade; equal pairs are graded once.
        num_workers: processes that grade at a time.
        timeout_s: seconds that one pair may take before its worker is killed and replaced.
        memory_mb: address space of each worker.
    """
    settled = [_settle(prediction, truth) for prediction, truth in pairs]
    hard = list(dict.fromkeys(pair for pair in settled if not isinstance(pair, bool)))
    local = threading.local()
    workers: list[_Worker] = []

    def grade(pair: tuple[str, str]) -> GradeResult:
        if not hasattr(local, "worker"):
            local.worker = _Worker(memory_mb)
            workers.append(local.worker)
        return local.worker.grade(pair, timeout_s)

    try:
        with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
            results = dict(zip(hard, pool.map(grade, hard), strict=True))
    finally:
        for worker in workers:
            worker.stop()
    return [GradeResult(pair) if isinstance(pair, bool) else results[pair] for pair in settled]


def _settle(prediction: str, truth: str) -> bool | tuple[str, str]:
    """Returns the grade if spelling alone decides it, otherwise the canonical prediction and truth."""
    boxed = extract_boxed(prediction) if "\\" in prediction else None
    prediction = prediction if boxed is None else boxed
    if "".join(prediction.split()) == "".join(truth.split()):
        return True
    if max(len(prediction), len(truth)) > MAX_CHARACTERS or read.nesting(prediction) > MAX_NESTING:
        return False
    ours, theirs = read.canonical(prediction), read.canonical(truth)
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    by_number = _by_number(ours, theirs)
    return (ours, theirs) if by_number is None else by_number


def _equal(ours: str, theirs: str) -> bool:
    """Compares canonical answers: the first rule that applies decides."""
    if ours == theirs:
        return True
    for rule in _RULES:
        if (decision := rule(ours, theirs)) is not None:
            return decision
    return _same_algebra(ours, theirs)


def _by_clock(ours: str, theirs: str) -> bool | None:
    """Times and ratios: the same parts, so that 05:00 is 5:00 but 2:4 is not 1:2."""
    left, right = (_CLOCK.fullmatch(_flat(side)) for side in (ours, theirs))
    if left is None and right is None:
        return None
    if left is None or right is None:
        return False
    parts = [[int(part) for part in (match[1] + match[2]).split(":")] for match in (left, right)]
    return parts[0] == parts[1] and (left[3] or "").lower() == (right[3] or "").lower()


def _by_words(ours: str, theirs: str) -> bool | None:
    if not read.is_words(theirs):
        return None
    return read.words(ours) == read.words(theirs) != ""


def _by_base(ours: str, theirs: str) -> bool | None:
    """Numerals with a base are equal as numerals only."""
    if _BASED.fullmatch(_flat(ours)) or _BASED.fullmatch(_flat(theirs)):
        return _flat(ours) == _flat(theirs)
    return None


def _flat(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def _by_assignment(ours: str, theirs: str) -> bool | None:
    """`x=5` is 5, but not `y=5`; a chain of numbers, `0.56=56%`, is each of them."""
    chain = read.split_top_level(theirs, ("=",))
    if len(chain) > 1 and all(read.number(read.split_unit(part).value) is not None for part in chain):
        return any(_equal(ours, part) for part in chain)
    if any(len(read.elements(side)) > 1 for side in (ours, theirs)):
        return None
    left, right = _ASSIGNMENT.fullmatch(ours), _ASSIGNMENT.fullmatch(theirs)
    if left and right:
        return (left[1] == right[1] and _equal(left[2], right[2])) or None
    if left and not re.search(r"[=<>]|\\[lg]eq", theirs):
        return _equal(left[2], theirs)
    if right and not re.search(r"[=<>]|\\[lg]eq", ours):
        return _equal(ours, right[2])
    return None


def _by_matrix(ours: str, theirs: str) -> bool | None:
    left, right = _MATRIX.fullmatch(ours), _MATRIX.fullmatch(theirs)
    if left is None and right is None:
        return None
    if left is None or right is None:
        return False
    rows = [[row.split("&") for row in match[2].split(r"\\") if row.strip()] for match in (left, right)]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False
    return all(_equal(a, b) for one, other in zip(*rows, strict=True) for a, b in zip(one, other, strict=True))


def _by_union(ours: str, theirs: str) -> bool | None:
    left, right = (read.split_top_level(side, (r"\cup",)) for side in (ours, theirs))
    return _same_members(left, right) if len(left) > 1 or len(right) > 1 else None


def _by_brackets(ours: str, theirs: str) -> bool | None:
    """Tuples and intervals: the same brackets, the same entries in the same order; sets: any order."""
    left, right = read.brackets(ours), read.brackets(theirs)
    if left and left[0] == r"\{":
        return _same_members(read.elements(left[1]), read.elements(right[1] if right and right[0] == r"\{" else theirs))
    if right and right[0] == r"\{":
        return _same_members(read.elements(ours), read.elements(right[1]))
    sides = [(side, read.split_top_level(side[1], (",", ";"))) for side in (left, right) if side]
    ordered = [len(parts) > 1 for _, parts in sides]
    if not any(ordered):
        return None
    if len(sides) < 2 or not all(ordered):
        return False
    (one, entries), (other, expected) = sides
    if (one[0], one[2], len(entries)) != (other[0], other[2], len(expected)):
        return False
    return all(_equal(a, b) for a, b in zip(entries, expected, strict=True))


def _by_list(ours: str, theirs: str) -> bool | None:
    left, right = (_members(side) for side in (ours, theirs))
    return _same_members(left, right) if len(left) > 1 or len(right) > 1 else None


def _members(text: str) -> list[str]:
    r"""Returns a bare list's entries, `a \\pm b` being two."""
    return [
        signed
        for part in read.elements(text)
        for signed in ([part.replace(r"\pm", "+"), part.replace(r"\pm", "-")] if r"\pm" in part else [part])
    ]


def _same_members(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    if len(ours) != len(theirs):
        return False
    left = list(ours)
    for member in theirs:
        match = next((candidate for candidate in left if _equal(candidate, member)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _by_unit(ours: str, theirs: str) -> bool | None:
    """A unit may be left out or spelt differently, but not be another one."""
    left, right = read.split_unit(ours), read.split_unit(theirs)
    if left.measure and right.measure and left.measure != right.measure:
        return False
    if (left.value, right.value) == (ours, theirs):
        return None
    return _equal(left.value, right.value)


def _by_number(ours: str, theirs: str) -> bool | None:
    left, right = read.number(ours), read.number(theirs)
    return None if left is None or right is None else left == right


_RULES: tuple[Callable[[str, str], bool | None], ...] = (
    _by_number,
    _by_clock,
    _by_words,
    _by_base,
    _by_assignment,
    _by_matrix,
    _by_union,
    _by_brackets,
    _by_list,
    _by_unit,
)


def _same_algebra(ours: str, theirs: str) -> bool:
    """Asks math-verify without its timeouts: SIGALRM needs a main thread, and a worker's limit is harder."""
    if max(len(ours), len(theirs)) > _MAX_ALGEBRA or _EXPLOSIVE.search(ours) or _EXPLOSIVE.search(theirs):
        return False
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    target = [LatexExtractionConfig()]
    left, right = (
        parse(f"${side}$", target, fallback_mode="no_fallback", parsing_timeout=None)
        for side in (_STAR_POWER.sub(r"^{\1}", ours), _STAR_POWER.sub(r"^{\1}", theirs))
    )
    return bool(left and right) and verify(right, left, timeout_seconds=None)


class _Worker:
    """A child process that grades one pair at a time, replaced when it hangs or dies.

    A fresh interpreter over pipes and not multiprocessing's spawn, which would import the caller's main
    module again.
    """

    def __init__(self, memory_mb: int) -> None:
        self.memory_mb = memory_mb
        self.process: subprocess.Popen[bytes] | None = None

    def grade(self, pair: tuple[str, str], timeout_s: float) -> GradeResult:
        try:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(pair).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            self.stop()
            return GradeResult(False, "error", f"no math worker: {error}")
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                self.stop()
                return GradeResult(False, "timeout")
        reply = process.stdout.readline()
        if not reply.strip():
            self.stop()
            return GradeResult(False, "crashed")
        return GradeResult(**json.loads(reply))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({self.memory_mb})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            assert self.process.stdout is not None
            self.process.stdout.readline()
        return self.process


_worker = _Worker(MEMORY_MB)
_lock = threading.Lock()
atexit.register(_worker.stop)


def serve(memory_mb: int) -> None:
    """Grades the pairs that standard input brings, one JSON line each, until it closes: a worker's life."""
    import resource

    import math_verify  # noqa: F401  (importing takes a second, which is no pair's own time)

    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing else may write where the replies go

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({})
    for line in sys.stdin:
        ours, theirs = json.loads(line)
        try:
            reply({"correct": _equal(ours, theirs)})
        except (RecursionError, OverflowError, MemoryError):
            reply({"correct": False, "status": "crashed"})
