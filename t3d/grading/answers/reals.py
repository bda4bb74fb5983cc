"""Real numbers: exact fractions where they can be, otherwise intervals that surely hold the number.

An interval is mpmath's `iv.mpf` at the context's precision, which the caller sets (`precision`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from mpmath import iv
from mpmath.libmp import round_floor, to_int

Real = Any
"""A Fraction (exact) or an `iv.mpf` interval."""

_MAX_BITS = 1 << 20
_MAX_EXPONENT = 1 << 62
ZERO, ONE = Fraction(0), Fraction(1)


class UndefinedError(ArithmeticError):
    """The expression has no value here, or none that this precision tells."""


class TooLargeError(UndefinedError):
    """An exact number of more than a million bits."""


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Sets the precision of intervals in a block."""
    before = iv.prec
    iv.prec = bits
    try:
        yield
    finally:
        iv.prec = before


def is_exact(value: Real) -> bool:
    """Whether the number is a fraction and not an interval."""
    return isinstance(value, Fraction)


def interval(value: Real) -> Any:
    """The number as an interval."""
    return iv.mpf(value.numerator) / iv.mpf(value.denominator) if is_exact(value) else value


def sign(value: Real) -> int:
    """-1, 0 or 1.

    Raises:
        UndefinedError: an interval around 0.
    """
    if is_exact(value):
        return (value > 0) - (value < 0)
    if value.a > 0:
        return 1
    if value.b < 0:
        return -1
    raise UndefinedError("an interval around 0")


def add(left: Real, right: Real) -> Real:
    """Left + right."""
    if is_exact(left) and is_exact(right):
        return _small(left + right)
    return interval(left) + interval(right)


def multiply(left: Real, right: Real) -> Real:
    """Left * right; an exact 0 stays exact."""
    if is_exact(left) and is_exact(right):
        return _small(left * right)
    if 0 in [value for value in (left, right) if is_exact(value)]:
        return ZERO
    return interval(left) * interval(right)


def divide(left: Real, right: Real) -> Real:
    """Left / right.

    Raises:
        UndefinedError: the divisor is 0 or cannot be told from it.
    """
    if not sign(right):
        raise UndefinedError("division by 0")
    if is_exact(left) and is_exact(right):
        return _small(left / right)
    return ZERO if is_exact(left) and not left else interval(left) / interval(right)


def integer_power(base: Real, exponent: int) -> Real:
    """Base ** exponent.

    Raises:
        UndefinedError: 0 to a power that is not positive, or a number too large even for an interval.
        TooLargeError: an exact number too large to write down.
    """
    if exponent == 1:
        return base
    if is_exact(base):
        if not base and exponent <= 0:
            raise UndefinedError("0 to a power that is not positive")
        if base in (0, 1, -1):
            return base if exponent % 2 else abs(base)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > _MAX_BITS:
            raise TooLargeError
        return base**exponent
    if abs(exponent) > _MAX_BITS:
        raise UndefinedError("an exponent of more than a million")
    return divide(ONE, base**-exponent) if exponent < 0 else base**exponent


def positive_power(base: Real, exponent: Real) -> Real:
    """Base ** exponent of a positive base; exact where it is rational."""
    if is_exact(exponent) and is_exact(base):
        if exponent.denominator == 1:
            return integer_power(base, exponent.numerator)
        root = _exact_root(base, exponent.denominator)
        if root is not None:
            return integer_power(root, exponent.numerator)
    if is_exact(exponent) and exponent.denominator == 2 and abs(exponent.numerator) < 1000:
        return integer_power(iv.sqrt(interval(base)), exponent.numerator)
    return exp(multiply(exponent, log(base)))


def _exact_root(base: Fraction, index: int) -> Fraction | None:
    """The root if it is rational."""
    if index > 64:
        return None
    above, below = (_integer_root(part, index) for part in (base.numerator, base.denominator))
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(value: int, index: int) -> int | None:
    if index == 2:
        root = math.isqrt(value)
    else:
        low, high = 0, 1 << (value.bit_length() // index + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**index <= value else (low, middle - 1)
        root = low
    return root if root**index == value else None


def exp(value: Real) -> Real:
    """E ** value.

    Raises:
        UndefinedError: the result is too large even for an interval.
    """
    if is_exact(value) and not value:
        return ONE
    bounds = interval(value)
    if bounds.b > _MAX_EXPONENT or bounds.a < -_MAX_EXPONENT:
        raise UndefinedError("an exponent too large")
    return iv.exp(bounds)


def log(value: Real) -> Real:
    """The natural logarithm of a positive number.

    Raises:
        UndefinedError: the number is not positive, or cannot be told from 0.
    """
    if sign(value) <= 0:
        raise UndefinedError("the logarithm of what is not positive")
    return ZERO if is_exact(value) and value == 1 else iv.log(interval(value))


def floor(value: Real) -> Fraction:
    """The largest integer that is not above the value.

    Raises:
        UndefinedError: the interval holds an integer, so that it cannot be told.
    """
    if is_exact(value):
        return Fraction(math.floor(value))
    low, high = (to_int(end, round_floor) for end in value._mpi_)
    if low != high:
        raise UndefinedError("an interval around an integer")
    return Fraction(low)


def magnitude(value: Real) -> Any:
    """An upper bound of the absolute value, as an interval's end."""
    bounds = interval(value)
    return max(abs(bounds.a), abs(bounds.b))


def _small(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > 4 * _MAX_BITS:
        raise TooLargeError
    return value
