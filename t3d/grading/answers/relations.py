"""Equations and inequalities: what they state, and when two are the same."""

from collections.abc import Callable, Sequence

from t3d.grading.answers import algebra
from t3d.grading.answers.nodes import Node, NotAlgebraError, negated, number
from t3d.grading.answers.parser import parse
from t3d.grading.answers.spelling import Tokens
from t3d.grading.answers.structure import bracketed, split

Sides = tuple[list[Tokens], list[str]]
Same = Callable[[Tokens, Tokens], bool]

_FLIPPED = {">": "<", r"\geq": r"\leq"}
_SYMMETRIC = {"=", r"\neq", r"\approx", r"\cong", r"\sim", r"\Leftrightarrow", r"\equiv"}
_STATING = {"=", r"\in", r"\approx"}
_NAMING = {r"\angle", r"\triangle", r"\measuredangle", "m", "|", "#"}


def is_name(tokens: Tokens) -> bool:
    """Whether a side only names what the other gives: `x`, `f(x)`, `AB`, `P(A)`, `(x,y)`, `dy/dx`, words."""
    if not tokens:
        return False
    if all(token.startswith(r"\text{") for token in tokens):
        return True
    if len(terms := split(tokens, (":",))) > 1:  # a ratio
        return all(map(is_name, terms))
    enclosed = bracketed(tokens)
    if enclosed and enclosed[0] in ("(", r"\langle"):
        return all(map(is_name, split(enclosed[1], (",", ";"))))
    if any(token in _NAMING for token in tokens[:2]) and tokens[-1].isalpha():
        return True
    head, rest = tokens[0], bracketed(tokens[1:])
    if rest and rest[0] == "(" and (head.isalpha() or head[0] == "\\"):
        return (len(head) == 1 and (head.isupper() or not {"+", "-"} & set(rest[1]))) or is_name((head,))
    try:
        node = parse(tokens)
    except NotAlgebraError:
        return False
    return _names(node)


def _names(node: Node) -> bool:
    if node.op == "symbol":
        return True
    if node.op == "constant":
        return node.name in ("e", "i")
    if node.op == "opaque":
        return True
    if node.op == "pow":  # an inverse or a transpose
        base, exponent = node.args
        raised = exponent == negated(number(1)) or (exponent.op == "symbol" and exponent.name == "T")
        return base.op == "symbol" and base.name.isupper() and raised
    if node.op == "matrix":
        return all(map(_names, node.args))
    if node.op in ("call", "abs"):
        return len(node.args) == 1 and (_names(node.args[0]) or node.args[0].op == "degree")
    if node.op == "mul":
        return all(
            (part.op == "mul" and _names(part)) or (part.op == "symbol" and part.name.isupper()) for part in node.args
        )
    return False


def stated(sides: Sides) -> Tokens | None:
    """The value that a relation gives to a name: `x = 2 + 3 = 5` states 5. None if it is an equation."""
    parts, signs = sides
    if set(signs) <= _STATING and len(set(signs)) == 1 and parts[-1] and (not parts[0] or is_name(parts[0])):
        return parts[-1]
    return None


def same_relations(ours: Sides, theirs: Sides, same: Same) -> bool:
    """Whether two relations are the same as wholes."""
    values = [stated(side) for side in (ours, theirs)]
    if values[0] and values[1] and ours[0][0] == theirs[0][0]:
        return same(values[0], values[1]) or (len(ours[1]) == len(theirs[1]) == 1 and _same_pairs(ours, theirs, same))
    if any(value and ({"(", "'"} & set(side[0][0])) for value, side in zip(values, (ours, theirs), strict=True)):
        pairs = [(ours[0], order) for order in (theirs[0], theirs[0][::-1])]
        return any(len(a) == len(b) and all(map(same, a, b)) for a, b in pairs)
    return len(ours[1]) == len(theirs[1]) and _same_pairs(ours, theirs, same)


def _same_pairs(ours: Sides, theirs: Sides, same: Same) -> bool:
    """Compares chains link by link, from either end."""
    left, right = _links(ours), _links(theirs)
    if len(left) == 1:
        return _same_link(left[0], right[0], same)
    if all(sign == "=" for sign, _, _ in left + right):
        return all(same(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    return any(all(_same_link(a, b, same) for a, b in zip(left, order, strict=True)) for order in (right, right[::-1]))


def _links(sides: Sides) -> list[tuple[str, Tokens, Tokens]]:
    """Each sign with its sides, turned so that the smaller side is the left one."""
    parts, signs = sides
    links = []
    for sign, left, right in zip(signs, parts, parts[1:], strict=False):
        links.append((_FLIPPED[sign], right, left) if sign in _FLIPPED else (sign, left, right))
    return links


def _same_link(ours: tuple[str, Tokens, Tokens], theirs: tuple[str, Tokens, Tokens], same: Same) -> bool:
    sign, *left = ours
    other, *right = theirs
    if sign != other or not all((*left, *right)):
        return False
    if all(same(a, b) for a, b in zip(left, right, strict=True)):
        return True
    if sign in _SYMMETRIC and all(same(a, b) for a, b in zip(left, right[::-1], strict=True)):
        return True
    if sign not in ("=", r"\neq", "<", r"\leq"):
        return False
    try:
        differences = [_difference(pair) for pair in (left, right)]
    except NotAlgebraError:
        return False
    factor = algebra.ratio(*differences)
    return factor is not None and (factor > 0 or sign in ("=", r"\neq"))


def _difference(pair: Sequence[Tokens]) -> Node:
    """Left - right.

    Raises:
        NotAlgebraError: a side is no scalar expression.
    """
    left, right = map(parse, pair)
    if any(node.op in ("matrix", "tuple") for node in (left, right)):
        raise NotAlgebraError("no scalars")
    return Node("add", (left, negated(right)))
