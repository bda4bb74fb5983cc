"""JSON files read a record at a time and written whole or not at all."""

import glob
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from t3d.errors import DataError
from t3d.storage.folders import sync
from t3d.storage.paths import start_of

_CHUNK_CHARS = 1 << 20
_WHITESPACE = " \t\r\n"
# No shorter than any token that is reported at its own start when cut short; the longest is \ud83d\ude00.
_LONGEST_CUT = 16
_JSON_NAMES = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}


def json_kind(value: object) -> str:
    """Names the JSON type of a parsed value, for error messages: "object", "list", ... or "null"."""
    return "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)


KINDS = {b"\x1f\x8b": "a gzip archive", b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text"}
"""How files begin that people take for text."""


def read_json(path: Path) -> Any:
    """Reads one JSON file (UTF-8, with or without a byte order mark).

    Raises:
        DataError: no readable file, no UTF-8, no JSON (the line and column are named), or an object with a key
            twice.
    """
    with _reading(path) as file:
        text = file.read()
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = "an empty file" if not text.strip() else error.msg
        raise DataError(f"{path}, line {error.lineno} column {error.colno}", "JSON", found) from error
    except RecursionError as error:
        raise DataError(path, "JSON", "values nested too deeply") from error
    except ValueError as error:  # a whole number too long for int(), or a key twice
        raise DataError(path, "JSON", error) from error


def iter_json_list(path: Path) -> Iterator[Any]:
    """Yields the values of a file that holds one JSON list or JSON Lines, keeping one value and one buffer in memory.

    JSON Lines are objects, one on each line; the file's first character tells which it is.

    Raises:
        DataError: as `read_json`, or the file holds neither. Raised when reached, not before.
    """
    with _reading(path) as file:
        yield from _ListReader(path, file).values()


def whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file that grows by lines, each with its line end; none if there is no file.

    A last line that a kill or a full disk cut short is left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(path, "a readable file", error.strerror or error) from error
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def set_aside(names: Sequence[tuple[Path, str]]) -> str:
    """Renames files that belong together, so that what is written next takes nothing's place.

    Args:
        names: each file's path without its ending, and the ending; those that are there are renamed in this order.

    Returns:
        The first of `old-1`, `old-2`, ... under which there is none, which now stands before each ending.
    """
    number = 1
    while any(Path(f"{stem}.old-{number}{ending}").exists() for stem, ending in names):
        number += 1
    for stem, ending in names:
        with suppress(FileNotFoundError):
            Path(f"{stem}{ending}").rename(f"{stem}.old-{number}{ending}")
    return f"old-{number}"


def temporary_name(target: Path) -> Path:
    """A new name beside `target` for a file that is to take its place once it is whole."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def remove_temporaries(path: Path) -> None:
    """Removes what `atomic_writer` left of `path` in processes that were killed; none may be at work on it."""
    target = Path(os.path.realpath(path))
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: Path) -> Iterator[TextIO]:
    """Opens a text file that takes the place of `path` only once the block has ended without an error.

    The text goes to a temporary file in the same folder, which is synced and renamed, or removed if anything
    fails: whoever opens `path` sees the old file or the whole new one. Unpaired surrogates, which UTF-8
    cannot hold, are written as the escapes that JSON has for them.

    Raises:
        DataError: the folder is missing, or the file system refuses the file.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_name(target)
    try:
        try:
            with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync(target.parent)  # whoever removes the file's sources next must not be ahead of the rename
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(path, "a place that can be written to", error.strerror or error) from error


def write_json_atomic(path: Path, value: Any, indent: int | None = 2) -> None:
    """Writes `value` as JSON, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_writer(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=indent)
        file.write("\n")


def write_json_list(path: Path, values: Iterable[Any]) -> int:
    """Writes a JSON list, one value per line, whole or not at all, and returns the number of values.

    Values are taken one at a time: an iterator's records never lie in memory together.

    Raises:
        DataError: the file cannot be written.
    """
    count = 0
    with atomic_writer(path) as file:
        for value in values:
            file.write(",\n" if count else "[\n")
            file.write(json.dumps(value, ensure_ascii=False))
            count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(path, "UTF-8 text", _other_bytes(path) or error.reason) from error
    except OSError as error:
        raise DataError(path, "a readable file", f"{error.strerror or error}{start_of(path)}") from error


def _other_bytes(path: Path) -> str | None:
    """What a file holds that is no UTF-8, with its place: the reader knows that within its buffer alone."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line[:2] in KINDS:
                return KINDS[line[:2]]
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02x} at line {number}, byte {error.start + 1}"
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object as a dictionary, which would keep only the last of the values of a key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice in an object")
    return found


class _ListReader:
    """A cursor over the text of a JSON list, or of JSON Lines, of which only a window is in memory."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.window, self.position, self.ended = "", 0, False
        self.line, self.column = 1, 1  # of the window's first character
        self.decoder = json.JSONDecoder(object_pairs_hook=_object)

    def values(self) -> Iterator[Any]:
        """Yields the values of whichever it is, and checks that nothing follows them."""
        opening = self.peek()
        if opening not in ("[", "{"):
            found = f"text starting {opening!r}" if opening else "an empty file"
            raise self.error("a JSON list, or an object on each line", found)
        yield from self.list() if opening == "[" else self.lines()

    def lines(self) -> Iterator[Any]:
        """Yields the objects of JSON Lines; empty lines are passed over."""
        while opening := self.peek():
            if opening != "{":
                raise self.error("an object on each line", f"text starting {opening!r}")
            value, length = self.parse()
            if "\n" in self.window[self.position : self.position + length]:
                raise self.error("a JSON list, or an object on each line", "an object over several lines")
            self.position += length
            if (following := self.peek(_WHITESPACE.replace("\n", ""))) not in ("\n", ""):
                raise self.error("the end of the line after an object", f"text starting {following!r}")
            yield value

    def list(self) -> Iterator[Any]:
        """Yields the values of a list."""
        self.position += 1
        if self.peek() == "]":
            self.position += 1
        else:
            separator = ","
            while separator == ",":
                self.peek()
                value, separator = self.value()
                yield value
        if trailing := self.peek():
            raise self.error("the end of the file after the list", f"text starting {trailing!r}")

    def value(self) -> tuple[Any, str]:
        """Parses the value at the cursor and consumes it with the "," or "]" behind it."""
        value, length = self.parse()
        self.position += length
        separator = self.peek()
        if separator not in (",", "]"):
            raise self.error('"," or "]" after a value', repr(separator) if separator else "the end of the file")
        self.position += 1
        return value, separator

    def parse(self) -> tuple[Any, int]:
        """Parses the value at the cursor, reading on for as long as the window may end inside it.

        Returns:
            The value, and its length in characters; the cursor stays.
        """
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not (error.msg.startswith("Unterminated string") or self.near_end(error.pos)):
                    self.position = min(error.pos, len(self.window))
                    raise self.error("JSON", error.msg) from error
            except RecursionError as error:
                raise self.error("JSON", "values nested too deeply") from error
            except ValueError as error:  # a whole number too long for int(), or a key twice
                raise self.error("JSON", error) from error
            else:
                # The "1" of "1.5" is a value too: it counts only with enough text behind it.
                if self.ended or not self.near_end(end):
                    return value, end - self.position
            self.read_more()

    def near_end(self, position: int) -> bool:
        """Whether more text could change what was found at `position`."""
        return position > len(self.window) - _LONGEST_CUT

    def peek(self, passed_over: str = _WHITESPACE) -> str:
        """Moves the cursor to the next character that is not passed over and returns it, or "" at the end."""
        while True:
            while self.position < len(self.window) and self.window[self.position] in passed_over:
                self.position += 1
            if self.position < len(self.window):
                return self.window[self.position]
            if self.ended:
                return ""
            self.read_more()

    def read_more(self) -> None:
        """Drops the consumed text and appends at least as much as is left: long values take few parses."""
        self.line, self.column = self.place()
        self.window, self.position = self.window[self.position :], 0
        chunk = self.file.read(max(_CHUNK_CHARS, len(self.window)))
        self.ended = not chunk
        self.window += chunk

    def place(self) -> tuple[int, int]:
        """Returns the line and column of the cursor in the file."""
        consumed = self.window[: self.position]
        newlines = consumed.count("\n")
        if newlines:
            return self.line + newlines, len(consumed) - consumed.rindex("\n")
        return self.line, self.column + len(consumed)

    def error(self, expected: str, found: object) -> DataError:
        """Builds the error that names the cursor's place."""
        line, column = self.place()
        return DataError(f"{self.path}, line {line} column {column}", expected, found)
