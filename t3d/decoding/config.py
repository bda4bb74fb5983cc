"""Settings of block-diffusion decoding."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Any

from t3d.errors import ConfigError
from t3d.remasking import CONFIDENCES, STRATEGIES

log = logging.getLogger(__name__)

RECORDS = ("logprob", "entropy")
KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "true or false"),
    tuple[int, ...]: (Iterable, "token ids"),
    tuple[str, ...]: (Iterable, "a list of texts"),
}
"""Type of a setting -> what its value must be, and what that is called."""


@dataclass(frozen=True)
class DecodingConfig:
    """How a response is denoised.

    Attributes:
        mask_id: id of the mask token.
        block_size: positions per block, counted from position 0 of prompt + response.
        denoising_steps: most denoising steps per block, S; tokens per step = block_size / S.
        max_new_tokens: exact limit on the response's length, in tokens.
        temperature: softmax temperature; 0 means argmax, with its confidence taken at temperature 1.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to this mass, in (0, 1]; 1 keeps all.
        remasking_strategy: a key of `t3d.remasking.STRATEGIES`.
        dynamic_threshold: confidence above which `low_confidence_dynamic` reveals a token.
        eb_threshold: running sum of entropies, in nats, up to which `entropy_bounded` reveals tokens.
        stop_ids: a generated token among these ends the response.
        seed: seed of every random stream.
        confidence: the distribution that confidences and `entropy_bounded`'s entropies are taken from: "scaled",
            the one that tokens are drawn from (under temperature, top-k and top-p, as the release does), or "raw",
            the model's own (temperature 1, unfiltered).  At temperature 0.1 scaled confidences are nearly all
            close to 1, so that a threshold of 0.9 hardly selects.
        record: what to keep of each token at its reveal, of "logprob" and "entropy": the log-probability of the
            token and the entropy of its position, in nats, both under the model's own distribution.
        end_early: end a response once every position up to its end (a revealed stop token, or the limit) is
            revealed, instead of decoding the rest of that block, which is cut off: nothing that is kept can change
            any more, only fewer steps are spent.

    Raises:
        ConfigError: a value outside its range, named.
    """

    mask_id: int
    block_size: int = 4
    denoising_steps: int = 4
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    remasking_strategy: str = "low_confidence_static"
    dynamic_threshold: float = 0.9
    eb_threshold: float = 0.35
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    confidence: str = "scaled"
    record: tuple[str, ...] = ()
    end_early: bool = True

    def __post_init__(self) -> None:
        """Checks every value."""
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        object.__setattr__(self, "record", tuple(self.record))
        checks = [
            ("mask_id", self.mask_id >= 0, "a token id"),
            ("block_size", self.block_size >= 1, "at least 1"),
            (
                "denoising_steps",
                1 <= self.denoising_steps <= self.block_size,
                f"1 to block_size = {self.block_size}",
            ),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("remasking_strategy", self.remasking_strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}"),
            ("dynamic_threshold", 0 <= self.dynamic_threshold <= 1, "0 to 1"),
            ("eb_threshold", self.eb_threshold >= 0, "at least 0"),
            ("stop_ids", self.mask_id not in self.stop_ids, "no mask token"),
            ("seed", self.seed >= 0, "at least 0"),
            ("confidence", self.confidence in CONFIDENCES, f"one of {', '.join(CONFIDENCES)}"),
            ("record", set(self.record) <= set(RECORDS), f"of {', '.join(RECORDS)}"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise ConfigError(f"decoding.{name}", expected, getattr(self, name))


def check_types(settings: Mapping[str, Any]) -> None:
    """Checks what a caller gives for fields of `DecodingConfig`, which checks ranges.

    Raises:
        ConfigError: an unknown setting, or a value of another type.
    """
    known = {entry.name: entry.type for entry in fields(DecodingConfig) if entry.name != "mask_id"}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"decoding.{name}", f"a setting ({', '.join(known)})", "an unknown one")
        kind, expected = KINDS[known[name]]
        is_bool = isinstance(value, bool) and kind is not bool  # which is a number to isinstance
        if is_bool or not isinstance(value, kind) or (kind is Iterable and isinstance(value, str)):
            raise ConfigError(f"decoding.{name}", expected, repr(value))


def warn_of_threshold(config: DecodingConfig) -> None:
    """Warns, once for each temperature and threshold, of a threshold that nearly every confidence is above.

    A temperature below 1 sharpens the distribution that tokens are drawn from, and scaled confidences with it.
    """
    dynamic = config.remasking_strategy == "low_confidence_dynamic" and config.confidence == "scaled"
    if dynamic and 0 < config.temperature < 1:
        _warn_once(
            f"low_confidence_dynamic at temperature {config.temperature:g}: nearly every scaled confidence is above "
            f"{config.dynamic_threshold:g}, so that the threshold hardly selects; rollout.confidence=raw "
            "(confidence=raw in lm-eval) compares the model's own, at temperature 1"
        )


@cache
def _warn_once(line: str) -> None:
    log.warning("%s", line)
