"""Complex numbers of exact or interval parts, and the functions of them that answers use."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from mpmath import iv

from t3d.grading.answers import reals
from t3d.grading.answers.reals import ONE, ZERO, Real, UndefinedError

_MAX_FACTORIAL = 20_000


@dataclass(frozen=True, slots=True)
class Value:
    """A number; `im` is an exact 0 where the number is known to be real."""

    re: Real
    im: Real = ZERO

    @property
    def is_real(self) -> bool:
        """Whether the imaginary part is exactly 0."""
        return reals.is_exact(self.im) and self.im == 0


def real(value: Value) -> Real:
    """The real number that it is.

    Raises:
        UndefinedError: it is not real.
    """
    if not value.is_real:
        raise UndefinedError("real numbers only")
    return value.re


def integer(value: Value) -> int:
    """The integer that it is.

    Raises:
        UndefinedError: it is none.
    """
    exact = real(value)
    if not reals.is_exact(exact) or exact.denominator != 1:
        raise UndefinedError("integers only")
    return int(exact)


def add(left: Value, right: Value) -> Value:
    """Left + right."""
    return Value(reals.add(left.re, right.re), reals.add(left.im, right.im))


def negate(value: Value) -> Value:
    """-value."""
    return Value(-value.re, -value.im)


def multiply(left: Value, right: Value) -> Value:
    """Left * right."""
    if left.is_real and right.is_real:
        return Value(reals.multiply(left.re, right.re))
    return Value(
        reals.add(reals.multiply(left.re, right.re), -reals.multiply(left.im, right.im)),
        reals.add(reals.multiply(left.re, right.im), reals.multiply(left.im, right.re)),
    )


def divide(left: Value, right: Value) -> Value:
    """Left / right."""
    if right.is_real:
        return Value(reals.divide(left.re, right.re), reals.divide(left.im, right.re))
    scaled = multiply(left, Value(right.re, -right.im))
    norm = reals.add(reals.multiply(right.re, right.re), reals.multiply(right.im, right.im))
    return Value(reals.divide(scaled.re, norm), reals.divide(scaled.im, norm))


def conjugate(value: Value) -> Value:
    """The complex conjugate."""
    return Value(value.re, -value.im)


def absolute(value: Value) -> Value:
    """The modulus."""
    if value.is_real:
        return Value(abs(value.re))
    square = reals.add(reals.multiply(value.re, value.re), reals.multiply(value.im, value.im))
    return Value(reals.positive_power(square, Fraction(1, 2)))


def exp(value: Value) -> Value:
    """E ** value."""
    size = reals.exp(value.re)
    if value.is_real:
        return Value(size)
    angle = reals.interval(value.im)
    return Value(reals.multiply(size, iv.cos(angle)), reals.multiply(size, iv.sin(angle)))


def log(value: Value) -> Value:
    """The natural logarithm, its imaginary part in (-pi, pi]."""
    if value.is_real and reals.sign(value.re) > 0:
        return Value(reals.log(value.re))
    return Value(reals.log(absolute(value).re), _angle(value))


def _angle(value: Value) -> Real:
    if value.is_real:
        return ZERO if reals.sign(value.re) > 0 else iv.mpf(iv.pi)
    return iv.atan2(reals.interval(value.im), reals.interval(value.re))


def power(base: Value, exponent: Value, only_real: bool) -> Value:
    """Base ** exponent: an odd root of a negative number is real, any other principal.

    Args:
        base: any number.
        exponent: any number.
        only_real: whether a result that is not real is undefined.

    Raises:
        UndefinedError: 0 to a power that is not positive; not real.
    """
    if exponent.is_real and reals.is_exact(exponent.re) and exponent.re.denominator == 1:
        return _integer_power(base, exponent.re.numerator)
    if base.is_real and reals.is_exact(base.re) and base.re == 0:
        if exponent.is_real and reals.sign(exponent.re) > 0:
            return Value(ZERO)
        raise UndefinedError("0 to a power that is not positive")
    if base.is_real and exponent.is_real:
        if reals.sign(base.re) > 0:
            return Value(reals.positive_power(base.re, exponent.re))
        if reals.is_exact(exponent.re) and exponent.re.denominator % 2:
            size = reals.positive_power(-base.re, exponent.re)
            return Value(-size if exponent.re.numerator % 2 else size)
    if only_real:
        raise UndefinedError("not real")
    if base.is_real and reals.is_exact(exponent.re) and exponent.is_real and exponent.re.denominator == 2:
        size = reals.positive_power(-base.re, exponent.re)
        return multiply(Value(size), _integer_power(Value(ZERO, ONE), exponent.re.numerator % 4))
    return exp(multiply(exponent, log(base)))


def _integer_power(base: Value, exponent: int) -> Value:
    if base.is_real:
        return Value(reals.integer_power(base.re, exponent))
    if abs(exponent) > 10_000:
        return exp(multiply(Value(Fraction(exponent)), log(base)))
    result, square, left = Value(ONE), base, abs(exponent)
    while left:
        result = multiply(result, square) if left % 2 else result
        square, left = (multiply(square, square) if left > 1 else square), left // 2
    return divide(Value(ONE), result) if exponent < 0 else result


def sin(value: Value) -> Value:
    """The sine."""
    if value.is_real:
        return Value(ZERO if reals.is_exact(value.re) and value.re == 0 else iv.sin(reals.interval(value.re)))
    turned = exp(multiply(Value(ZERO, ONE), value))
    return divide(add(turned, negate(divide(Value(ONE), turned))), Value(ZERO, Fraction(2)))


def cos(value: Value) -> Value:
    """The cosine."""
    if value.is_real:
        return Value(ONE if reals.is_exact(value.re) and value.re == 0 else iv.cos(reals.interval(value.re)))
    turned = exp(multiply(Value(ZERO, ONE), value))
    return divide(add(turned, divide(Value(ONE), turned)), Value(Fraction(2)))


def _arctan2(above: Real, below: Real) -> Value:
    if reals.is_exact(above) and above == 0 and reals.sign(below) > 0:
        return Value(ZERO)
    return Value(iv.atan2(reals.interval(above), reals.interval(below)))


def _leg(value: Value) -> Real:
    """The square root of 1 - x^2."""
    left = reals.add(ONE, -reals.multiply(real(value), real(value)))
    if not (reals.is_exact(left) and left == 0) and reals.sign(left) < 0:
        raise UndefinedError("outside of [-1, 1]")
    return ZERO if reals.is_exact(left) and left == 0 else reals.positive_power(left, Fraction(1, 2))


def _hyperbolic(value: Value, sign: int) -> Value:
    """(e^x + sign e^-x) / 2."""
    grown = exp(value)
    return divide(add(grown, multiply(Value(Fraction(sign)), divide(Value(ONE), grown))), Value(Fraction(2)))


def _arsinh(value: Value, sign: int) -> Value:
    """log(x + sqrt(x^2 + sign)) of a real number."""
    root = reals.positive_power(reals.add(reals.multiply(real(value), real(value)), Fraction(sign)), Fraction(1, 2))
    return Value(reals.log(reals.add(real(value), root)))


def _artanh(value: Value) -> Value:
    ratio = divide(add(Value(ONE), value), add(Value(ONE), negate(value)))
    return Value(reals.divide(reals.log(real(ratio)), Fraction(2)))


def _reciprocal(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    return lambda value: divide(Value(ONE), function(value))


def _of_reciprocal(function: Callable[[Value], Value]) -> Callable[[Value], Value]:
    return lambda value: function(divide(Value(ONE), value))


def _arcsin(value: Value) -> Value:
    return _arctan2(real(value), _leg(value))


def _arccos(value: Value) -> Value:
    return _arctan2(_leg(value), real(value))


def _tan(value: Value) -> Value:
    return divide(sin(value), cos(value))


def _sinh(value: Value) -> Value:
    return _hyperbolic(value, -1)


def _cosh(value: Value) -> Value:
    return _hyperbolic(value, 1)


def _tanh(value: Value) -> Value:
    return divide(_sinh(value), _cosh(value))


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "sin": sin,
    "cos": cos,
    "tan": _tan,
    "cot": _reciprocal(_tan),
    "sec": _reciprocal(cos),
    "csc": _reciprocal(sin),
    "arcsin": _arcsin,
    "arccos": _arccos,
    "arctan": lambda value: _arctan2(real(value), ONE),
    "arccot": lambda value: _arctan2(ONE, real(value)),
    "arcsec": _of_reciprocal(_arccos),
    "arccsc": _of_reciprocal(_arcsin),
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "coth": _reciprocal(_tanh),
    "sech": _reciprocal(_cosh),
    "csch": _reciprocal(_sinh),
    "arsinh": lambda value: _arsinh(value, 1),
    "arcosh": lambda value: _arsinh(value, -1),
    "artanh": _artanh,
    "ln": log,
}
"""Functions of one number, by name."""


def factorial(value: Value) -> Value:
    """The factorial of an integer from 0 to 20 000.

    Raises:
        UndefinedError: of anything else.
    """
    number = integer(value)
    if not 0 <= number <= _MAX_FACTORIAL:
        raise UndefinedError("the factorial of a small integer only")
    return Value(Fraction(math.factorial(number)))


def binomial(above: Value, below: Value) -> Value:
    """The binomial coefficient for integers below = 0 ... 20 000.

    Raises:
        UndefinedError: of anything else.
    """
    chosen = integer(below)
    total = real(above)
    if not 0 <= chosen <= _MAX_FACTORIAL or not reals.is_exact(total):
        raise UndefinedError("small binomials only")
    if total.denominator == 1 and total >= 0:
        if chosen * total.numerator.bit_length() > 1 << 21:
            raise UndefinedError("small binomials only")
        return Value(Fraction(math.comb(int(total), chosen)))
    product = ONE
    for place in range(min(chosen, 200)):
        product = product * (total - place) / (place + 1)
    return Value(product)


def common(name: str, values: list[Value]) -> Value:
    """gcd, lcm, max or min.

    Raises:
        UndefinedError: they have none, or it cannot be told.
    """
    if name in ("gcd", "lcm"):
        numbers = [integer(value) for value in values]
        return Value(Fraction(math.gcd(*numbers) if name == "gcd" else math.lcm(*numbers)))
    best = real(values[0])
    for value in values[1:]:
        ahead = reals.sign(reals.add(real(value), -best))
        best = real(value) if (ahead > 0) == (name == "max") and ahead else best
    return Value(best)
