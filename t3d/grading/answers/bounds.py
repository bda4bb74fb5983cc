r"""Integrals, sums, products, limits and derivatives as numbers.

A sum or product between integers is added up; an integral of a polynomial is exact. Everything else (`\int_0^\pi
\sin x\,dx`, infinite series, limits, derivatives) is known to 20 digits: two such numbers are
equal if these digits are.
"""

import functools
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
_MAX_DEGREE = 200
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


def polynomial(node: Node, variable: str, value: Callable[[Node], Value]) -> dict[int, Value] | None:
    """The coefficients of a polynomial in a variable by their powers; None if it is none, or of a degree above 200.

    Args:
        node: the expression.
        variable: the polynomial's.
        value: evaluates what the variable is not in.
    """
    if node.op not in ("bound", "opaque") and variable not in symbols(node):
        return {0: value(node)}
    if node.op == "symbol":
        return {1: Value(ONE)}
    if node.op in ("add", "neg", "mul"):
        parts = [polynomial(child, variable, value) for child in node.args]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return functools.reduce(_product, known) if node.op == "mul" else _total(known, -1 if node.op == "neg" else 1)
    above = polynomial(node.args[0], variable, value) if node.op in ("div", "pow") else None
    if above is None or variable in symbols(node.args[1]):
        return None
    if node.op == "div":
        below = value(node.args[1])
        return {power: values.divide(part, below) for power, part in above.items()}
    exponent = node.args[1].value if node.args[1].op == "number" else Fraction(-1)
    if exponent.denominator > 1 or not 0 <= exponent * max(above) <= _MAX_DEGREE:
        return None
    if len(above) == 1:
        ((power, part),) = above.items()
        return {power * int(exponent): values.power(part, Value(exponent), False)}
    return functools.reduce(_product, [above] * int(exponent), {0: Value(ONE)})


def _total(parts: Sequence[dict[int, Value]], sign: int) -> dict[int, Value]:
    result: dict[int, Value] = {}
    for part in parts:
        for power, value in part.items():
            signed = values.negate(value) if sign < 0 else value
            result[power] = values.add(result[power], signed) if power in result else signed
    return result


def _product(left: dict[int, Value], right: dict[int, Value]) -> dict[int, Value]:
    return _total([{a + b: values.multiply(x, y)} for a, x in left.items() for b, y in right.items()], 1)


def polynomial_integral(coefficients: dict[int, Value], low: Value, high: Value) -> Value:
    """The integral of a polynomial, exact up to the arithmetic of its values."""
    total = Value(ZERO)
    for power, coefficient in coefficients.items():
        grown = [values.power(end, Value(Fraction(power + 1)), False) for end in (high, low)]
        step = values.divide(values.add(grown[0], values.negate(grown[1])), Value(Fraction(power + 1)))
        total = values.add(total, values.multiply(coefficient, step))
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
