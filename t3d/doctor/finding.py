"""What the doctor finds, and the guard around every check."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from t3d.errors import UserError, named

Level = Literal["ok", "warning", "error"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        level: ok; warning, where it will run but not as well as it could; error, where it will not.
        subject: what was looked at, in a word or two.
        text: what was found.
        cure: what to do about it; empty where nothing needs to be done.
    """

    level: Level
    subject: str
    text: str
    cure: str = ""


@dataclass
class Examination:
    """The findings so far, by section of the page.

    A check may raise: a mistake of the user's is an error with the cure in its own words, and anything else, such as
    a library that cannot load, is one that names what was raised.
    """

    sections: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [finding for findings in self.sections.values() for finding in findings]

    def open(self, title: str) -> None:
        """Begins a section of the page."""
        self.sections[title] = []

    def examine(self, subject: str, check: Callable[[], Iterable[Finding]]) -> None:
        """Adds what `check` yields, and what it raises."""
        self.obtain(subject, lambda: self._latest.extend(check()))

    def obtain(self, subject: str, make: Callable[[], Value]) -> Value | None:
        """What `make` returns; None, and an error on the page, where it raises."""
        try:
            return make()
        except UserError as mistake:
            found = Finding("error", subject, f"{mistake.where}: {mistake.found}", f"expected {mistake.expected}")
        # A broken installation may raise anything; the page must name it and go on.
        except Exception as broken:  # noqa: BLE001
            found = Finding("error", subject, f"could not be examined: {named(broken)}", "install it anew")
        self._latest.append(found)
        return None

    @property
    def _latest(self) -> list[Finding]:
        return list(self.sections.values())[-1]


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 process", "2 processes"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
