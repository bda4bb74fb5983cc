"""A value and its unit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from t3d.grading.answers.spelling import Tokens
from t3d.grading.answers.structure import steps
from t3d.grading.answers.units import Unit, unit_of

_CURRENCY = re.compile(r"\\text\{(?:USD|US|[€£¥₹])\}|\\usd|USD|EUR")
_TRIGONOMETRIC = {r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc", r"\cis"}
_BEGINS = {"%", "^", r"\usd", r"\mu", r"\Omega", r"\frac", r"\cdot", r"\times", "*", "/", "°"}


@dataclass(frozen=True)
class Quantity:
    """A value, as tokens, and what it counts; None: nothing is said."""

    value: Tokens
    unit: Unit | None

    def factor(self, other: "Quantity") -> Fraction:
        """What the value is multiplied by before it is compared with another.

        A bare number stands in the other's unit; number words (`million`) always count.
        """
        if self.unit is None:
            return Fraction(1)
        bare = other.unit is None or not other.unit.powers
        return self.unit.scale if bare and self.unit.powers else self.unit.factor


def quantity(tokens: Tokens) -> Quantity:
    """Separates an answer from its unit: a currency before it, the longest unit after it."""
    leading = 1 if tokens[0] == "-" else 0
    first = tokens[leading : leading + 1]
    before = unit_of(first) if _CURRENCY.fullmatch("".join(first)) else None
    value = (*tokens[:leading], *tokens[leading + 1 :]) if before else tokens
    compound = _compound(value)
    if compound:
        return compound
    for place, (depth, token) in enumerate(steps(value)):
        if token == "^" and not _TRIGONOMETRIC.isdisjoint(value[:place]):
            continue  # the degrees of an angle inside
        if place and depth <= 0 and _may_begin(token) and (unit := unit_of(value[place:])):
            return Quantity(value[:place], before.times(unit) if before else unit)
    return Quantity(value, before)


def bare_quantity(measured: Quantity, unit: Unit | None) -> Quantity:
    r"""Reads letters behind a number as a unit where the other has one of that kind: `9 g` beside `9\text{ kg}`."""
    if measured.unit or unit is None or not unit.powers:
        return measured
    tokens = tuple(rf"\text{{{token}}}" if token.isalpha() else token for token in measured.value)
    for place in range(1, len(tokens)):
        if (
            tokens[place] != measured.value[place]
            and (found := unit_of(tokens[place:]))
            and found.powers == unit.powers
        ):
            return Quantity(measured.value[:place], found)
    return measured


def is_compound(tokens: Sequence[str]) -> bool:
    """Whether an answer is numbers with units of one kind: `5 dollars and 50 cents`."""
    return _compound(tokens) is not None


def _may_begin(token: str) -> bool:
    return token in _BEGINS or token.startswith(r"\text{") or (token.isalpha() and len(token) > 1)


def _compound(tokens: Sequence[str]) -> Quantity | None:
    r"""`5\text{ ft } 3\text{ in}`: numbers with units of one kind, largest first, are their sum in the last."""
    parts: list[tuple[Fraction, Unit]] = []
    place = 0
    while place < len(tokens):
        if not re.fullmatch(r"\d+(?:\.\d+)?", tokens[place]) or place + 1 == len(tokens):
            return None
        unit = unit_of(tokens[place + 1 : place + 2])
        if (
            unit is None
            or (parts and unit.powers != parts[0][1].powers)
            or (parts and unit.factor >= parts[-1][1].factor)
        ):
            return None
        parts.append((Fraction(tokens[place]), unit))
        place += 2
        if place < len(tokens) and tokens[place] in (",", "and", r"\text{and}"):
            place += 1
    if len(parts) < 2:
        return None
    total = sum((value * unit.factor for value, unit in parts), Fraction(0)) / parts[-1][1].factor
    return Quantity(("\\frac", "{", str(total.numerator), "}", "{", str(total.denominator), "}"), parts[-1][1])
