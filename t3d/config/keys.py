"""What a config key is made of."""

from dataclasses import field
from pathlib import Path
from typing import Any

from t3d.errors import ConfigError

MAX_SEED = 2**63 - 1


def key(default: Any, meaning: str, *, low: float | None = None, high: float | None = None, one_of: Any = None) -> Any:
    """A config key: default, meaning for `--help`, and the inclusive range or the choices of its value."""
    metadata = {"meaning": meaning, "low": low, "high": high, "one_of": one_of}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_name(where: str, value: str) -> None:
    """Checks that a file or folder of this name lies in the folder that it belongs to, and not elsewhere.

    Raises:
        ConfigError: no name, or a path.
    """
    if value in ("", ".", "..") or Path(value).name != value or "\0" in value:
        raise ConfigError(where, "a name, not a path", repr(value))


def group(schema: type) -> Any:
    """A group of keys."""
    return field(default_factory=schema)
