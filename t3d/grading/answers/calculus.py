"""Where integrals end and what a derivative is called."""

import re
from collections.abc import Sequence

from t3d.grading.answers.names import GREEK
from t3d.grading.answers.nodes import NotAlgebraError
from t3d.grading.answers.reader import Reader
from t3d.grading.answers.structure import steps

_RUN = re.compile(r"d([a-zA-Z])")
_SIGN = r"(?:d|\\partial)"
_LETTER = r"(?:[A-Za-z]|\\[a-z]+)"
_UNDER = re.compile(rf"(?:{_SIGN} ?{_LETTER}(?:\^\{{\d\}})?)+")
_BY = re.compile(rf"{_SIGN} ?({_LETTER})")
_OPERATOR = re.compile(rf"{_SIGN}(?:\^\{{\w\}})?")
_OVER = re.compile(rf"{_SIGN}(?:\^\{{\w\}})? ?{_LETTER}")


def differential(tokens: Sequence[str]) -> tuple[int, int, str]:
    r"""Finds an integral's differential (`dx`, `d\theta`): (place, number of tokens, variable).

    The integral's sign was read; the differentials of integrals inside come first.

    Raises:
        NotAlgebraError: there is none.
    """
    inner = 0
    for place, (depth, token) in enumerate(steps(tokens)):
        inner += token == r"\int"
        if depth > 0:
            continue
        run = _RUN.fullmatch(token)
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        apart = token == "d" and ((following.isalpha() and len(following) == 1) or following in GREEK)
        if not run and not apart:
            continue
        if not inner:
            return (place, 1, run[1]) if run else (place, 2, following)
        inner -= 1
    raise NotAlgebraError("an integral without a differential")


def spread(tokens: Sequence[str]) -> list[str]:
    r"""`\frac{2\,dx}{x}` as `\frac{2}{x}dx`, where it is the first differential."""
    for place, (depth, token) in enumerate(steps(tokens)):
        if depth <= 0 and (_RUN.fullmatch(token) or token == "d"):
            break
        if depth > 0 or token != r"\frac":
            continue
        reader = Reader(tokens[place + 1 :])
        above, below = reader.group(), reader.group()
        for width in (1, 2):
            if _RUN.fullmatch("".join(above[-width:])):
                fraction = [r"\frac", "{", *(above[:-width] or ["1"]), "}", "{", *below, "}"]
                return [*tokens[:place], *fraction, *above[-width:], *tokens[place + 1 + reader.position :]]
    return list(tokens)


def variables(below: Sequence[str]) -> list[str]:
    r"""The letters of `dx` and `\partial x\,\partial y` below a derivative's bar."""
    return _BY.findall("".join(below))


def derivative(above: Sequence[str], below: Sequence[str]) -> str:
    r"""The name of `\frac{dy}{dx}`; "operator" for `\frac{d}{dx}`; "" for an ordinary fraction."""
    over, under = "".join(above), "".join(below)
    if not _UNDER.fullmatch(under):
        return ""
    if _OPERATOR.fullmatch(over):
        return "operator"
    return f"{over}/{under}" if _OVER.match(over) else ""
