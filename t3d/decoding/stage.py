"""What a forward is given: a step's arrays, gathered on the host and sent to the device in one copy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from t3d.decoding.kernel import Kernel
from t3d.decoding.parcel import Parcel
from t3d.decoding.schedule import Step
from t3d.decoding.slots import Slots
from t3d.remasking import RANKED_BY
from t3d.sdar.backend import AttentionPlan


@dataclass(frozen=True)
class Staged:
    """Inputs of one forward, on the device.

    Attributes:
        ids: token of every position of the step's spans.
        positions: their positions.
        plan: their attention.
        rows: places of the masked positions among them.
        uniforms: the random number of each masked position; None at temperature 0.
        ranked_by: the score that the strategy reads; None where every block is at its last step, which reveals all.
    """

    ids: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    plan: AttentionPlan
    rows: Int[Tensor, " rows"]
    uniforms: Float[Tensor, " rows"] | None
    ranked_by: str | None


def stage(step: Step, slots: Slots, kernel: Kernel) -> Staged:
    """Gathers and sends what the step needs."""
    parcel, spans, random = Parcel(slots.device), step.spans, slots.config.temperature > 0
    ids = parcel.add(slots.columns["ids"].reshape(-1)[spans.places(slots.length)])
    positions, rows = parcel.add(spans.positions), parcel.add(_masked_rows(step, slots))
    uniforms = parcel.add(_uniforms(step.denoising, slots)) if random else None
    return Staged(
        plan=kernel.plan(spans, slots.cache, parcel),
        ids=parcel[ids][None],
        positions=parcel[positions][None],
        rows=parcel[rows],
        uniforms=None if uniforms is None else parcel[uniforms],
        ranked_by=_ranked_by(step.denoising, slots),
    )


def _masked_rows(step: Step, slots: Slots) -> NDArray[np.int64]:
    """A slot's current block is the last of its run; what stands before it is only committed."""
    spans, masked = step.spans, slots.table["masked"][step.denoising]
    first = spans.edges[1:][np.searchsorted(spans.slots, step.denoising)] - spans.size
    return (first[:, None] + np.arange(spans.size))[masked]


def _uniforms(denoising: NDArray[np.int64], slots: Slots) -> NDArray[np.float32]:
    """The random number of every masked position."""
    table = slots.table[denoising]
    block = (table["start"] - table["whole"]) // slots.config.block_size
    return slots.uniforms[denoising, block, table["step"]][table["masked"]]


def _ranked_by(denoising: NDArray[np.int64], slots: Slots) -> str | None:
    last = slots.table["step"][denoising] == slots.config.denoising_steps - 1
    return None if last.all() else RANKED_BY[slots.config.remasking_strategy]
