"""The figures of one evaluation, from its graded records alone."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from t3d.decoding.limits import prefill_forwards

FAILED = "error"
"""The finish reason of a response whose decoding failed; what failed has neither grade nor cost."""


@dataclass(frozen=True)
class Metrics:
    """Accuracy and cost over all responses; a cost is None where the records do not tell.

    Attributes:
        n: graded responses.
        acc: share of them that is right, 0-1.
        stderr: standard error of `acc`, see `metrics`.
        avg_len: tokens per response.
        avg_steps: denoising steps per response.
        tokens_per_step: all tokens over all denoising steps.
        tokens_per_forward: all tokens over all forwards, prefill and those of a drafting network included.
        tokens_per_forward_decode: the same, prefill left out.
        tokens_per_second: all tokens over the decoding time.
        latency_s: decoding time over responses, in seconds.
        responses: all responses.
        failed: responses whose decoding failed.
        finish_reasons: number of responses by the reason for which they ended.
        grading: number of responses by the status of their grading.
        shared_interpreter: programs with a test that had to share an interpreter with them (see
            `t3d.grading.code_grader`).
    """

    n: int
    acc: float
    stderr: float
    avg_len: float | None = None
    avg_steps: float | None = None
    tokens_per_step: float | None = None
    tokens_per_forward: float | None = None
    tokens_per_forward_decode: float | None = None
    tokens_per_second: float | None = None
    latency_s: float | None = None
    responses: int | None = None
    failed: int | None = None
    finish_reasons: dict[str, int] = field(default_factory=dict)
    grading: dict[str, int] = field(default_factory=dict)
    shared_interpreter: int = 0


def metrics(records: Sequence[dict[str, Any]], seconds: float | None) -> Metrics:
    r"""Accuracy and cost over all responses.

    Responses to one problem resemble each other, so the standard error takes problems, not responses, as what
    was drawn at random; and problems of one `family` are drawn together.  With s_i right answers among the k_i graded
    ones of problem i, or of family i, n = \sum k_i:

        acc = \sum s_i / n,  stderr = \sqrt{\sum (s_i - acc k_i)^2} / n

    which is \sqrt{acc (1 - acc) / n} for one response per problem, the standard error of the problems' means
    where every problem has equally many, and what a bootstrap over problems gives.

    A ratio of two counts is a ratio of sums: `tokens_per_step` is all tokens over all denoising steps.

    Args:
        records: rollout records with `correctness` (None: no grade, counted nowhere in n) and `grading`; of `family`,
            `response_length`, `num_steps`, `num_forwards`, `num_draft_forwards`, `finish_reason`, `prompt_ids` and
            `block_size` what the file has.
        seconds: decoding time of all of them, if known.

    Raises:
        ValueError: not one response has a grade.
    """
    tokens, steps, forwards = (_total(records, name) for name in ("response_length", "num_steps", "num_forwards"))
    reasons = Counter(reason for record in records for reason in record.get("finish_reason", []))
    responses = sum(len(record["correctness"]) for record in records)
    answered = responses - reasons[FAILED]
    prefills = _prefills(records)
    decoding = None if forwards is None or prefills is None else forwards - prefills
    n, acc, stderr = _accuracy(records)
    return Metrics(
        n=n,
        acc=acc,
        stderr=stderr,
        avg_len=_ratio(tokens, answered),
        avg_steps=_ratio(steps, answered),
        tokens_per_step=_ratio(tokens, steps),
        tokens_per_forward=_ratio(tokens, forwards),
        tokens_per_forward_decode=_ratio(tokens, decoding),
        tokens_per_second=_ratio(tokens, seconds),
        latency_s=_ratio(seconds, answered),
        responses=responses,
        failed=reasons[FAILED],
        finish_reasons=dict(reasons),
        grading=dict(Counter(status for record in records for status in record["grading"])),
        shared_interpreter=sum(count > 0 for record in records for count in record.get("shared_interpreter", [])),
    )


def _accuracy(records: Sequence[dict[str, Any]]) -> tuple[int, float, float]:
    """n, acc and stderr (see `metrics`)."""
    graded: dict[str | int, list[bool]] = defaultdict(list)
    for index, record in enumerate(records):
        graded[record.get("family", index)] += [grade for grade in record["correctness"] if grade is not None]
    n = sum(map(len, graded.values()))
    if not n:
        raise ValueError("no response has a grade")
    acc = sum(map(sum, graded.values())) / n
    squares = sum((sum(grades) - acc * len(grades)) ** 2 for grades in graded.values())
    return n, acc, math.sqrt(squares) / n


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def decoded_places(record: dict[str, Any]) -> Iterator[int]:
    """Yields the places of the responses whose decoding did not fail."""
    reasons = record.get("finish_reason", [None] * len(record["full_output"]))
    return (place for place, reason in enumerate(reasons) if reason != FAILED)


def _total(records: Sequence[dict[str, Any]], field: str) -> int | None:
    """Sums a count over the responses that did not fail; None if a record lacks it."""
    if not all(field in record for record in records):
        return None
    return sum(record[field][place] for record in records for place in decoded_places(record))


def _prefills(records: Sequence[dict[str, Any]]) -> int | None:
    """Counts the forwards that prefilled prompts, a drafting network's too; None if a record does not tell."""
    if not all("prompt_ids" in record and "block_size" in record for record in records):
        return None
    total = 0
    for record in records:
        prefill, drafted = prefill_forwards(len(record["prompt_ids"]), record["block_size"]), _is_drafted(record)
        total += sum(prefill * (1 + drafted[place]) for place in decoded_places(record))
    return total


def _is_drafted(record: dict[str, Any]) -> list[bool]:
    """Whether a drafting network, which reads the prompt too, took part in each response."""
    return [count > 0 for count in record.get("num_draft_forwards", [0] * len(record["full_output"]))]
