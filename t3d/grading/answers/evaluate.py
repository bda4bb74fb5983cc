"""Evaluates an expression at a point, exactly or as an interval."""

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import iv

from t3d.grading.answers import reals, values
from t3d.grading.answers.bounds import added, numeric, polynomial, polynomial_integral
from t3d.grading.answers.nodes import Node, has_constant, walk
from t3d.grading.answers.reals import ONE, ZERO, TooLargeError, UndefinedError
from t3d.grading.answers.values import Value

_DUMMIES = {
    "integral": (Fraction(21, 100), Fraction(43, 101), Fraction(77, 103)),
    "integer": (Fraction(2), Fraction(3), Fraction(5)),
}
_INFINITY = Value(Fraction(65537, 257))  # stands for infinity as a bound
_MARK = Value(Fraction(31337, 7919))  # stands for an operand that has no value, inside of opaque operations


@dataclass(frozen=True)
class Context:
    """Where and how to evaluate.

    Attributes:
        point: values of symbols.
        only_real: whether what is not real is undefined.
        log_base: the base of a logarithm written without; None: e.
        digits: with which integrals, sums, products, limits and derivatives are computed; 0: compared as written.
    """

    point: Mapping[str, Value] = field(default_factory=dict)
    only_real: bool = True
    log_base: int | None = None
    digits: int = 0


def evaluate(node: Node, context: Context) -> Value:
    """Returns the value of an expression.

    Raises:
        UndefinedError: it has none there, or none that the precision tells.
    """
    return _OPERATIONS[node.op](node, context)


def _symbol(node: Node, context: Context) -> Value:
    return context.point[node.name]


def _constant(node: Node, context: Context) -> Value:
    if node.name in context.point:  # i as the index of a sum
        return context.point[node.name]
    if node.name == "i":
        return Value(ZERO, ONE)
    if node.name == "infinity":
        raise UndefinedError("infinity is no number")
    return Value(iv.mpf(iv.pi if node.name == "pi" else iv.e))


def _sum(node: Node, context: Context) -> Value:
    total = evaluate(node.args[0], context)
    for child in node.args[1:]:
        total = values.add(total, evaluate(child, context))
    return total


def _product(node: Node, context: Context) -> Value:
    total = evaluate(node.args[0], context)
    for child in node.args[1:]:
        total = values.multiply(total, evaluate(child, context))
    return total


def _power(node: Node, context: Context) -> Value:
    base, exponent = node.args
    if base.op == "constant" and base.name == "e" and "e" not in context.point:
        return values.exp(evaluate(exponent, context))
    return values.power(evaluate(base, context), evaluate(exponent, context), context.only_real)


def _root(node: Node, context: Context) -> Value:
    radicand, index = (evaluate(child, context) for child in node.args)
    return values.power(radicand, values.divide(Value(ONE), index), context.only_real)


def _call(node: Node, context: Context) -> Value:
    operands = [evaluate(_radians(child) if node.name in _TRIGONOMETRIC else child, context) for child in node.args]
    if node.name in ("gcd", "lcm", "max", "min"):
        return values.common(node.name, operands)
    if node.name == "log":
        base = operands[1] if len(operands) > 1 else context.log_base
        above = _logarithm(operands[0], context)
        if base is None:
            return above
        below = base if isinstance(base, Value) else Value(Fraction(base))
        return values.divide(above, _logarithm(below, context))
    if node.name == "ln":
        return _logarithm(operands[0], context)
    return values.FUNCTIONS[node.name](operands[0])


_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")


def _radians(node: Node) -> Node:
    """The operand of a trigonometric function: there, a degree is pi/180."""
    if node.op == "degree":
        return Node("mul", (node.args[0], Node("constant", name="pi"), Node("number", value=Fraction(1, 180))))
    return replace(node, args=tuple(map(_radians, node.args))) if node.args else node


def _logarithm(value: Value, context: Context) -> Value:
    if context.only_real and (not value.is_real or reals.sign(value.re) <= 0):
        raise UndefinedError("not real")
    return values.log(value)


def _table(node: Node, context: Context) -> Value:
    raise UndefinedError(f"a {node.op} is no number")


def _rounded(node: Node, context: Context) -> Value:
    value = values.real(evaluate(node.args[0], context))
    return Value(reals.floor(value) if node.op == "floor" else -reals.floor(-value))


def _opaque(node: Node, context: Context) -> Value:
    """A value that equal operands share and others do not: 1 / (k + s + s^2) of a weighted sum s.

    The weights come from the head, so that no identity of algebra holds between opaque values by chance.
    """
    total = Value(_weight(node.name, 0))
    for place, child in enumerate(node.args):
        weight = Value(_weight(node.name, place + 1))
        total = values.add(total, values.multiply(weight, _operand(child, context)))
    below = values.add(values.add(total, values.multiply(total, total)), Value(_weight(node.name, -1)))
    return values.divide(Value(ONE), below)


def _operand(node: Node, context: Context) -> Value:
    """An operand of an opaque operation, where tables and infinity have values too."""
    if node.op in ("matrix", "tuple"):
        return _opaque(Node("opaque", node.args, node.op + node.name), context)
    try:
        return evaluate(node, replace(context, point={"infinity": _INFINITY, **context.point}))
    except TooLargeError:
        raise
    except UndefinedError:
        return _MARK


def _weight(head: str, place: int) -> Fraction:
    digest = hashlib.sha256(f"{head}|{place}".encode()).digest()
    return Fraction(1 + int.from_bytes(digest[:3], "big"), 1 + int.from_bytes(digest[3:5], "big"))


def _bound(node: Node, context: Context) -> Value:
    """An integral, sum, product or limit: the opaque value of its bounds and of its body at three points.

    `args` are the variable, the body and the bounds; `name` is the operator.
    """
    variable, body, *bounds = node.args
    known = not any(part.op == "opaque" for part in walk(body))
    if context.digits and known and (number := _number(node, context)) is not None:
        return number
    kind = "integer" if node.name in ("sum", "prod") else "integral"
    total = _opaque(Node("opaque", tuple(bounds), node.name), context)
    for dummy in _DUMMIES[kind]:
        inner = replace(context, point={**context.point, variable.name: Value(dummy)})
        shifted = values.add(total, values.multiply(Value(dummy), _operand(body, inner)))
        total = values.divide(Value(ONE), values.add(shifted, Value(_weight(node.name, -2))))
    return total


def _number(node: Node, context: Context) -> Value | None:
    """The value of an integral, sum, product, limit or derivative; None of one that is indefinite."""
    variable, body, *bounds = node.args

    def at(place: Value) -> Value:
        return evaluate(body, replace(context, point={**context.point, variable.name: place}))

    if node.name.startswith("d^"):
        order = int(re.sub(r"\D", "", node.name.partition("/")[0]) or 1)
        return numeric("diff", at, [_end(variable, context)], context.digits, order)
    if node.name == "lim" and len(bounds) == 1:
        jumps = any(part.op in ("floor", "ceil") for part in walk(body))
        if not jumps and not has_constant(bounds[0], "infinity"):
            with suppress(UndefinedError):  # continuous where it has a value
                return at(evaluate(bounds[0], context))
        return numeric("lim", at, [_end(bounds[0], context)], context.digits)
    if len(bounds) != 2 or node.name not in (r"\int", "sum", "prod"):
        return None
    infinite = any(has_constant(end, "infinity") for end in bounds)
    if node.name != r"\int" and not infinite:
        first, last = (values.integer(evaluate(end, context)) for end in bounds)
        return added(at, first, last, node.name == "prod")
    if node.name == r"\int" and not infinite:
        coefficients = polynomial(body, variable.name, lambda part: evaluate(part, context))
        if coefficients is not None:
            return polynomial_integral(coefficients, *(evaluate(end, context) for end in bounds))
    return numeric(node.name.removeprefix("\\"), at, [_end(end, context) for end in bounds], context.digits)


def _end(node: Node, context: Context) -> Any:
    """A bound as mpmath's number."""
    if has_constant(node, "infinity"):
        return -mpmath.inf if node.op == "neg" else mpmath.inf
    bounds = reals.interval(values.real(evaluate(node, context)))
    with mpmath.mp.workprec(4 * iv.prec):
        return mpmath.mpf(bounds.mid)


_OPERATIONS: dict[str, Callable[[Node, Context], Value]] = {
    "number": lambda node, context: Value(node.value),
    "symbol": _symbol,
    "constant": _constant,
    "add": _sum,
    "mul": _product,
    "div": lambda node, context: values.divide(evaluate(node.args[0], context), evaluate(node.args[1], context)),
    "neg": lambda node, context: values.negate(evaluate(node.args[0], context)),
    "pow": _power,
    "root": _root,
    "call": _call,
    "abs": lambda node, context: values.absolute(evaluate(node.args[0], context)),
    "conjugate": lambda node, context: values.conjugate(evaluate(node.args[0], context)),
    "floor": _rounded,
    "ceil": _rounded,
    "factorial": lambda node, context: values.factorial(evaluate(node.args[0], context)),
    "binom": lambda node, context: values.binomial(evaluate(node.args[0], context), evaluate(node.args[1], context)),
    "degree": lambda node, context: evaluate(node.args[0], context),
    "opaque": _opaque,
    "bound": _bound,
    "matrix": _table,
    "tuple": _table,
}
