"""Schema <- YAML file <- command line, checked once, then plain dataclasses."""

import dataclasses
import difflib
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from t3d.config.release import release_keys
from t3d.config.values import as_declared, is_null, parse_argument, parse_yaml
from t3d.errors import ConfigError, first_line
from t3d.storage.files import atomic_writer
from t3d.storage.paths import config_path, model_name

Schema = TypeVar("Schema")

HELP = {"-h", "--help"}
REQUIRED = "required"
INTERPOLATION = "a value in which ${NAME} stands for the key NAME"

TRAINING_SETS = {"math": "MATH_train", "code": "PrimeIntellect"}
"""Kind of problem -> the paper's training problems."""


def _teacher_data(model: str, data_type: str) -> str:
    """What stage 2 calls a model's own answers to the paper's training problems."""
    if data_type not in TRAINING_SETS:
        raise ValueError(f"the paper has no training problems of the kind {data_type}")
    return f"{model_name(model)}-{TRAINING_SETS[data_type]}_renamed"


OmegaConf.register_resolver("teacher_data", _teacher_data, replace=True)


def load_config(schema: type[Schema], arguments: list[str], purpose: str, example: str) -> Schema:
    """Builds a checked configuration from `config=FILE key=value ...`.

    `--help` among the arguments prints `purpose`, every key with its value and `example`, and exits with 0.

    Raises:
        ConfigError: an unreadable file, an unknown key (with the nearest known one), a value of the wrong
            type or outside its range, a mandatory key left out.
    """
    if HELP & set(arguments):
        sys.stdout.write(help_text(schema, purpose, example, [word for word in arguments if word not in HELP]))
        sys.exit(0)
    merged, sources = _merge(schema, arguments)
    try:
        return _checked(schema, merged)
    except ConfigError as error:
        if error.where not in sources:
            raise
        raise ConfigError(f"{sources[error.where]}: {error.where}", error.expected, error.found) from error


def _checked(schema: type[Schema], merged: Any) -> Schema:
    """The configuration as plain dataclasses.

    Raises:
        ConfigError: a value that is missing or out of its range; its `where` is the key alone.
    """
    for path, entry in leaves(schema):
        try:
            OmegaConf.select(merged, path, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise ConfigError(path, "a value", "none") from error
        except OmegaConfBaseException as error:
            raise _value_error(path, entry.type, error) from error
    _check_ranges(schema, merged)
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:  # within a list or mapping
        raise ConfigError(error.full_key or "configuration", INTERPOLATION, first_line(error)) from error


def named_keys(arguments: list[str]) -> set[str]:
    """The keys that `config=FILE key=value ...` give, which tell what kind of command they are for.

    Raises:
        ConfigError: an unreadable file, or an argument that is no such pair.
    """

    def walk(values: Mapping[Any, Any], prefix: str) -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    return {path for _, values in _sources(arguments, {}) for path in walk(values, "")}


def save_config(config: object, path: Path) -> None:
    """Writes the resolved configuration as YAML, loadable with `config=`, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_writer(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.structured(config)))


def help_text(schema: type, purpose: str, example: str, arguments: list[str]) -> str:
    """The `--help` page of an entry point: its keys, each with the value that `arguments` give it."""
    defaults, whose = OmegaConf.structured(schema), "with their defaults"
    try:
        values, _ = _merge(schema, arguments)
        if arguments:
            whose = f"as {' '.join(arguments)} sets them"
    except ConfigError as error:
        values, whose = defaults, f"with their defaults, as there is a mistake ({error})"
    lines = [
        purpose.strip(),
        "",
        "config=FILE reads a YAML file (and, first, the one that its key `base` names); key=value wins over it.",
        "Where there is no such file, FILE is one that comes with t3d: eval, toy/eval.yaml (`t3d configs` lists them).",
        "",
        f"Keys, {whose}:",
    ]
    for path, entry in leaves(schema):
        value, default = shown(values, path), shown(defaults, path)
        other = "" if value == default else " (required)" if default == REQUIRED else f" (default {default})"
        choices = f" ({' | '.join(entry.metadata['one_of'])})" if entry.metadata["one_of"] else ""
        lines.append(f"  {path} = {value}{other}: {entry.metadata['meaning']}{choices}")
    accepted = [f"{path} ({key.accepted})" for path, key in release_keys({path for path, _ in leaves(schema)}).items()]
    if accepted:
        lines += ["", f"Accepted from the authors' files, setting nothing: {'; '.join(accepted)}."]
    return "\n".join([*lines, "", "Example:", f"  {example}", ""])


def shown(values: Any, path: str) -> str:
    """A value of a configuration as people write it; one that cannot be resolved yet as it stands in the file."""
    if OmegaConf.is_missing(*_parent(values, path)):
        return REQUIRED
    try:
        value = OmegaConf.select(values, path)
    except OmegaConfBaseException:
        node, name = _parent(values, path)
        value = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[call-overload, index]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or '""'


def _parent(values: Any, path: str) -> tuple[Any, str]:
    """The group that a key stands in, and its name there."""
    group, _, name = path.rpartition(".")
    return OmegaConf.select(values, group) if group else values, name


def _merge(schema: type, arguments: list[str]) -> tuple[Any, dict[str, str]]:
    """The schema's defaults under what `config=FILE key=value ...` give, as OmegaConf holds them.

    Beside it the source of each key, and of each entry of a mapping: the file, or the command line, that gave it.

    Raises:
        ConfigError: an unreadable file, an unknown key, or a value of the wrong type.
    """
    merged = OmegaConf.structured(schema)
    types = {path: entry.type for path, entry in leaves(schema)}
    given: dict[str, str] = {}
    for source, values in _sources(arguments, types):
        for path, value in _known_values(schema, values, source):
            try:
                OmegaConf.update(merged, path, as_declared(value, types[path]), merge=True)
            except (OmegaConfBaseException, ValueError, RecursionError) as error:
                raise _value_error(f"{source}: {path}", types[path], error) from error
            entries = value if isinstance(value, Mapping) else ()
            given |= dict.fromkeys([path, *(f"{path}.{name}" for name in entries)], source)
    return merged, given


def _sources(arguments: list[str], types: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(where it was said, nested values) of the file and of each override, in the order in which they win."""
    files: list[tuple[str, dict[str, Any]]] = []
    overrides: list[tuple[str, dict[str, Any]]] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name or name.startswith("-"):
            raise ConfigError("command line", "config=FILE or key=value", argument)
        if name == "config":
            files += _read_files(config_path(value))
        else:
            try:
                overrides.append(("command line", _override(name, value, types)))
            except YAMLError as error:
                raise ConfigError("command line", "key=value", argument) from error
    return files + overrides


def _override(name: str, value: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """One `key=value`; an entry of a mapping is named behind its key, and may hold dots of its own."""
    if name in types:
        return {name: parse_argument(value, types[name])}
    for path, kind in types.items():
        if get_origin(kind) is dict and name.startswith(f"{path}."):
            return {path: {name.removeprefix(f"{path}."): parse_argument(value, get_args(kind)[1])}}
    nested: Any = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    return nested


def _read_files(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A file behind the one that its key `base` names from its own folder, so that it holds what differs."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: base", "files that do not lead back to themselves", above[0].name)
    values = _read_yaml(path)
    base = as_declared(values.pop("base", None), str)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: base", "the name of a YAML file", base)
    if not base:
        return [(str(path), values)]
    try:
        found = config_path(base, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: base", error.expected, f"{error.found} ({error.where})") from error
    below = _read_files(found, (*above, path.resolve()))
    return [*below, (str(path), values)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(path, "a readable YAML file", " ".join(str(error).split())) from error
    if not isinstance(loaded, dict | None):
        raise ConfigError(path, "keys with values", "a list" if isinstance(loaded, list) else loaded)
    return loaded or {}


def leaves(schema: type, prefix: str = "") -> list[tuple[str, dataclasses.Field]]:
    """Every key of a schema, dotted, with its declaration, in the order of declaration."""
    found: list[tuple[str, dataclasses.Field]] = []
    for entry in fields(schema):
        if is_dataclass(entry.type):
            found += leaves(entry.type, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            found.append((prefix + entry.name, entry))
    return found


def _known_values(schema: type, values: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of every key that `source` gives.

    Raises:
        ConfigError: a key that `schema` does not have, or a group that is no group.
    """
    known = {path for path, _ in leaves(schema)}
    releases = release_keys(known)
    groups = _groups({*known, *releases})

    def walk(part: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in part.items():
            path = f"{prefix}{name}"
            if path in groups and isinstance(value, Mapping):
                yield from walk(value, f"{path}.")
            elif path in groups and is_null(value):
                continue
            elif path in groups:
                raise ConfigError(f"{source}: {path}", "a group of keys", value)
            elif path in releases:
                if not releases[path].accepts(value):
                    raise ConfigError(f"{source}: {path}", releases[path].accepted, value)
            elif path not in known:
                nearest = difflib.get_close_matches(path, sorted(known | groups), n=1, cutoff=0)
                raise ConfigError(f"{source}: {path}", f"a known key (nearest: {nearest[0]})", "an unknown one")
            else:
                yield path, value

    yield from walk(values, "")


def _groups(paths: Collection[str]) -> set[str]:
    return {path[:index] for path in paths for index, letter in enumerate(path) if letter == "."}


def _kind_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return name.replace("typing.Any", "any")


def _value_error(where: str, kind: Any, error: Exception) -> ConfigError:
    said = str(error).partition("\n    full_key")[0]
    return ConfigError(where, _kind_name(kind), "null" if said.endswith("is not Optional") else said)


def _check_ranges(schema: type, merged: Any) -> None:
    for path, entry in leaves(schema):
        value = OmegaConf.select(merged, path)
        low, high, one_of = (entry.metadata[name] for name in ("low", "high", "one_of"))
        if value is None:
            continue
        if one_of is not None and value not in one_of:
            raise ConfigError(path, f"one of {', '.join(one_of)}", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(path, "a finite number", value)
        too_low, too_high = low is not None and not value >= low, high is not None and not value <= high
        if too_low or too_high:
            bounds = f"{low} to {high}" if high is not None else f"at least {low}"
            raise ConfigError(path, bounds, value)
