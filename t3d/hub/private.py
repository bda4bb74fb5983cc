"""Finds paths of this machine, and users' names in them, in what is about to be shared."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t3d.errors import DataError

HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s\"']+")
"""A home folder, wherever in a text."""
ABSOLUTE = re.compile(r"(?:/[^/\s]+){2,}/?|[A-Za-z]:\\.+")
"""A whole value that is an absolute path."""

NAME_FIELDS = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Fields in which transformers and peft keep where a model or a tokenizer was loaded from."""


def local_path(text: str) -> str | None:
    """The path of this machine that stands in a text, or None."""
    if ABSOLUTE.fullmatch(text):
        return text
    if found := HOMES.search(text):
        return found.group()
    home = str(Path.home())
    return home if len(Path(home).parts) > 2 and home in text else None


def check_text(text: str, where: str) -> None:
    """Checks a text line by line.

    Raises:
        DataError: a path of this machine stands in it.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if found := local_path(line):
            raise DataError(f"{where}, line {number}", "no path of this machine in what is shared", found)


def check_values(value: Any, where: str) -> None:
    """Checks every text in a JSON value.

    Raises:
        DataError: one of them holds a path of this machine.
    """
    for place, text in _texts(value, where):
        if found := local_path(text):
            raise DataError(place, "no path of this machine in what is shared", found)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(one, f"{where}, field {name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _texts(one, f"{where}, entry {number}")


def without_local_names(values: dict[str, Any]) -> dict[str, Any] | None:
    """A configuration with the local paths in `NAME_FIELDS` replaced by their last part; None if it has none."""
    local = {
        name: Path(values[name]).name
        for name in NAME_FIELDS
        if isinstance(values.get(name), str) and local_path(values[name])
    }
    return {**values, **local} if local else None
