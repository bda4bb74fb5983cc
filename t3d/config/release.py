"""Keys of the authors' release that set nothing here: accepted in files and on command lines, so that theirs run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from t3d.errors import ConfigError


@dataclass(frozen=True)
class ReleaseKey:
    """A key that is accepted and not kept.

    Attributes:
        accepted: the values that are accepted, in words; any other one asks for what is not there.
        accepts: whether a value is among them.
    """

    accepted: str
    accepts: Callable[[Any], bool]


def _only(choice: str) -> ReleaseKey:
    return ReleaseKey(choice, lambda value: value == choice)


def _is_count(value: Any) -> bool:
    return not isinstance(value, bool) and str(value).isdecimal() and int(value) > 0


def _is_zero(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == 0
    except (TypeError, ValueError):
        return False


RELEASE_KEYS: dict[str, ReleaseKey] = {
    "model_base": _only("sdar"),
    "optimizer.name": _only("adamw"),
    "rollout.num_task_per_step": ReleaseKey("a whole number, without effect in the release either", _is_count),
    "rollout.random_init_ratio": ReleaseKey("0", _is_zero),
    "training.method": _only("semi-ar"),
    "training.target_temp": ReleaseKey("0", _is_zero),
}


def check_release_key(path: str, value: Any, source: str) -> None:
    """Checks that a key of `RELEASE_KEYS` asks for what is done anyway.

    Raises:
        ConfigError: it asks for something else.
    """
    if not RELEASE_KEYS[path].accepts(value):
        raise ConfigError(f"{source}: {path}", RELEASE_KEYS[path].accepted, value)


def release_keys(groups: set[str]) -> dict[str, ReleaseKey]:
    """Those of a schema that has these groups; one that stands in no group is every schema's."""
    return {path: key for path, key in RELEASE_KEYS.items() if path.rpartition(".")[0] in groups | {""}}
