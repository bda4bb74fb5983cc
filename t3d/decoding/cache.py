"""A preallocated key/value cache: one slot per running sequence, addressed by position."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from t3d.sdar.configuration import SDARConfig


class SlotCache(Cache):
    """Keys and values of every slot, written at absolute positions.

    Positions of an unfinished block are written anew at each denoising step; the forward that commits the block
    writes them last, from its clean tokens.  Stale entries need no clearing: the block-causal mask hides every
    block after the query's own, and a block is always written before a query of it, or of a later one, is asked.
    """

    def __init__(self, config: SDARConfig, num_slots: int, max_length: int, dtype: torch.dtype, device: torch.device):
        """Allocates 2 * layers * num_slots * max_length * kv_heads * head_dim elements."""
        super().__init__(layers=[])
        num_heads = config.num_key_value_heads or config.num_attention_heads
        shape = (config.num_hidden_layers, num_slots, max_length, num_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def select(self, slots: Int[Tensor, " rows"], positions: Int[Tensor, "rows query"], num_keys: int) -> None:
        """Points the next forward at `slots` and `positions`; its queries may see keys 0..num_keys-1."""
        self._slots, self._positions, self._num_keys = slots, positions, num_keys

    def update(
        self,
        key_states: Float[Tensor, "rows heads query dim"],
        value_states: Float[Tensor, "rows heads query dim"],
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Float[Tensor, "rows heads key dim"], Float[Tensor, "rows heads key dim"]]:
        """Writes the new keys and values of one layer and returns all that the queries may see."""
        return (
            self._write(self.keys[layer_idx], key_states),
            self._write(self.values[layer_idx], value_states),
        )

    def _write(self, buffer: Tensor, states: Tensor) -> Tensor:
        buffer[self._slots[:, None], self._positions] = states.transpose(1, 2)
        return buffer[self._slots, : self._num_keys].transpose(1, 2)
