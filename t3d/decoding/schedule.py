"""What the next forward computes: chosen from the table of the sequences in flight, on the host alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t3d.decoding.limits import PREFILL_TOKENS, prefill_chunk
from t3d.decoding.plan import Spans
from t3d.decoding.slots import Slots


@dataclass(frozen=True)
class Step:
    """One forward.

    Attributes:
        prefilling: the slots that prefill, ascending.
        denoising: the slots that denoise their current block, ascending.
        spans: the tokens of both.
    """

    prefilling: NDArray[np.int64]
    denoising: NDArray[np.int64]
    spans: Spans


def schedule(slots: Slots) -> Step:
    """Chooses the next forward and counts it: every slot that can denoises, and others prefill up to the budget.

    The longest waiting prompt comes first.
    """
    size, table = slots.config.block_size, slots.running
    starts, counts = table["start"] - size * table["pending"], 1 + table["pending"]
    unfilled = table["filled"] < starts
    prefilling, denoising = slots.leaders(np.flatnonzero(unfilled)), np.flatnonzero(~unfilled)
    if len(prefilling) > 1:
        queue = prefilling[np.argsort(table["index"][prefilling])]
        within = np.cumsum(_chunks(slots, queue)) <= PREFILL_TOKENS
        within[0] = True
        prefilling = np.sort(queue[within])
    counts[unfilled] = 0
    if len(prefilling):
        counts[prefilling], starts[prefilling] = _chunks(slots, prefilling) // size, table["filled"][prefilling]
    used = np.flatnonzero(counts)
    table["forwards"][denoising] += 1
    return Step(prefilling, denoising, Spans(used, starts[used], counts[used], size))


def advance(slots: Slots, prefilling: NDArray[np.int64], denoising: NDArray[np.int64]) -> None:
    """Counts what a forward has done, and begins the next block of every sequence whose current one is complete."""
    table, size = slots.table, slots.config.block_size
    if len(prefilling):
        table["filled"][prefilling] += _chunks(slots, prefilling)
        slots.share_filled(prefilling)
    table["filled"][denoising] = table["start"][denoising]
    complete = ~table["masked"][denoising].any(-1)
    table["step"][denoising] += 1
    table["pending"][denoising] = complete
    done = denoising[complete]
    table["start"][done] += size
    table["step"][done] = 0
    table["masked"][done] = True


def _chunks(slots: Slots, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens that each of the `chosen` slots prefills next."""
    table, size = slots.table[chosen], slots.config.block_size
    left = table["start"] - size * table["pending"] - table["filled"]
    return np.minimum(left, prefill_chunk(size))
