"""Matrices and tuples of expressions: built, scaled, added, multiplied, transposed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from t3d.grading.answers.nodes import Node, NotAlgebraError, negated

MATRICES = {
    "matrix",
    "pmatrix",
    "bmatrix",
    "Bmatrix",
    "smallmatrix",
    "psmallmatrix",
    "bsmallmatrix",
    "array",
    "tabular",
}
DETERMINANTS = {"vmatrix", "vsmallmatrix"}
_MAX_DETERMINANT = 5
_ARROWS = (r"\vec", r"\overrightarrow")


def rows(tokens: Sequence[str]) -> list[list[list[str]]]:
    r"""Splits a table's inside at `\\` and `&`; a last row without anything is none."""
    result: list[list[list[str]]] = [[[]]]
    depth = 0
    for token in tokens:
        depth += (token == "{" or token.startswith(r"\begin")) - (token == "}" or token.startswith(r"\end"))
        if not depth and token == r"\\":
            result.append([[]])
        elif not depth and token == "&":
            result[-1].append([])
        else:
            result[-1][-1].append(token)
    return [row for row in result if row != [[]]]


def matrix(entries: Sequence[Sequence[Node]]) -> Node:
    """A matrix, row by row.

    Raises:
        NotAlgebraError: rows of different lengths, or none.
    """
    if not entries or len({len(row) for row in entries}) != 1:
        raise NotAlgebraError("no matrix")
    return Node("matrix", tuple(node for row in entries for node in row), str(len(entries[0])))


def columns(node: Node) -> int:
    """How many columns a matrix has."""
    return int(node.name)


def grid(node: Node) -> list[tuple[Node, ...]]:
    """A matrix's rows."""
    width = columns(node)
    return [node.args[start : start + width] for start in range(0, len(node.args), width)]


def is_table(node: Node) -> bool:
    """Whether it is a matrix or a tuple and no number."""
    return node.op in ("matrix", "tuple")


def combined(op: str, nodes: Sequence[Node]) -> Node:
    """The sum or product of nodes, entry by entry where they are matrices or tuples.

    Raises:
        NotAlgebraError: shapes that do not go together.
    """
    if len(nodes) == 1:
        return nodes[0]
    if not any(is_table(_bare(node)) for node in nodes):
        return Node(op, tuple(nodes))
    result = _pushed(nodes[0])
    for node in map(_pushed, nodes[1:]):
        result = _sum(result, node) if op == "add" else _product(result, node)
    return result


def product(sign: str, left: Node, right: Node) -> Node:
    r"""What a sign between factors makes: only of vectors, `\times` and `\cdot` are different products."""
    nabla = left.op == "symbol" and left.name == r"\nabla"
    if nabla or all(node.op == "opaque" and node.name.startswith(_ARROWS) for node in (left, right)):
        return Node("opaque", (left, right), sign)
    return combined("mul", [left, right])


def _bare(node: Node) -> Node:
    return _bare(node.args[0]) if node.op == "neg" else node


def _pushed(node: Node) -> Node:
    """A negated table as a table of negated entries."""
    if node.op != "neg":
        return node
    inside = _pushed(node.args[0])
    return replace(inside, args=tuple(map(negated, inside.args))) if is_table(inside) else node


def pushed(node: Node) -> Node:
    """The node with a sign before a table moved into it."""
    return _pushed(node)


def _sum(left: Node, right: Node) -> Node:
    if (left.op, left.name, len(left.args)) != (right.op, right.name, len(right.args)) or not is_table(left):
        raise NotAlgebraError("a sum of different shapes")
    pairs = zip(left.args, right.args, strict=True)
    return replace(left, args=tuple(Node("add", pair) for pair in pairs))


def _product(left: Node, right: Node) -> Node:
    if not is_table(left) and not is_table(right):
        return Node("mul", (left, right))
    if not is_table(left):
        return replace(right, args=tuple(Node("mul", (left, entry)) for entry in right.args))
    if not is_table(right):
        return replace(left, args=tuple(Node("mul", (right, entry)) for entry in left.args))
    if left.op != "matrix" or right.op != "matrix" or columns(left) != len(grid(right)):
        raise NotAlgebraError("a product of different shapes")
    across = list(zip(*grid(right), strict=True))
    return matrix([[_dot(row, column) for column in across] for row in grid(left)])


def _dot(row: Sequence[Node], column: Sequence[Node]) -> Node:
    terms = [Node("mul", pair) for pair in zip(row, column, strict=True)]
    return combined("add", terms)


def quotient(above: Node, below: Node) -> Node:
    """Above / below, where above may be a table.

    Raises:
        NotAlgebraError: below is a table.
    """
    if is_table(_bare(below)):
        raise NotAlgebraError("division by a table")
    above = _pushed(above) if is_table(_bare(above)) else above
    if is_table(above):
        return replace(above, args=tuple(Node("div", (entry, below)) for entry in above.args))
    return Node("div", (above, below))


def raised(base: Node, exponent: Node) -> Node:
    """Base ** exponent of a number.

    Raises:
        NotAlgebraError: of a table.
    """
    if is_table(_bare(base)) or is_table(_bare(exponent)):
        raise NotAlgebraError("a power of a table")
    return Node("pow", (base, exponent))


def transposed(node: Node) -> Node:
    """The transpose; a tuple becomes a column."""
    if node.op == "tuple":
        return matrix([[entry] for entry in node.args])
    return matrix([list(column) for column in zip(*grid(node), strict=True)])


def determinant(node: Node) -> Node:
    """The determinant, written out.

    Raises:
        NotAlgebraError: the matrix is not square, or larger than five.
    """
    entries = grid(node)
    if len(entries) != columns(node) or len(entries) > _MAX_DETERMINANT:
        raise NotAlgebraError("no determinant")
    if len(entries) == 1:
        return node.args[0]
    return combined("add", list(_minors(entries)))


def _minors(entries: Sequence[Sequence[Node]]) -> Iterator[Node]:
    for place, entry in enumerate(entries[0]):
        minor = matrix([[*row[:place], *row[place + 1 :]] for row in entries[1:]])
        term = Node("mul", (entry, determinant(minor)))
        yield negated(term) if place % 2 else term
