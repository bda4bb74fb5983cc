"""Keys and values of every running sequence: one slot each, addressed by position."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t3d.sdar.configuration import SDARConfig

SHORT, LONG = 64, 256


def padded_keys(num_keys: int) -> int:
    """Keys that attention is computed over where `num_keys` are visible; the rest is masked.

    The lengths are coarse so that a sequence's result does not depend on its neighbours: a CPU's kernels add up
    keys in vectors of 16 and blocks of 256, and masked keys at the end of whole ones add exact zeros.
    """
    unit = SHORT if num_keys <= LONG else LONG
    return -(-num_keys // unit) * unit


class SlotCache:
    """Keys and values [layers, slots, length, kv_heads, dim], allocated once.

    Positions of an unfinished block are written anew at each denoising step; the forward that commits the block
    writes them last, from its clean tokens.  Stale entries need no clearing: a query sees no position after its own
    block, and a block is always written before a query of it, or of a later one, is asked.  The exception are
    values that are not finite, as even a masked one (0 * NaN) poisons the sum: see `clear` and `move`.
    """

    def __init__(self, config: SDARConfig, num_slots: int, length: int, dtype: torch.dtype, device: torch.device):
        """Allocates 2 * layers * num_slots * length * kv_heads * head_dim elements."""
        shape = (config.num_hidden_layers, num_slots, length, *_heads(config))
        self.heads_per_key = config.num_attention_heads // shape[-2]
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def slot_bytes(config: SDARConfig, length: int, dtype: torch.dtype) -> int:
        """Memory of one slot."""
        num_heads, head_dim = _heads(config)
        return 2 * config.num_hidden_layers * length * num_heads * head_dim * dtype.itemsize

    def write(
        self,
        layer: int,
        places: Int[Tensor, " tokens"],
        key: Float[Tensor, "1 kv_heads tokens dim"],
        value: Float[Tensor, "1 kv_heads tokens dim"],
    ) -> tuple[Float[Tensor, "slots length kv_heads dim"], Float[Tensor, "slots length kv_heads dim"]]:
        """Stores one layer's keys and values at `places` (slot * length + position) and returns all of the layer."""
        for buffer, states in ((self.keys[layer], key), (self.values[layer], value)):
            buffer.flatten(0, 1).index_copy_(0, places, states[0].transpose(0, 1))
        return self.keys[layer], self.values[layer]

    def move(self, source: int, target: int, length: int) -> None:
        """Moves the first `length` positions of a slot to another and leaves zeros.

        Whether they are finite is known only after the next denoising step, and by then the slot has a new owner.
        """
        for buffer in (self.keys, self.values):
            buffer[:, target, :length] = buffer[:, source, :length]
            buffer[:, source, :length] = 0

    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros."""
        self.keys[:, slot] = 0
        self.values[:, slot] = 0


def _heads(config: SDARConfig) -> tuple[int, int]:
    return config.num_key_value_heads or config.num_attention_heads, config.head_dim
