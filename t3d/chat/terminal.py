"""A terminal: what people type into it, and what a model may write on it."""

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of what steers a terminal, reorders a line or cannot be printed."""
HARMLESS = "\n\t\u200c\u200d"
"""Of these: line ends, tabs, and the joiners that scripts and emoji are spelled with."""
HINT = "(Ctrl-D ends the chat, Ctrl-C an answer; /new begins a new conversation)\n"


def printable(text: str) -> str:
    r"""Spells out escape sequences, bells, direction marks and the like: "\x1b[2J" is shown, not obeyed."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in STEERING and letter not in HARMLESS else letter
        for letter in text
    )


def typed() -> Iterator[str]:
    """Lines as they are typed, until Ctrl-D; Ctrl-C forgets the line."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its editing and its history
    sys.stderr.write(HINT)
    while True:
        try:
            yield input("> " if sys.stdout.isatty() else "")
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write(f"\n{HINT}")
