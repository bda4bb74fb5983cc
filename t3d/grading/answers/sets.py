r"""Sets of real numbers: intervals, unions, differences and inequalities in one variable, compared exactly."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from t3d.grading.answers import algebra
from t3d.grading.answers.nodes import Node, NotAlgebraError, negated, number, symbols
from t3d.grading.answers.parser import parse
from t3d.grading.answers.spelling import Tokens
from t3d.grading.answers.structure import BUILDERS, alternatives, bracketed, elements, relation, split, steps

REALS = r"\mathbb{R}"
_FLIPPED = {">": "<", r"\geq": r"\leq"}
_AND = ("and", r"\text{and}", r"\land")
_OPERATIONS = {r"\cup": "cup", r"\cap": "cap", r"\setminus": "minus", "-": "minus"}


class NotRealSetError(ValueError):
    """What is read is no set of real numbers with ends that can be compared."""


@dataclass(frozen=True)
class End:
    """A point of the line and which side of it: where a set begins or stops.

    `side` is -1 just before the point, 1 just after it. `point` is None beyond all numbers, there `side` tells
    which infinity.
    """

    point: Node | None
    side: int


_BELOW, _ABOVE = End(None, -1), End(None, 1)
Piece = tuple[End, End]
RealSet = list[Piece]


def _order(left: End, right: End) -> int:
    if left.point is None or right.point is None:
        ours, theirs = (end.side if end.point is None else 0 for end in (left, right))
        return ours - theirs
    order = algebra.compare(left.point, right.point)
    if order is None:
        raise NotRealSetError
    return order or left.side - right.side


def same_sets(left: RealSet, right: RealSet) -> bool:
    """Whether two sets are equal."""
    ours, theirs = (_merged(pieces) for pieces in (left, right))
    return len(ours) == len(theirs) and all(
        _order(a, b) == 0 for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)
    )


def _merged(pieces: RealSet) -> RealSet:
    """Sorts the pieces, drops empty ones and joins those that touch."""
    real = [piece for piece in pieces if _order(*piece) < 0]
    result: RealSet = []
    for piece in sorted(real, key=cmp_to_key(_by_first)):
        if result and _order(result[-1][1], piece[0]) >= 0:
            last = result[-1][1] if _order(result[-1][1], piece[1]) > 0 else piece[1]
            result[-1] = (result[-1][0], last)
        else:
            result.append(piece)
    return result


def _by_first(left: Piece, right: Piece) -> int:
    return _order(left[0], right[0])


def _complement(pieces: RealSet) -> RealSet:
    ends = [_BELOW, *(end for piece in _merged(pieces) for end in piece), _ABOVE]
    return _merged(list(zip(ends[::2], ends[1::2], strict=True)))


def _common(left: RealSet, right: RealSet) -> RealSet:
    return _complement(_complement(left) + _complement(right))


def real_set(tokens: Tokens) -> RealSet:
    r"""Reads `(1,2]\cup\{5\}`, `\mathbb{R}\setminus\{0\}`, `x<1 or x>2`, `x\neq 0`.

    Raises:
        NotRealSetError: it is none.
    """
    parts = alternatives(tokens)
    if len(parts) > 1:
        return [piece for part in parts for piece in real_set(part)]
    parts = split(tokens, _AND)
    if len(parts) > 1:
        return functools.reduce(_common, map(real_set, parts))
    sides = relation(tokens)
    if sides is not None:
        return _of_relation(*sides)
    operands = split(tokens, _OPERATIONS)
    signs = [_OPERATIONS[token] for depth, token in steps(tokens) if depth <= 0 and token in _OPERATIONS]
    if len(signs) != len(operands) - 1:
        raise NotRealSetError
    result = _simple(operands[0])
    for sign, operand in zip(signs, operands[1:], strict=True):
        other = _simple(operand)
        result = _COMBINED[sign](result, other)
    return result


_COMBINED: dict[str, Callable[[RealSet, RealSet], RealSet]] = {
    "cup": lambda left, right: left + right,
    "cap": _common,
    "minus": lambda left, right: _common(left, _complement(right)),
}


def _simple(tokens: Tokens) -> RealSet:
    if tokens == (REALS,):
        return [(_BELOW, _ABOVE)]
    if tokens[0] == REALS and tokens[1:] in (("^", "{", "+", "}"), ("^", "{", "-", "}")):
        zero = number(0)
        return [(End(zero, 1), _ABOVE)] if tokens[3] == "+" else [(_BELOW, End(zero, -1))]
    if tokens == (r"\emptyset",):
        return []
    enclosed = bracketed(tokens)
    if enclosed is None:
        raise NotRealSetError
    opening, inside, closing = enclosed
    if (opening, closing) == (r"\{", r"\}") and len(built := split(inside, BUILDERS)) == 2:
        return _of_builder(*built)
    if (opening, closing) == (r"\{", r"\}"):
        return [_point(member) for member in elements(inside)]
    ends = split(inside, (",", ";"))
    if opening not in "([" or closing not in ")]":
        raise NotRealSetError
    if len(ends) != 2:
        return real_set(inside)
    return [(_end(ends[0], 1 if opening == "(" else -1), _end(ends[1], -1 if closing == ")" else 1))]


def _of_builder(variable: Tokens, condition: Tokens) -> RealSet:
    r"""`\{x : x>1\}`, `\{x\in\mathbb{R} : x>1, x<2\}`."""
    if variable[1:] not in ((), (r"\in", REALS)) or not variable[0].isalpha():
        raise NotRealSetError
    result: RealSet = [(_BELOW, _ABOVE)]
    for part in split(condition, (",", *_AND)):
        if not any(token == variable[0] for token in part):
            raise NotRealSetError
        result = _common(result, real_set(part))
    return result


def _scalar(tokens: Sequence[str]) -> Node:
    try:
        node = parse(tokens)
    except NotAlgebraError as error:
        raise NotRealSetError from error
    if node.op in ("matrix", "tuple") or symbols(node):
        raise NotRealSetError
    return node


def _point(tokens: Tokens) -> Piece:
    node = _scalar(tokens)
    return End(node, -1), End(node, 1)


def _end(tokens: Tokens, side: int) -> End:
    if tokens in ((r"\infty",), ("+", r"\infty")):
        return _ABOVE
    if tokens == ("-", r"\infty"):
        return _BELOW
    return End(_scalar(tokens), side)


def _of_relation(parts: list[Tokens], signs: list[str]) -> RealSet:
    r"""A variable's chain: `1<x\leq 2`, `x\neq 0`, `x\in(0,1)`."""
    if signs == [r"\in"] and len(parts[0]) == 1:
        return real_set(parts[1])
    result: RealSet = [(_BELOW, _ABOVE)]
    names = set()
    for sign, left, right in zip(signs, parts, parts[1:], strict=False):
        if sign in _FLIPPED:
            sign, left, right = _FLIPPED[sign], right, left
        half, name = _half(sign, left, right)
        names.add(name)
        result = _common(result, half)
    if len(names) != 1:
        raise NotRealSetError
    return result


def names(tokens: Tokens) -> set[str]:
    """The letters whose values an inequality, or several, restricts; none of an interval."""
    found: set[str] = set()
    for part in alternatives(tokens):
        for side in (relation(part) or ([], []))[0]:
            found |= {token for token in side if token.isalpha() and len(token) == 1} - {"e", "i"}
    return found


def _half(sign: str, left: Tokens, right: Tokens) -> tuple[RealSet, str]:
    """The numbers on one side of a linear inequality's end, and the variable's name."""
    try:
        sides = [parse(left), parse(right)]
    except NotAlgebraError as error:
        raise NotRealSetError from error
    free = [symbols(side) for side in sides]
    if sign not in ("<", r"\leq", r"\neq") or sorted(map(len, free)) != [0, 1]:
        raise NotRealSetError
    variable = sides[0] if free[0] else sides[1]
    bound = sides[1] if free[0] else sides[0]
    (name,) = free[0] or free[1]
    if variable.op == "abs":
        return _distance(sign, variable.args[0], bound, bool(free[0])), name
    if variable.op != "symbol":
        variable, bound, turned = _linear(variable, bound, name)
    else:
        turned = False
    if sign == r"\neq":
        return [(_BELOW, End(bound, -1)), (End(bound, 1), _ABOVE)], name
    below = bool(free[0]) != turned
    open_end = sign == "<"
    if bound.op == "constant" and bound.name == "infinity":
        return [(_BELOW, _ABOVE)], name
    if bound.op == "neg" and bound.args[0].name == "infinity":
        return [(_BELOW, _ABOVE)], name
    if below:
        return [(_BELOW, End(bound, -1 if open_end else 1))], name
    return [(End(bound, 1 if open_end else -1), _ABOVE)], name


def _distance(sign: str, inside: Node, bound: Node, below: bool) -> RealSet:
    """Where |inside| is below (or above) a bound."""
    name = next(iter(symbols(inside)))
    inside, high, turned = _linear(inside, bound, name)
    low = _linear(inside, negated(bound), name)[1]
    low, high = (high, low) if turned else (low, high)
    if algebra.compare(bound, number(0)) == -1:
        raise NotRealSetError
    if sign == r"\neq":
        return _complement([(End(low, -1), End(low, 1)), (End(high, -1), End(high, 1))])
    outside = 1 if (sign == "<") == below else -1
    inner = [(End(low, outside), End(high, -outside))]
    return inner if below else _complement(inner)


def _linear(node: Node, bound: Node, name: str) -> tuple[Node, Node, bool]:
    """Solves a x + b = bound for x; the last says whether a is negative.

    Raises:
        NotRealSetError: the side is not linear.
    """
    at = [_replaced(node, name, number(place)) for place in (0, 1)]
    slope = Node("add", (at[1], negated(at[0])))
    sign = algebra.compare(slope, number(0))
    straight = Node("add", (at[0], Node("mul", (slope, Node("symbol", name=name)))))
    if not sign or not algebra.equal(node, straight):
        raise NotRealSetError
    return node, Node("div", (Node("add", (bound, negated(at[0]))), slope)), sign < 0


def _replaced(node: Node, name: str, value: Node) -> Node:
    if node.op == "symbol" and node.name == name:
        return value
    return Node(node.op, tuple(_replaced(child, name, value) for child in node.args), node.name, node.value)
