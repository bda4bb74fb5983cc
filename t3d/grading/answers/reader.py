"""A position in a row of tokens, and how groups are read from there."""

from collections.abc import Sequence

from t3d.grading.answers.nodes import NotAlgebraError


class Reader:
    """Reads tokens from left to right."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """Starts before the first token."""
        self.tokens = list(tokens)
        self.position = 0

    def peek(self, ahead: int = 0) -> str:
        """The token that comes next, or later; "" past the end."""
        place = self.position + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def next(self) -> str:
        """Takes the next token.

        Raises:
            NotAlgebraError: there is none.
        """
        token = self.peek()
        if not token:
            raise NotAlgebraError("it ends early")
        self.position += 1
        return token

    def group(self) -> list[str]:
        """Takes `{...}` and returns what is inside.

        Raises:
            NotAlgebraError: none starts here, or it does not end.
        """
        if self.next() != "{":
            raise NotAlgebraError("no group")
        start, depth = self.position, 1
        while depth:
            token = self.next()
            depth += (token == "{") - (token == "}")
        return self.tokens[start : self.position - 1]

    def group_ahead(self) -> list[str]:
        """The inside of the group that comes next, which stays."""
        before = self.position
        inside = self.group()
        self.position = before
        return inside

    def environment(self) -> list[str]:
        r"""Takes the rest of an environment whose `\begin` was taken, and returns what is inside."""
        start, depth = self.position, 1
        while depth:
            token = self.next()
            depth += token.startswith(r"\begin") - token.startswith(r"\end")
        return self.tokens[start : self.position - 1]
