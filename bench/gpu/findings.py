"""What the kit finds: one record per check, as a line of JSON, and all of them as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

NOT_MADE = "not made"
"""Among a record's values: why a check gave no answer."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        values: numbers and words, by their names.
        passed: whether it is as it must be; None of what is only measured.
    """

    name: str
    values: dict[str, Any]
    passed: bool | None = None


@dataclass(frozen=True)
class Record:
    """A finding, and where it comes from.

    Attributes:
        section: of the kit.
        name: see `Finding`.
        passed: likewise; False also of a check that must hold and could not be made.
        values: likewise.
        seconds: since the section's last record.
    """

    section: str
    name: str
    passed: bool | None
    values: dict[str, Any]
    seconds: float

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> "Record":
        """Reads `to_line`."""
        return cls(**json.loads(line))


def verdict(record: Record) -> str:
    """A word for it; none for what is only measured."""
    if record.passed is None:
        return ""
    return "pass" if record.passed else "NOT MADE" if NOT_MADE in record.values else "FAIL"


def words(values: dict[str, Any]) -> str:
    """The values in one line."""
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(records: Sequence[Record]) -> str:
    """All records as Markdown."""
    lines = ["| section | check | verdict | found | s |", "|---|---|---|---|---|"]
    for record in records:
        cells = (record.section, record.name, verdict(record), words(record.values), f"{record.seconds:.1f}")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def summary(records: Sequence[Record]) -> str:
    """How many checks hold, in one line."""
    must = [record for record in records if record.passed is not None]
    failed = [record for record in must if not record.passed]
    line = f"{len(must) - len(failed)} of {len(must)} parity checks hold, {len(records) - len(must)} measurements"
    return line + "".join(f"; {verdict(record)} {record.section}: {record.name}" for record in failed)
