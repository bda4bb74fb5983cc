r"""Integrals, sums, products, limits and derivatives as numbers.

A sum or product between integers is added up; an integral of a polynomial is exact. Everything else (`\int_0^\pi
\sin x\,dx`, infinite series, limits, derivatives) is known to 20 digits: two such numbers are
equal if these digits are.
"""

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import iv, mp

from t3d.grading.answers import reals, values
from t3d.grading.answers.nodes import Node, symbols
from t3d.grading.answers.reals import ONE, ZERO, UndefinedError
from t3d.grading.answers.values import Value

Body = Callable[[Value], Value]
_MAX_TERMS = 2000
_MAX_DEGREE = 60
_NEAR, _FAR = mpmath.mpf(10) ** -12, mpmath.mpf(10) ** 9


def added(body: Body, first: int, last: int, product: bool) -> Value:
    """The sum or product of the body at the integers from first to last.

    Raises:
        UndefinedError: more than two thousand of them, or a term has no value.
    """
    if last - first >= _MAX_TERMS:
        raise UndefinedError("too many terms")
    total = Value(ONE if product else ZERO)
    for place in range(first, last + 1):
        term = body(Value(Fraction(place)))
        total = values.multiply(total, term) if product else values.add(total, term)
    return total


def degree(node: Node, variable: str) -> int | None:
    """The degree of a polynomial in a variable, or an upper bound of it; None if it is no polynomial."""
    if node.op not in ("bound", "opaque") and variable not in symbols(node):
        return 0
    if node.op == "symbol":
        return 1
    if node.op in ("add", "mul", "neg"):
        parts = [degree(child, variable) for child in node.args]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else sum(known) if node.op == "mul" else max(known)
    if node.op == "div" and variable not in symbols(node.args[1]):
        return degree(node.args[0], variable)
    if node.op == "pow" and node.args[1].op == "number" and node.args[1].value.denominator == 1:
        base, power = degree(node.args[0], variable), int(node.args[1].value)
        return None if base is None or not 0 <= power <= _MAX_DEGREE else base * power
    return None


def polynomial_integral(body: Body, size: int, low: Value, high: Value) -> Value:
    """The integral of a polynomial of degree `size` at most, exact up to the arithmetic of its values.

    Raises:
        UndefinedError: a degree above 60, or a value is missing.
    """
    if size > _MAX_DEGREE:
        raise UndefinedError("a degree too high")
    samples = [body(Value(Fraction(place))) for place in range(size + 1)]
    total = Value(ZERO)
    for place, coefficient in enumerate(_newton(size)):
        term = values.multiply(_difference(samples, place), _at_ends(coefficient, low, high))
        total = values.add(total, term)
    return total


def _difference(samples: Sequence[Value], order: int) -> Value:
    """The forward difference of an order at 0."""
    row = list(samples[: order + 1])
    while len(row) > 1:
        row = [values.add(after, values.negate(before)) for before, after in itertools.pairwise(row)]
    return row[0]


def _newton(size: int) -> list[list[Fraction]]:
    """Coefficients, from the constant up, of x(x-1)...(x-k+1)/k! for k = 0 ... size."""
    result = [[ONE]]
    for place in range(size):
        last = result[-1]
        shifted = [ZERO, *last]
        result.append([(up - place * down) / (place + 1) for up, down in zip(shifted, [*last, ZERO], strict=True)])
    return result


def _at_ends(coefficients: Sequence[Fraction], low: Value, high: Value) -> Value:
    """The integral of a polynomial from its coefficients."""
    total = Value(ZERO)
    for place, coefficient in enumerate(coefficients):
        grown = [values.power(end, Value(Fraction(place + 1)), False) for end in (high, low)]
        step = values.add(grown[0], values.negate(grown[1]))
        total = values.add(total, values.multiply(Value(coefficient / (place + 1)), step))
    return total


def numeric(kind: str, body: Body, ends: Sequence[Any], digits: int, order: int = 1) -> Value:
    """An integral, an infinite sum or product, a limit or a derivative as an interval.

    Args:
        kind: int, sum, prod, lim or diff.
        body: of a real variable, real.
        ends: `mpf` numbers or infinities: the bounds, or where the limit or derivative is taken.
        digits: with which it is computed; half of them are known, or as many as the error estimate says.
        order: of the derivative.

    Raises:
        UndefinedError: it has no value that these methods find.
    """
    try:
        with mp.workdps(digits):
            best, error = _found(kind, body, ends, order)
            if not mpmath.isfinite(best):
                raise UndefinedError("no value found")
            radius = max(1, abs(best)) * mpmath.mpf(10) ** (-digits // 2) + error
            return Value(iv.mpf([best - radius, best + radius]))
    except (ValueError, ZeroDivisionError, OverflowError, mpmath.libmp.NoConvergence) as failure:
        raise UndefinedError("no value found") from failure


def _found(kind: str, body: Body, ends: Sequence[Any], order: int) -> tuple[Any, Any]:
    """A number, and how far it may be off: what quadrature, the other side of a limit, or fewer digits say."""
    if kind == "int":
        return mp.quad(_sampled(body, ends), ends, error=True, maxdegree=7)
    if kind == "lim" and not mpmath.isinf(ends[0]):
        left, right = (mp.limit(_sampled(body), ends[0], direction=side) for side in (-1, 1))
        return (left + right) / 2, abs(left - right)
    best = _METHODS[kind](_sampled(body), ends, order)
    with mp.workdps(mp.dps - 8):
        return best, abs(best - _METHODS[kind](_sampled(body), ends, order))


def _sampled(body: Body, ends: Sequence[Any] = ()) -> Callable[[Any], Any]:
    """The body as a function of mpmath's numbers; at the very ends of an improper integral, 0 for no value."""

    def function(place: Any) -> Any:
        place = mpmath.mpf(place)
        with reals.precision(mp.prec):
            try:
                whole = mp.isint(place)
                height = values.real(body(Value(Fraction(int(place)) if whole else iv.mpf(place))))
            except UndefinedError:
                if abs(place) < _FAR and all(abs(place - end) > _NEAR for end in ends):
                    raise
                return mpmath.mpf(0)
            return mpmath.mpf(reals.interval(height).mid)

    return function


_METHODS: dict[str, Callable[[Callable[[Any], Any], Sequence[Any], int], Any]] = {
    "sum": lambda function, ends, order: mp.nsum(function, ends, method="r+s"),
    "prod": lambda function, ends, order: mp.nprod(function, ends, nsum=True, method="r+s"),
    "lim": lambda function, ends, order: mp.limit(function, ends[0]),
    "diff": lambda function, ends, order: mp.diff(function, ends[0], order),
}
