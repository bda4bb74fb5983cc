"""Remasking strategies: which masked tokens of a block are revealed at a denoising step.

A strategy is one function of a `BlockScores` and one line in `STRATEGIES`.  Rows are sequences at any phase of
their blocks; only masked positions may be chosen.  All of it happens on the host, in arrays too small for a device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class BlockScores:
    """What a strategy may look at.

    Attributes:
        masked: positions not yet revealed.
        confidence: probability of the token drawn at each masked position; anything where `RANKED_BY` names another.
        entropy: entropy of each masked position's distribution, in nats; likewise.
        quota: n_s, the tokens that each row must reveal at this step; where fewer masks are left, all of them.
        dynamic_threshold: see `DecodingConfig`.
        eb_threshold: see `DecodingConfig`.
    """

    masked: Bool[np.ndarray, "rows block"]
    confidence: Float[np.ndarray, "rows block"]
    entropy: Float[np.ndarray, "rows block"]
    quota: Int[np.ndarray, " rows"]
    dynamic_threshold: float
    eb_threshold: float


def step_quota(
    denoising_step: Int[np.ndarray, " rows"], block_size: int, denoising_steps: int
) -> Int[np.ndarray, " rows"]:
    """n_s of 0-based step s: block_size // S, the remainder spread over the first steps."""
    return block_size // denoising_steps + (denoising_step < block_size % denoising_steps)


def low_confidence_static(scores: BlockScores) -> Bool[np.ndarray, "rows block"]:
    """The n_s most confident; of equals the leftmost."""
    order = np.where(scores.masked, -scores.confidence, np.inf).argsort(axis=-1, kind="stable")
    return scores.masked & (order.argsort(axis=-1) < scores.quota[:, None])


def low_confidence_dynamic(scores: BlockScores) -> Bool[np.ndarray, "rows block"]:
    """All above the confidence threshold, and at least the n_s most confident."""
    return low_confidence_static(scores) | (scores.masked & (scores.confidence > scores.dynamic_threshold))


def sequential(scores: BlockScores) -> Bool[np.ndarray, "rows block"]:
    """The leftmost n_s."""
    return scores.masked & (scores.masked.cumsum(-1) <= scores.quota[:, None])


def entropy_bounded(scores: BlockScores) -> Bool[np.ndarray, "rows block"]:
    """In ascending entropy while the running sum stays within the threshold, and at least one."""
    entropy = np.where(scores.masked, scores.entropy, np.inf)
    order = entropy.argsort(axis=-1, kind="stable")
    within = np.take_along_axis(entropy, order, -1).cumsum(-1) <= scores.eb_threshold
    within[:, 0] = True
    chosen = np.zeros_like(scores.masked)
    np.put_along_axis(chosen, order, within, -1)
    return chosen & scores.masked


STRATEGIES: dict[str, Callable[[BlockScores], Bool[np.ndarray, "rows block"]]] = {
    "low_confidence_static": low_confidence_static,
    "low_confidence_dynamic": low_confidence_dynamic,
    "sequential": sequential,
    "entropy_bounded": entropy_bounded,
}

# The score that each strategy reads: the decoder computes no other (None: none at all).
RANKED_BY: dict[str, str | None] = {
    "low_confidence_static": "confidence",
    "low_confidence_dynamic": "confidence",
    "sequential": None,
    "entropy_bounded": "entropy",
}

CONFIDENCES = ("scaled", "raw")
"""Whose probability and entropy are read: those of the distribution that tokens are drawn from, or the model's own."""
