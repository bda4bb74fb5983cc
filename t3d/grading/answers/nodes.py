"""Expressions as trees: what the parser makes and the evaluator reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


class NotAlgebraError(ValueError):
    """The notation is none that this package reads as an expression; answers are then compared as written."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and its operands.

    Attributes:
        op: number, symbol, constant (pi, e, i, infinity), add, mul, div, neg, pow, root (radicand, index), call,
            abs, conjugate, floor, ceil, factorial, binom, degree, opaque (what algebra does not know: equal heads and
            equal operands make equal values), bound (integrals, sums, ...: see `evaluate`), matrix, tuple.
        args: the operands.
        name: of a symbol, constant, function, opaque head; "columns" of a matrix; brackets of a tuple.
        value: of a number.
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def number(value: Fraction | int) -> Node:
    """A leaf: an exact number."""
    return Node("number", value=Fraction(value))


def symbol(name: str) -> Node:
    """A leaf: a letter, with its index and primes if it has any."""
    return Node("symbol", name=name)


def constant(name: str) -> Node:
    """A leaf: pi, e, i or infinity."""
    return Node("constant", name=name)


def negated(node: Node) -> Node:
    """Minus the expression."""
    return Node("neg", (node,))


def walk(node: Node) -> Iterator[Node]:
    """Yields the node and all below it."""
    yield node
    for child in node.args:
        yield from walk(child)


def has_constant(node: Node, name: str) -> bool:
    """Whether the constant occurs in the expression."""
    return any(part.op == "constant" and part.name == name for part in walk(node))


def symbols(node: Node) -> set[str]:
    """The names of the symbols in it."""
    return {part.name for part in walk(node) if part.op == "symbol"}


def free_symbols(node: Node) -> set[str]:
    """The names of the symbols that its value depends on: without the variables of integrals, sums and limits."""
    if node.op == "symbol":
        return {node.name}
    if node.op == "bound" and not node.name.startswith(("d^", "mixed")):
        variable, body, *bounds = node.args
        inner = free_symbols(body) - {variable.name} if bounds != [body] else free_symbols(body)
        return inner.union(*map(free_symbols, bounds))
    return set().union(*map(free_symbols, node.args))
