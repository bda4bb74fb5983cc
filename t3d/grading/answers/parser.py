r"""Tokens to an expression tree: a recursive descent through the notation of answers.

Products written without a sign bind as those with one, from left to right: `1/2x` is x/2, unless `tight`. A
function without brackets takes the letters and numbers that follow it: `\sin 2x \cos y` is sin(2x) cos(y).
"""

import re
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction

from t3d.grading.answers import calculus, functions, tables
from t3d.grading.answers.names import FUNCTIONS, GREEK
from t3d.grading.answers.nodes import Node, NotAlgebraError, constant, has_constant, negated, number, symbol, symbols
from t3d.grading.answers.reader import Reader

_CLOSING = {"(": ")", "[": "]", "{": "}", r"\langle": r"\rangle", "|": "|", r"\|": r"\|"}
_CLOSING |= {r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\{": r"\}"}
_FUNCTION_LETTERS = frozenset("fghFGH")
_ACCENTS = {r"\vec", r"\hat", r"\bar", r"\overline", r"\tilde", r"\dot", r"\ddot", r"\widehat", r"\widetilde"}
_ACCENTS |= {r"\overrightarrow", r"\overleftrightarrow"}
_ROUND = {r"\abs": "abs", r"\floor": "floor", r"\ceil": "ceil"}
_ROOTS = {r"\surd": 2, r"\cuberoot": 3, r"\fourthroot": 4}
_INVERSE = {"sin", "cos", "tan", "cot", "sec", "csc"}
_AREA = {"sinh": "arsinh", "cosh": "arcosh", "tanh": "artanh"}
_INTEGRALS = {r"\int", r"\iint", r"\iiint", r"\oint"}
_SUMS = {r"\sum": "sum", r"\prod": "prod", r"\lim": "lim"}
_TIMES = {r"\cdot", r"\times", "*"}
_STOP = {
    ")",
    "]",
    "}",
    r"\}",
    r"\rangle",
    r"\rfloor",
    r"\rceil",
    "+",
    "-",
    ",",
    ";",
    "=",
    "<",
    ">",
    "&",
    r"\\",
    "/",
    "!",
}


def parse(tokens: Sequence[str], tight: bool = False) -> Node:
    """Returns the expression that tokens are.

    Args:
        tokens: of one answer without its unit (see `spelling.spell`).
        tight: whether a product without a sign goes before a division: 1/2x is 1/(2x).

    Raises:
        NotAlgebraError: they are none that this module knows.
    """
    if r"\choose" in tokens and tokens[0] != "{":
        place = list(tokens).index(r"\choose")
        return Node("binom", (parse(tokens[:place], tight), parse(tokens[place + 1 :], tight)))
    parser = _Parser(tokens, tight)
    node = parser.expression()
    if parser.peek():
        raise NotAlgebraError(parser.peek())
    return node


class _Parser(Reader):
    """Reads an expression, from the loosest operation to the tightest."""

    def __init__(self, tokens: Sequence[str], tight: bool) -> None:
        super().__init__(tokens)
        self.tight = tight
        self.bars = 0  # how many | are open

    def expression(self) -> Node:
        terms = [self.term()]
        while self.peek() in ("+", "-"):
            sign = self.next()
            term = self.term()
            terms.append(negated(term) if sign == "-" else term)
        return tables.combined("add", terms)

    def term(self) -> Node:
        """Products and quotients, signed."""
        if self.peek() in ("+", "-"):
            return negated(self.term()) if self.next() == "-" else self.term()
        result = self.factor()
        while True:
            token = self.peek()
            if token in _TIMES:
                self.next()
                result = tables.product(token, result, self.signed_factor())
            elif token == "/":
                self.next()
                result = tables.quotient(result, self.divisor())
            elif self.starts_factor():
                result = tables.combined("mul", [result, self.factor()])
            else:
                return result

    def divisor(self) -> Node:
        result = self.signed_factor()
        while self.tight and self.starts_factor():
            result = tables.combined("mul", [result, self.factor()])
        return result

    def signed_factor(self) -> Node:
        if self.peek() in ("+", "-"):
            return negated(self.signed_factor()) if self.next() == "-" else self.signed_factor()
        return self.factor()

    def starts_factor(self) -> bool:
        token = self.peek()
        if not token or token in _STOP or token in _TIMES:
            return False
        if token in ("|", r"\|"):
            return not self.bars
        return True

    def factor(self) -> Node:
        """An atom with its powers, factorials and degree signs."""
        node = self.atom()
        while True:
            if self.peek() == "^":
                self.next()
                node = self.raised(node)
            elif self.peek() == "!" and self.peek(1) != "=":
                self.next()
                node = Node("factorial", (node,))
            else:
                return node

    def raised(self, node: Node) -> Node:
        """What follows `^`: a degree sign, a transpose, an exponent."""
        if self.peek() == "-":
            self.next()
            return Node("pow", (node, negated(self.braces())))
        inside = self.group_ahead()
        if inside in ([r"\circ"], ["°"]):
            self.group()
            return Node("degree", (node,))
        if node.op in ("matrix", "tuple") and inside in (
            ["T"],
            [r"\top"],
            [r"\intercal"],
            [r"\text{T}"],
            [r"\text{t}"],
            ["t"],
        ):
            self.group()
            return tables.transposed(node)
        exponent = self.braces()
        return tables.raised(node, exponent)

    def braces(self) -> Node:
        return self.part(self.group())

    def part(self, tokens: Sequence[str]) -> Node:
        return parse(tokens, self.tight)

    def atom(self) -> Node:
        token = self.next()
        if token[0].isdecimal() or (token[0] == "." and len(token) > 1):
            return self.numeral(token)
        if token.startswith(r"\begin"):
            return self.table(token)
        read = next((read for commands, read in _ATOMS if token in commands), _Parser.letter)
        return read(self, token)

    def accented(self, command: str) -> Node:
        inside = self.braces() if self.peek() == "{" else self.atom()
        if self.peek() == "_":
            self.next()
            command += "_" + "".join(self.group())
        if command in (r"\overline", r"\bar") and has_constant(inside, "i") and not symbols(inside):
            return Node("conjugate", (inside,))
        return Node("opaque", (inside,), command)

    def numeral(self, token: str) -> Node:
        value = Fraction(token)
        if token.isdecimal() and self.peek() == r"\frac":
            before = self.position
            self.next()
            above, below = self.group(), self.group()
            if all(len(part) == 1 and part[0].isdecimal() for part in (above, below)) and int(below[0]):
                return number(value + Fraction(int(above[0]), int(below[0])))
            self.position = before
        return number(value)

    def bracketed(self, opening: str) -> Node:
        """What stands in brackets: a group, a tuple, an absolute value, a matrix."""
        if opening == "{":
            self.position -= 1
            return self.braces()
        bar = opening in ("|", r"\|")
        bars, self.bars = self.bars, self.bars + 1 if bar else 0
        entries = [self.expression()]
        while self.peek() in (",", ";") and not bar:
            self.next()
            entries.append(self.expression())
        self.bars = bars
        closing = self.next()
        if closing != _CLOSING[opening]:
            raise NotAlgebraError(f"{opening} closed by {closing}")
        if len(entries) > 1 or opening in (r"\langle", r"\{"):
            return Node("tuple", tuple(entries), opening)
        inside = entries[0]
        if opening == "|":
            return tables.determinant(inside) if inside.op == "matrix" else Node("abs", (inside,))
        ops = {r"\lfloor": "floor", r"\lceil": "ceil"}
        if opening in ops:
            return Node(ops[opening], (inside,))
        return Node("opaque", (inside,), opening) if opening == r"\|" else inside

    def fraction(self, command: str) -> Node:
        above, below = self.group(), self.group()
        if command == r"\binom":
            return Node("binom", (self.part(above), self.part(below)))
        derivative = calculus.derivative(above, below)
        if derivative == "operator":
            letters = calculus.variables(below)
            body = self.term()
            name = "d^" if len(letters) == 1 else "mixed "
            return Node("bound", (symbol(letters[0]), body, body), name + "".join(above) + "/" + "".join(below))
        if derivative:
            return self.applied(derivative)
        return tables.quotient(self.part(above), self.part(below))

    def root(self, command: str) -> Node:
        del command
        index = number(2)
        if self.peek() == "[":
            end = self.tokens.index("]", self.position) if "]" in self.tokens[self.position :] else len(self.tokens)
            index = self.part(self.tokens[self.position + 1 : end])
            self.position = end + 1
        return Node("root", (self.braces(), index))

    def rounded(self, command: str) -> Node:
        """`abs(x)`, `floor(x)`, `sqrt(x)` and the root sign, as plain text has them."""
        inside = self.atom()
        if command in _ROOTS:
            return Node("root", (inside, number(_ROOTS[command])))
        return Node(_ROUND[command], (inside,))

    def call(self, command: str) -> Node:
        """A function with its index, its power and its operands."""
        name = command[1:]
        lower, upper = self.bounds()
        power = upper[0] if upper else None
        if power == negated(number(1)) and name in (*_INVERSE, *_AREA):
            name, power = _AREA.get(name, "arc" + name), None
        node = functions.applied(name, [self.part(lower)] if lower else [], self.operands())
        return node if power is None else Node("pow", (node, power))

    def operands(self) -> list[Node]:
        """A function's operands: in brackets, or the letters and numbers that follow."""
        if self.peek() in ("(", "[", "{", "|", r"\{"):
            inside = self.bracketed(self.next())
            return list(inside.args) if inside.op == "tuple" else [inside]
        if self.peek() in ("+", "-"):
            return [negated(self.operands()[0])] if self.next() == "-" else self.operands()
        first = last = self.peek()
        result = self.factor()
        if first in FUNCTIONS:
            return [result]
        coefficient = first[0].isdecimal() or first == r"\frac"
        while self.starts_factor() and self.peek() not in ("(", "[", "|", "{", "e"):
            token = self.peek()
            letter = token.isalpha() or token in GREEK or token == r"\pi"
            if not (letter or (coefficient and token in (r"\frac", r"\sqrt"))):
                break
            result, last = tables.combined("mul", [result, self.factor()]), token
        if last == r"\pi" and self.peek() == "/" and self.peek(1).isdecimal():
            self.next()
            result = tables.quotient(result, self.factor())
        return [result]

    def bounds(self) -> tuple[list[str], list[Node]]:
        """Reads `_{...}^{...}`; returns the lower bound's tokens and the upper bound."""
        lower: list[str] = []
        upper: list[Node] = []
        while self.peek() in ("_", "^"):
            if self.next() == "_":
                lower = self.group()
            elif self.peek() == "-":
                self.next()
                upper = [negated(self.braces())]
            else:
                upper = [self.braces()]
        return lower, upper

    def integral(self, command: str) -> Node:
        lower, upper = self.bounds()
        self.tokens[self.position :] = calculus.spread(self.tokens[self.position :])
        place, width, letter = calculus.differential(self.tokens[self.position :])
        body = self.tokens[self.position : self.position + place]
        self.position += place + width
        bounds = [*([self.part(lower)] if lower else []), *upper]
        inner = self.part(body) if body else number(1)
        return Node("bound", (symbol(letter), inner, *(bounds or [inner])), command)

    def summed(self, command: str) -> Node:
        lower, upper = self.bounds()
        sign = r"\to" if command == r"\lim" else "="
        if sign in lower:
            place = lower.index(sign)
            variable = "".join(lower[:place])
            bounds = [self.part(lower[place + 1 :]), *upper]
        else:
            variable, bounds = "", [symbol("".join(lower)), *upper]
        body = self.term()
        return Node("bound", (symbol(variable), body, *bounds), _SUMS[command])

    def table(self, token: str) -> Node:
        r"""A matrix or a determinant, whose `\begin` is taken."""
        inside, kind = self.environment(), token[7:-1].rstrip("*")
        if kind not in tables.MATRICES and kind not in tables.DETERMINANTS:
            raise NotAlgebraError(kind)
        matrix = tables.matrix([[self.part(cell) for cell in row] for row in tables.rows(inside)])
        return tables.determinant(matrix) if kind in tables.DETERMINANTS else matrix

    def letter(self, token: str) -> Node:
        """A symbol with its index and primes; a run of letters is their product."""
        if token.isalpha() and len(token) > 1:
            self.tokens[self.position - 1 : self.position] = list(token)
            self.position -= 1
            token = self.next()
        if token in (r"\pi", "e", "i", r"\infty") and self.peek() not in ("_", "'"):
            return constant({r"\pi": "pi", r"\infty": "infinity"}.get(token, token))
        named = token.isalpha() or token in GREEK or token in (r"\pi", r"\angle", r"\Box", "?")
        if not named and not re.match(r"\\(?:text|mathbb|mathcal|mathfrak|mathscr)\{", token):
            raise NotAlgebraError(token)
        single = re.fullmatch(r"\\text\{([A-Za-z])\}", token)
        return self.applied(single[1] if single else token)

    def applied(self, name: str) -> Node:
        """A name with index and primes; a function if brackets follow and it is one by name."""
        primed = False
        while self.peek() in ("_", "'") or (
            self.peek() == "^" and self.peek(1) == "{" and self.ahead_of_power() == "'"
        ):
            token = self.next()
            primed = primed or token != "_"
            if token == "'":
                name += "'"
            else:
                inside = "".join(self.group())
                name += inside if set(inside) == {"'"} else f"_{{{inside}}}"
        inverse = name in _FUNCTION_LETTERS and self.tokens[self.position : self.position + 5] == [
            "^",
            "{",
            "-",
            "1",
            "}",
        ]
        if self.peek(5 if inverse else 0) == "(" and (primed or name.split("_")[0] in _FUNCTION_LETTERS):
            self.position += 5 if inverse else 0
            argument = self.bracketed(self.next())
            operands = argument.args if argument.op == "tuple" else (argument,)
            return Node("opaque", operands, name + ("^{-1}" if inverse else ""))
        return symbol(name)

    def ahead_of_power(self) -> str:
        """A quote if the power that comes next is primes only."""
        inside = "".join(self.tokens[self.position + 2 : self.position + 4])
        return "'" if inside.startswith("'") else ""


_ATOMS: tuple[tuple[Collection[str], Callable[[_Parser, str], Node]], ...] = (
    (_CLOSING, _Parser.bracketed),
    ((r"\frac", r"\binom"), _Parser.fraction),
    ((r"\sqrt",), _Parser.root),
    ((*_ROUND, *_ROOTS), _Parser.rounded),
    (FUNCTIONS, _Parser.call),
    (_INTEGRALS, _Parser.integral),
    (_SUMS, _Parser.summed),
    (_ACCENTS, _Parser.accented),
)
