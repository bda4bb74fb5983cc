"""What a forward is given: a step's arrays, gathered on the host and sent to the device in one copy.

For forwards that are recorded once and replayed, a step is padded to a bucket and its arrays go where those of the
bucket's other steps went.  Padding reads and writes a slot that no sequence has, and nobody asks what it draws.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from t3d.decoding.buckets import Bucket, Buffers, padded_size
from t3d.decoding.kernel import Kernel
from t3d.decoding.schedule import Step
from t3d.decoding.slots import Slots
from t3d.parcel import Parcel
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
        num_rows: masked positions; what follows in `rows` is padding.
        bucket: what the step is padded to; None where it is not.
    """

    ids: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    plan: AttentionPlan
    rows: Int[Tensor, " rows"]
    uniforms: Float[Tensor, " rows"] | None
    ranked_by: str | None
    num_rows: int
    bucket: Bucket | None = None


def stage(step: Step, slots: Slots, kernel: Kernel, buffers: Buffers | None = None) -> Staged:
    """Gathers and sends what the step needs.

    Args:
        step: the forward.
        slots: the sequences.
        kernel: lays out the attention.
        buffers: pads the step, if it denoises, and sends it there; None does not.
    """
    spans, rows, ranked_by = step.spans, _masked_rows(step, slots), _ranked_by(step.denoising, slots)
    ids = slots.columns["ids"].reshape(-1)[spans.places(slots.length)]
    drawn_by = _uniforms(step.denoising, slots) if slots.config.temperature > 0 else None
    num_rows, bucket, parcel = len(rows), None, Parcel(slots.device)
    if buffers is not None and num_rows:
        bucket = Bucket(padded_size(int(spans.counts.sum())), padded_size(num_rows), ranked_by)
        spans, parcel = spans.padded(bucket.blocks, buffers.spare), Parcel(slots.device, buffers.of(bucket))
        ids, rows = _padded(ids, len(spans.positions), slots.config.mask_id), _padded(rows, bucket.rows, 0)
        drawn_by = None if drawn_by is None else _padded(drawn_by, bucket.rows, 0)
    tokens, positions, places = parcel.add(ids), parcel.add(spans.positions), parcel.add(rows)
    uniforms = None if drawn_by is None else parcel.add(drawn_by)
    return Staged(
        plan=kernel.plan(spans, slots.cache, parcel),
        ids=parcel[tokens][None],
        positions=parcel[positions][None],
        rows=parcel[places],
        uniforms=None if uniforms is None else parcel[uniforms],
        ranked_by=ranked_by,
        num_rows=num_rows,
        bucket=bucket,
    )


def _padded(array: NDArray[Any], length: int, fill: int) -> NDArray[Any]:
    return np.concatenate([array, np.full(length - len(array), fill, dtype=array.dtype)])


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
