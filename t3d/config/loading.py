"""Schema <- YAML file <- command line, checked once, then plain dataclasses."""

import dataclasses
import difflib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from t3d.errors import ConfigError
from t3d.storage.files import atomic_writer

Schema = TypeVar("Schema")


def load_config(schema: type[Schema], arguments: list[str], purpose: str, example: str) -> Schema:
    """Builds a checked configuration from `config=FILE key=value ...`.

    `--help` among the arguments prints `purpose`, every key with its default and `example`, and exits with 0.

    Raises:
        ConfigError: an unreadable file, an unknown key (with the nearest known one), a value of the wrong
            type or outside its range, a mandatory key left out.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(help_text(schema, purpose, example))
        sys.exit(0)
    merged = OmegaConf.structured(schema)
    kinds = {path: _kind_name(entry.type) for path, entry in _leaves(schema)}
    for source, values in _sources(arguments):
        for path, value in _known_values(schema, values, source):
            try:
                OmegaConf.update(merged, path, value, merge=True)
            except OmegaConfBaseException as error:
                raise _value_error(f"{source}: {path}", kinds[path], error) from error
    for path, kind in kinds.items():
        try:
            OmegaConf.select(merged, path, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise ConfigError(path, "a value", "none") from error
        except OmegaConfBaseException as error:
            raise _value_error(path, kind, error) from error
    _check_ranges(schema, merged)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def named_groups(arguments: list[str]) -> set[str]:
    """The groups that `config=FILE key=value ...` give keys of, which tell what kind of command they are for.

    Raises:
        ConfigError: an unreadable file, or an argument that is no such pair.
    """
    return {str(name) for _, values in _sources(arguments) for name in values}


def save_config(config: object, path: Path) -> None:
    """Writes the resolved configuration as YAML, loadable with `config=`, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_writer(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.structured(config)))


def help_text(schema: type, purpose: str, example: str) -> str:
    """The `--help` page of an entry point."""
    lines = [
        purpose.strip(),
        "",
        "config=FILE reads a YAML file (and, first, the one that its key `base` names); key=value wins over it.",
        "",
        "Keys:",
    ]
    for path, entry in _leaves(schema):
        make = entry.default_factory
        default = entry.default if make is dataclasses.MISSING else make()
        shown = "required" if default == MISSING else "null" if default is None else str(default)
        choices = f" ({' | '.join(entry.metadata['one_of'])})" if entry.metadata["one_of"] else ""
        lines.append(f"  {path} = {shown}: {entry.metadata['meaning']}{choices}")
    return "\n".join([*lines, "", "Example:", f"  {example}", ""])


def _sources(arguments: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(where it was said, nested values) of the file and of each override, in the order in which they win."""
    files: list[tuple[str, dict[str, Any]]] = []
    overrides: list[tuple[str, dict[str, Any]]] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name or name.startswith("-"):
            raise ConfigError("command line", "config=FILE or key=value", argument)
        if name == "config":
            files += _read_files(Path(value))
        else:
            try:
                parsed = OmegaConf.to_container(OmegaConf.from_dotlist([argument]))
            except (OmegaConfBaseException, YAMLError) as error:
                raise ConfigError("command line", "key=value", argument) from error
            overrides.append(("command line", parsed))  # type: ignore[arg-type]
    return files + overrides


def _read_files(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A file behind the one that its key `base` names from its own folder, so that it holds what differs."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: base", "files that do not lead back to themselves", above[0].name)
    values = _read_yaml(path)
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: base", "the name of a YAML file", base)
    below = _read_files(path.parent / base, (*above, path.resolve())) if base else []
    return [*below, (str(path), values)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise ConfigError(path, "a YAML file", "none there") from error
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(path, "a readable YAML file", " ".join(str(error).split())) from error
    if not isinstance(loaded, dict):
        raise ConfigError(path, "keys with values", f"a {type(loaded).__name__}")
    return loaded  # type: ignore[return-value]


def _leaves(schema: type, prefix: str = "") -> list[tuple[str, dataclasses.Field]]:
    found: list[tuple[str, dataclasses.Field]] = []
    for entry in fields(schema):
        if is_dataclass(entry.type):
            found += _leaves(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            found.append((prefix + entry.name, entry))
    return found


def _known_values(schema: type, values: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of every key that `source` gives.

    Raises:
        ConfigError: a key that `schema` does not have, or a group that is no group.
    """
    known = {path for path, _ in _leaves(schema)}
    groups = {path[:index] for path in known for index, letter in enumerate(path) if letter == "."}

    def walk(part: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in part.items():
            path = f"{prefix}{name}"
            if path in groups and isinstance(value, Mapping):
                yield from walk(value, f"{path}.")
            elif path in groups:
                raise ConfigError(f"{source}: {path}", "a group of keys", value)
            elif path not in known:
                nearest = difflib.get_close_matches(path, sorted(known | groups), n=1, cutoff=0)
                raise ConfigError(f"{source}: {path}", f"a known key (nearest: {nearest[0]})", "an unknown one")
            else:
                yield path, value

    yield from walk(values, "")


def _kind_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return name.replace("typing.Any", "any")


def _value_error(where: str, kind: str, error: OmegaConfBaseException) -> ConfigError:
    return ConfigError(where, kind, str(error).partition("\n    full_key")[0])


def _check_ranges(schema: type, merged: Any) -> None:
    for path, entry in _leaves(schema):
        value = OmegaConf.select(merged, path)
        low, high, one_of = (entry.metadata[name] for name in ("low", "high", "one_of"))
        if value is None:
            continue
        if value == "False" and "no" in (one_of or ()):
            # An unquoted `no` is YAML for false; where "no" is a choice, nothing else can be meant.
            OmegaConf.update(merged, path, value := "no")
        if one_of is not None and value not in one_of:
            raise ConfigError(path, f"one of {', '.join(one_of)}", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(path, "a finite number", value)
        too_low, too_high = low is not None and not value >= low, high is not None and not value <= high
        if too_low or too_high:
            bounds = f"{low} to {high}" if high is not None else f"at least {low}"
            raise ConfigError(path, str(low) if low == high else bounds, value)
