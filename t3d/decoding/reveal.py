"""What a denoising step changes: tokens are revealed, and responses may be decided."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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
    chosen = _choose(table, draws, config)
    _write(slots, table, draws, chosen, places)
    left = masked & ~chosen
    slots.table["masked"][denoising] = left
    is_end = _is_end(slots, positions - table["prompt"][:, None], places)
    failed = np.zeros_like(masked)
    failed[masked] = draws.failed.numpy()
    return Revealed(_is_decided(left, is_end, config.end_early), np.any(failed, axis=1))


def _choose(table: np.ndarray, draws: Draws, config: DecodingConfig) -> Flags:
    """Asks the strategy which masked positions are revealed [rows, block]; a block's last step reveals all."""
    masked, step = torch.from_numpy(table["masked"]), torch.from_numpy(table["step"])
    last = table["step"] == config.denoising_steps - 1
    if last.all():
        return table["masked"]
    score = torch.zeros(masked.shape).masked_scatter_(masked, draws.score)  # the one that the strategy ranks by
    scores = BlockScores(
        masked=masked,
        confidence=score,
        entropy=score,
        quota=torch.minimum(step_quota(step, config.block_size, config.denoising_steps), masked.sum(-1)),
        dynamic_threshold=config.dynamic_threshold,
        eb_threshold=config.eb_threshold,
    )
    return np.where(last[:, None], table["masked"], STRATEGIES[config.remasking_strategy](scores).numpy())


def _write(slots: Slots, table: np.ndarray, draws: Draws, chosen: Flags, places: Positions) -> None:
    """Writes the chosen tokens, their step and what is recorded of them to `places` [rows, block]."""
    drawn = chosen[table["masked"]]
    steps = np.broadcast_to(table["steps"][:, None], chosen.shape)[chosen]
    known: dict[str, Any] = {"ids": draws.tokens, "logprobs": draws.logprobs, "entropies": draws.entropies}
    for name, column in slots.columns.items():
        column.reshape(-1)[places[chosen]] = steps if name == "step_map" else known[name].numpy()[drawn]


def _is_end(slots: Slots, order: Positions, places: Positions) -> Flags:
    """Where a response ends if nothing before it is masked: at a stop token of its own, or at its limit.

    Args:
        slots: with the step's tokens.
        order: of each position [rows, block] in its response, from 0; negative in the prompt.
        places: of the positions in the columns.
    """
    is_stop = slots.is_stop[slots.columns["ids"].reshape(-1)[places]] & (order >= 0)
    return is_stop | (order == slots.config.max_new_tokens - 1)


def _is_decided(left: Flags, is_end: Flags, end_early: bool) -> Flags:
    """Which blocks [rows] end their response.

    Args:
        left: positions [rows, block] that are still masked.
        is_end: see `_is_end`.
        end_early: it is enough that nothing up to the end is masked; else the whole block must be revealed.
    """
    is_settled = np.cumsum(left, axis=1) == 0 if end_early else ~left.any(1, keepdims=True)
    return np.any(is_end & is_settled, axis=1)
