"""Few sizes of forwards: what a step is padded to, so that one recorded forward serves many steps."""

from dataclasses import dataclass

import torch

from t3d.parcel import FixedBuffer

EXACT = 32
"""Up to here sizes are powers of two; above, each octave has four, and at most a fifth of a forward is padding."""


@dataclass(frozen=True)
class Bucket:
    """A size of forward, and all else that is fixed in it.

    Attributes:
        blocks: of tokens, padding included.
        rows: of logits, padding included.
        ranked_by: see `Staged`.
    """

    blocks: int
    rows: int
    ranked_by: str | None


def padded_size(number: int) -> int:
    """The least size that holds `number` of them: 1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 80, ..."""
    octave = 1 << max(0, number - 1).bit_length()
    if octave <= EXACT:
        return octave
    unit = octave // 8
    return -(-number // unit) * unit


class Buffers:
    """What the forwards of each bucket read: memory that stays where it is.

    Attributes:
        spare: a slot that no sequence has, which padding writes to.
    """

    def __init__(self, device: torch.device, spare: int) -> None:
        """Begins without any."""
        self.device, self.spare = device, spare
        self._of: dict[Bucket, FixedBuffer] = {}

    def of(self, bucket: Bucket) -> FixedBuffer:
        """The bucket's."""
        return self._of.setdefault(bucket, FixedBuffer(self.device))
