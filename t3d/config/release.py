"""Keys of the authors' release that set nothing here: accepted in files and on command lines, so that theirs run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


DECODING_KEYS: dict[str, ReleaseKey] = {
    "model_base": _only("sdar"),
    "experiment.num_node": ReleaseKey("a whole number; evaluation.num_node decides", _is_count),
    "rollout.num_task_per_step": ReleaseKey("a whole number, without effect in the release either", _is_count),
    "rollout.random_init_ratio": ReleaseKey("0", _is_zero),
    "execute.num_chunk": ReleaseKey("a whole number; eval.py reads it", _is_count),
}
TRAINING_KEYS: dict[str, ReleaseKey] = {
    "model_base": _only("sdar"),
    "optimizer.name": _only("adamw"),
    "training.method": _only("semi-ar"),
    "training.target_temp": ReleaseKey("0", _is_zero),
}


def release_keys(known: set[str]) -> dict[str, ReleaseKey]:
    """Those that a schema with the keys `known` accepts: of the release's decoding files or of its training files."""
    keys: dict[str, ReleaseKey] = {}
    if any(path.startswith("rollout.") for path in known):
        keys = DECODING_KEYS
    elif any(path.startswith("training.") for path in known):
        keys = TRAINING_KEYS
    return {path: key for path, key in keys.items() if path not in known}
