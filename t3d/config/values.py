"""Values as they are written: the type that a key declares decides what its text means, not how the text looks."""

import re
from typing import Any, ClassVar, get_args, get_origin

import yaml

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader

_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_REAL = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.?(inf|nan)", re.IGNORECASE)


class Plain(str):
    """A value without quotes: what it is depends on the type of its key."""

    __slots__ = ()


class _TextLoader(SafeLoader):
    """Reads YAML without guessing types: unquoted values are `Plain`, and no mapping has a key twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping",
                        node.start_mark,
                        f"found duplicate key {key.value}",
                        key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = self.construct_scalar(node)
        return str(text) if node.style else Plain(text)


_TextLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("<<"), ["<"])
_TextLoader.add_constructor("tag:yaml.org,2002:str", _TextLoader.construct_text)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, its unquoted scalars as `Plain`.

    Raises:
        YAMLError: no YAML, or a key twice.
    """
    return yaml.load(text, _TextLoader)


def parse_argument(text: str, kind: Any) -> Any:
    """What follows `key=` on a command line: the text itself for a key of text, YAML for any other.

    Quotes around the whole of a text are taken off, and a list is no text.

    Raises:
        YAMLError: no YAML, for a key that is not text.
    """
    if not _is_text(kind):
        return parse_yaml(text)
    if text[:1] in ("'", '"', "["):
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            return Plain(text)
        return Plain(text) if isinstance(value, Plain) else value
    return Plain(text)


def is_null(value: object) -> bool:
    """Whether nothing is given: an empty value or YAML's null, without quotes."""
    return value is None or (isinstance(value, Plain) and value in _NULLS)


def as_declared(value: Any, kind: Any) -> Any:
    """Gives a value of `parse_yaml` the type that its key declares, as far as it can be told from text.

    Whole numbers are decimal: what YAML 1.1 reads in base 8, 16 or 60 is refused.  Interpolations, and what has
    another shape than declared, are left to the schema's own check.

    Raises:
        ValueError: a text that is no such number or truth value.
    """
    if is_null(value):
        return None
    if isinstance(value, str) and "${" in value:
        return str(value)
    if type(None) in get_args(kind):
        kind = next(member for member in get_args(kind) if member is not type(None))
    if isinstance(value, list):
        entries = get_args(kind)[0] if get_origin(kind) is list else Any
        return [as_declared(entry, entries) for entry in value]
    if isinstance(value, dict):
        entries = get_args(kind)[1] if get_origin(kind) is dict else Any
        return {str(name): as_declared(entry, entries) for name, entry in value.items()}
    return _scalar(value, kind) if isinstance(value, str) else value


def _scalar(text: str, kind: Any) -> Any:
    if kind is int or (kind is Any and isinstance(text, Plain) and _WHOLE.fullmatch(text)):
        return _number(text, _WHOLE, int)
    if kind is float:
        return float(text.replace(".", "")) if _SPECIAL.fullmatch(text) else _number(text, _REAL, float)
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(text)
        return _BOOLS[text.lower()]
    return str(text)


def _number(text: str, pattern: re.Pattern[str], make: Any) -> Any:
    if not pattern.fullmatch(text):
        digits = make is int and text[:1].isdecimal()
        raise ValueError(f"{text} (whole numbers are decimal digits, the first not 0)" if digits else text)
    return make(text)


def _is_text(kind: Any) -> bool:
    return kind is str or (str in get_args(kind) and get_origin(kind) not in (list, dict))
