"""Dataclasses read from JSON objects, every field checked against its declared type."""

from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from t3d.errors import DataError
from t3d.storage.files import json_kind

Read = TypeVar("Read")

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", NoneType: "null"}


def read_fields(kind: type[Read], values: Any, where: str | Path, group: str = "") -> Read:
    """Builds the dataclass `kind` from a parsed JSON object.

    A field with a default may be missing, so that files of older versions load; what `kind` does not declare is
    left out, so that files of newer ones do.

    Args:
        kind: its fields are declared as bool, int, float, str, lists and dictionaries of these, dataclasses, any
            of them or None, or Any.
        values: the object; a value that is a dataclass already is taken as it is.
        where: the file, for messages.
        group: what the names of its fields begin with, for messages.

    Raises:
        DataError: no object, a field missing, or one of another type; file and field are named.
    """
    if not isinstance(values, dict):
        raise DataError(f"{where}, field {group.removesuffix('.')}" if group else where, "an object", json_kind(values))
    hints = get_type_hints(kind)
    read = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        place = f"{where}, field {group}{entry.name}"
        if entry.name in values:
            read[entry.name] = _value(hints[entry.name], values[entry.name], where, group + entry.name)
        elif _is_required(entry):
            raise DataError(place, _words(hints[entry.name]), "nothing")
    return kind(**read)


def _is_required(entry: Field) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _value(hint: Any, value: Any, where: str | Path, name: str) -> Any:
    """One value of the type `hint`."""
    choices = get_args(hint) if get_origin(hint) not in (list, dict) else ()
    if hint is Any or (value is None and NoneType in choices):
        return value
    for kind in choices or (hint,):
        parts = get_args(kind)
        if isinstance(kind, type) and is_dataclass(kind):
            return value if isinstance(value, kind) else read_fields(kind, value, where, f"{name}.")
        if get_origin(kind) is list and isinstance(value, list):
            return [_value(parts[0], one, where, f"{name}, entry {place}") for place, one in enumerate(value)]
        if get_origin(kind) is dict and isinstance(value, dict):
            return {key: _value(parts[1], one, where, f"{name}.{key}") for key, one in value.items()}
        # A bool is an int to isinstance, and a whole number is a number.
        if type(value) is kind or (kind is float and type(value) is int):
            return value
    raise DataError(f"{where}, field {name}", _words(hint), json_kind(value))


def _words(hint: Any) -> str:
    """What a field of this type is called in messages."""
    if get_origin(hint) is list:
        return "a list"
    if get_origin(hint) is dict or is_dataclass(hint):
        return "an object"
    return " or ".join(map(_words, get_args(hint))) if get_args(hint) else _WORDS[hint]
