"""What a denoising step changes: tokens are revealed, and responses may be decided."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import Draws
from t3d.decoding.slots import Slots
from t3d.remasking import STRATEGIES, BlockScores, step_quota

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Revealed:
    """What a step came to, one entry per denoising slot.

    Attributes:
        decided: no token of the response can change any more.
        failed: the step met logits that are not finite.
    """

    decided: Flags
    failed: Flags


def reveal(denoising: NDArray[np.int64], draws: Draws, slots: Slots) -> Revealed:
    """Reveals tokens of the denoising slots' current blocks.

    Args:
        denoising: the slots.
        draws: at their masked positions, on the host.
        slots: the step is counted there, and its tokens are written.
    """
    config = slots.config
    slots.table["steps"][denoising] += 1  # of the response; "step" counts those of the block
    table = slots.table[denoising]
    masked, positions = table["masked"], table["start"][:, None] + np.arange(config.block_size)
    places = positions + (denoising * slots.length)[:, None]  # of the slots' columns laid end to end
    score = np.zeros(masked.shape, dtype=np.float32)
    score[masked] = draws.score.numpy()
    chosen = choose(masked, table["step"], score, config)
    _write(slots, table, draws, chosen, places)
    left = masked & ~chosen
    slots.table["masked"][denoising] = left
    is_end = find_ends(slots, positions - table["prompt"][:, None], slots.columns["ids"].reshape(-1)[places])
    failed = np.zeros(len(denoising), dtype=np.bool_)
    failed[masked.nonzero()[0][draws.failed.numpy()]] = True
    return Revealed(is_decided(left, is_end, config.end_early), failed)


def choose(
    masked: Flags, step: NDArray[np.int64], score: Float[np.ndarray, "rows block"], config: DecodingConfig
) -> Flags:
    """Asks the strategy which masked positions are revealed [rows, block]; a block's last step reveals all.

    Args:
        masked: positions [rows, block] that are not revealed yet.
        step: each row's denoising step within its block, from 0.
        score: what the strategy ranks by; read where `masked` alone.
        config: names the strategy.
    """
    last = step == config.denoising_steps - 1
    if last.all():
        return masked
    scores = BlockScores(
        masked=masked,
        confidence=score,
        entropy=score,
        quota=step_quota(step, config.block_size, config.denoising_steps),
        dynamic_threshold=config.dynamic_threshold,
        eb_threshold=config.eb_threshold,
    )
    return np.where(last[:, None], masked, STRATEGIES[config.remasking_strategy](scores))


def _write(slots: Slots, table: np.ndarray, draws: Draws, chosen: Flags, places: Positions) -> None:
    """Writes the chosen tokens, their step and what is recorded of them to `places` [rows, block]."""
    drawn, places = chosen[table["masked"]], places[chosen]
    steps = table["steps"].repeat(chosen.sum(-1))
    known: dict[str, Any] = {"ids": draws.tokens, "logprobs": draws.logprobs, "entropies": draws.entropies}
    for name, column in slots.columns.items():
        column.reshape(-1)[places] = steps if name == "step_map" else known[name].numpy()[drawn]


def find_ends(slots: Slots, order: Positions, ids: Positions) -> Flags:
    """Where a response ends if nothing before it is masked: at a stop token of its own, or at its limit.

    Args:
        slots: tell the stop tokens and the limit.
        order: of each position [rows, block] in its response, from 0; negative in the prompt.
        ids: the tokens there.
    """
    is_stop = slots.is_stop[ids] & (order >= 0)
    return is_stop | (order == slots.config.max_new_tokens - 1)


def is_decided(left: Flags, is_end: Flags, end_early: bool) -> Flags:
    """Which blocks [rows] end their response.

    Args:
        left: positions [rows, block] that are still masked.
        is_end: see `find_ends`.
        end_early: it is enough that nothing up to the end is masked; else the whole block must be revealed.
    """
    is_open = np.logical_or.accumulate(left, axis=1) if end_early else left.any(1, keepdims=True)
    return np.logical_or.reduce(is_end & ~is_open, axis=1)
