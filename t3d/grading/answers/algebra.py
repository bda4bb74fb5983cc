"""Whether two expressions are equal, and which of two numbers is larger.

Numbers are compared exactly where both are rational; otherwise as intervals, at rising precision: intervals that
do not meet prove them different. Numbers that are not told apart with 8192 bits (2 466 digits) are equal.

Expressions with symbols are compared as numbers at fixed points of many kinds (rational, negative, large, whole):
one point where both have a value and the values differ proves them different. Rational functions are exact
there. Two that agree at every point where both have a value are equal: no polynomial identity of the size that
answers have holds at all of these points by chance. Integrals, sums and the like are compared as written first, then
as numbers (see `bounds`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from t3d.grading.answers import reals, values
from t3d.grading.answers.evaluate import Context, evaluate
from t3d.grading.answers.nodes import Node, free_symbols, has_constant, symbols, walk
from t3d.grading.answers.reals import TooLargeError, UndefinedError, precision
from t3d.grading.answers.values import Value

_CONSTANT_BITS = (128, 1024, 8192)
_POINT_BITS = (128, 512)
_LAST_POINT_BITS = (128, 512, 4096)
_ENOUGH = 7
_DIGITS = (16, 40)
_RANGES = (
    "unit",
    "negative",
    "small",
    "signed",
    "count",
    "parity",
    "large",
    "unit",
    "negative",
    "count",
    "parity",
    "small",
)


def equal(left: Node, right: Node, log_base: int | None = None) -> bool:
    """Whether two scalar expressions are equal.

    Args:
        left: an expression.
        right: another.
        log_base: of logarithms written without a base; None: e.
    """
    if left == right or _equal_as_written(left, right, log_base):
        return True
    return any(part.op == "bound" for side in (left, right) for part in walk(side)) and _equal_as_numbers(left, right)


def _equal_as_numbers(left: Node, right: Node) -> bool:
    """Whether expressions with integrals, sums, products, limits or derivatives are, when these are worked out."""
    names = sorted(free_symbols(left) | free_symbols(right))
    agreements = 0
    for context in _contexts(names, bool(names), None):
        for digits in _DIGITS:  # few, which tell most answers apart, before many
            verdict = _equal_at(left, right, replace(context, digits=digits), (_POINT_BITS[0],))
            if verdict is False:
                return False
        agreements += verdict is True
        if agreements == min(len(names), 1) + 1:
            return True
    return False


def _equal_as_written(left: Node, right: Node, log_base: int | None) -> bool:
    names = sorted(symbols(left) | symbols(right))
    only_real = bool(names) and not any(has_constant(side, "i") for side in (left, right))
    if not names:
        return _equal_at(left, right, Context({}, only_real, log_base), _CONSTANT_BITS) is True
    agreements = 0
    for context in _contexts(names, only_real, log_base):
        bits = _POINT_BITS if agreements else _LAST_POINT_BITS
        verdict = _equal_at(left, right, context, bits)
        if verdict is False:
            return False
        agreements += verdict is True
        if agreements == _ENOUGH:
            break
    return agreements > 1


def compare(left: Node, right: Node) -> int | None:
    """The sign of left - right; None if they are no real numbers, or equal as far as can be told but not exactly."""
    if symbols(left) | symbols(right):
        return None
    if equal(left, right):
        return 0
    for bits in _CONSTANT_BITS:
        with precision(bits):
            try:
                difference = values.add(evaluate(left, Context()), values.negate(evaluate(right, Context())))
                return reals.sign(values.real(difference))
            except UndefinedError:
                continue
    return None


def ratio(left: Node, right: Node) -> int | None:
    """The sign of the constant c with left = c * right; None if there is none."""
    names = sorted(symbols(left) | symbols(right))
    if not names:
        return None
    only_real = not any(has_constant(side, "i") for side in (left, right))
    for context in _contexts(names, only_real, None):
        with precision(512):
            try:
                scale = values.divide(evaluate(left, context), evaluate(right, context))
                sign = reals.sign(scale.re) if scale.is_real else 1
            except UndefinedError:
                continue
        if not sign and scale.is_real:
            return None
        here = Node("mul", (left, _at(right, context)))
        there = Node("mul", (right, _at(left, context)))
        return sign if equal(here, there) else None
    return None


def _at(node: Node, context: Context) -> Node:
    """The expression with every free symbol replaced by its value at a point."""
    if node.op == "symbol" and node.name in context.point:
        return Node("number", value=context.point[node.name].re)
    if node.op == "bound":
        bare = {name: value for name, value in context.point.items() if name != node.args[0].name}
        inner = Context(bare, context.only_real, context.log_base)
        return Node(node.op, (node.args[0], *(_at(child, inner) for child in node.args[1:])), node.name)
    return Node(node.op, tuple(_at(child, context) for child in node.args), node.name, node.value)


def _contexts(names: list[str], only_real: bool, log_base: int | None) -> Iterator[Context]:
    if not names:
        return iter([Context({}, only_real, log_base)])
    points = ({name: Value(_coordinate(name, place, kind)) for name in names} for place, kind in enumerate(_RANGES))
    return (Context(point, only_real, log_base) for point in points)


def _coordinate(name: str, place: int, kind: str) -> Fraction:
    """A number of a kind that only the symbol's name and the point's place decide."""
    digest = hashlib.sha256(f"{name}|{place}".encode()).digest()
    first, second, third = (int.from_bytes(digest[start : start + 4], "big") for start in (0, 4, 8))
    part = Fraction(1 + first % 9972, 9973)
    if kind == "unit":
        return part
    if kind == "small":
        return part + second % 9
    if kind == "negative":
        return -part - second % 7
    if kind == "signed":
        return (part + second % 7) * (-1 if third % 2 else 1)
    if kind == "large":
        return part + 50 + second % 900
    if kind == "parity":
        return Fraction(2 + second % 5)
    return Fraction(3 + second % 41)


def _equal_at(left: Node, right: Node, context: Context, all_bits: tuple[int, ...]) -> bool | None:
    """Whether the values are equal; None if one has none."""
    for bits in all_bits:
        with precision(bits):
            try:
                ours, theirs = evaluate(left, context), evaluate(right, context)
                parts = [reals.add(a, -b) for a, b in ((ours.re, theirs.re), (ours.im, theirs.im))]
                if all(map(reals.is_exact, parts)):
                    return not any(parts)
                if any(_apart(part) for part in parts):
                    return False
                close = all(_narrow(part, max_size(ours, theirs), bits) for part in parts)
            except TooLargeError:
                return None
            except UndefinedError:
                close = False
    return True if close else None


def max_size(*numbers: Value) -> object:
    """An upper bound of all absolute values, at least 1."""
    parts = [reals.magnitude(part) for number in numbers for part in (number.re, number.im)]
    return max([reals.magnitude(Fraction(1)), *parts])


def _apart(difference: reals.Real) -> bool:
    """Whether a difference is surely not 0."""
    try:
        return reals.sign(difference) != 0
    except UndefinedError:
        return False


def _narrow(difference: reals.Real, size: object, bits: int) -> bool:
    """Whether an interval around 0 is so narrow that its ends are rounding alone."""
    return bool(reals.magnitude(difference) < size * reals.interval(Fraction(1, 2 ** (bits // 2))))
