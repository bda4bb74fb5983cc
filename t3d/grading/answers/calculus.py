"""Where integrals end and what a derivative is called."""

import re
from collections.abc import Sequence

from t3d.grading.answers.names import GREEK
from t3d.grading.answers.nodes import NotAlgebraError
from t3d.grading.answers.structure import steps

_RUN = re.compile(r"d([a-zA-Z])")
_SIGN = r"(?:d|\\partial)"
_LETTER = r"(?:[A-Za-z]|\\[a-z]+)"
_UNDER = re.compile(rf"(?:{_SIGN} ?{_LETTER}(?:\^\{{\d\}})?)+")
_OPERATOR = re.compile(rf"{_SIGN}(?:\^\{{\w\}})?")
_OVER = re.compile(rf"{_SIGN}(?:\^\{{\w\}})? ?{_LETTER}")


def differential(tokens: Sequence[str]) -> tuple[int, int, str]:
    r"""Finds the first differential (`dx`, `d\theta`) outside of brackets: (place, number of tokens, variable).

    Raises:
        NotAlgebraError: there is none.
    """
    for place, (depth, token) in enumerate(steps(tokens)):
        if depth > 0:
            continue
        if run := _RUN.fullmatch(token):
            return place, 1, run[1]
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token == "d" and ((following.isalpha() and len(following) == 1) or following in GREEK):
            return place, 2, following
    raise NotAlgebraError("an integral without a differential")


def derivative(above: Sequence[str], below: Sequence[str]) -> str:
    r"""The name of `\frac{dy}{dx}`; "operator" for `\frac{d}{dx}`; "" for an ordinary fraction."""
    over, under = "".join(above), "".join(below)
    if not _UNDER.fullmatch(under):
        return ""
    if _OPERATOR.fullmatch(over):
        return "operator"
    return f"{over}/{under}" if _OVER.match(over) else ""
