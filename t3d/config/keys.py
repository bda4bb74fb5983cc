"""What a config key is made of."""

from dataclasses import field
from typing import Any

MAX_SEED = 2**63 - 1


def key(default: Any, meaning: str, *, low: float | None = None, high: float | None = None, one_of: Any = None) -> Any:
    """A config key: default, meaning for `--help`, and the inclusive range or the choices of its value."""
    metadata = {"meaning": meaning, "low": low, "high": high, "one_of": one_of}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(schema: type) -> Any:
    """A group of keys."""
    return field(default_factory=schema)
