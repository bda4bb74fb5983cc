"""The figures of one evaluation, from its records alone."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any


def metrics(correct: Sequence[bool], records: Sequence[dict[str, Any]], seconds: float | None) -> dict[str, Any]:
    """Accuracy and cost over all responses.

    A ratio of two counts is a ratio of sums: `tokens_per_step` is all tokens over all denoising steps.

    Args:
        correct: grade of each response, in order.
        records: rollout records with `response_ids`, `num_steps`, `num_forwards`, `finish_reason`.
        seconds: decoding time of all of them, if known.

    Returns:
        n (responses), acc (0-1) with its standard error sqrt(p (1-p) / n), avg_len (tokens), avg_steps,
        tokens_per_step, tokens_per_forward (prefill included), tokens_per_second, latency_s (decoding time
        over responses), each None where the records or `seconds` do not tell, and finish_reasons.
    """
    n = len(correct)
    acc = sum(correct) / n
    figures: dict[str, Any] = {"n": n, "acc": acc, "stderr": math.sqrt(acc * (1 - acc) / n)}
    tokens = sum(_lengths(records))
    steps, forwards = _total(records, "num_steps"), _total(records, "num_forwards")
    return figures | {
        "avg_len": tokens / n,
        "avg_steps": steps / n if steps else None,
        "tokens_per_step": tokens / steps if steps else None,
        "tokens_per_forward": tokens / forwards if forwards else None,
        "tokens_per_second": tokens / seconds if seconds else None,
        "latency_s": seconds / n if seconds else None,
        "finish_reasons": dict(Counter(reason for record in records for reason in record.get("finish_reason", []))),
    }


def _lengths(records: Sequence[dict[str, Any]]) -> list[int]:
    return [length for record in records for length in record.get("response_length", [])]


def _total(records: Sequence[dict[str, Any]], field: str) -> int:
    return sum(value for record in records for value in record.get(field, []))
