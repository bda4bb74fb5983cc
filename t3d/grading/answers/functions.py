"""Functions of operands, as expressions."""

from t3d.grading.answers import tables
from t3d.grading.answers.nodes import Node, NotAlgebraError, constant, number


def applied(name: str, index: list[Node], operands: list[Node]) -> Node:
    """A function of operands.

    Raises:
        NotAlgebraError: an index that only a logarithm has.
    """
    if index and name != "log":
        raise NotAlgebraError("an index of a function")
    if name == "exp":
        return Node("pow", (constant("e"), operands[0]))
    if name == "cis":
        turned = [Node("call", (operands[0],), part) for part in ("cos", "sin")]
        return Node("add", (turned[0], Node("mul", (constant("i"), turned[1]))))
    if name == "lg":
        return Node("call", (operands[0], number(10)), "log")
    if name == "det" and operands[0].op == "matrix":
        return tables.determinant(operands[0])
    return Node("opaque" if name == "det" else "call", (*operands, *index), name)
