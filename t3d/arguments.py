"""Command lines of the small scripts: usage mistakes are the user's, told in one line."""

import argparse
import math
import sys
from typing import NoReturn

from t3d.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default that says something, and the example as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises `UserError` where argparse prints its usage over several lines."""

    def __init__(self, purpose: str, example: str) -> None:
        """Describes a script by its `purpose` and one `example` command."""
        super().__init__(
            prog=_program(),
            description=purpose,
            epilog=f"example:\n  {example}",
            formatter_class=HelpFormatter,
            argument_default=argparse.SUPPRESS,  # required options then show no "(default: None)"
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises the mistake for `run_entry` to print.

        Raises:
            UserError: always.
        """
        raise UserError(self.prog, "the arguments that --help lists", message)


def _program() -> str | None:
    """What the user called: `python -m module` where it was that, else what argparse finds (None)."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or not sys.argv[0].endswith(".py"):  # a script; or `t3d NAME`, which names itself
        return None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def count(text: str) -> int:
    """The type of an option that counts: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def temperature(text: str) -> float:
    """The type of an option that is a temperature: a number of at least 0."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number
