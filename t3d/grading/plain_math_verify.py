"""The verdict of math-verify as its users call it, to put beside ours: it decides nothing here."""

import logging

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def same(prediction: str, truth: str) -> bool:
    r"""Returns what math-verify says of two answers, both parsed with its defaults as `$answer$`.

    Without its timeouts, which need SIGALRM: a worker's limit is harder.
    """
    gold, answer = (
        parse(text if r"\boxed" in text else f"${text}$", parsing_timeout=None) for text in (truth, prediction)
    )
    return verify(gold, answer, timeout_seconds=None)
