"""Attention of one decoding forward: whole blocks of tokens, each of a slot, over the slots' cached keys.

The unit of everything is the block: a forward is a flat row of blocks, and a block sees its slot's keys from 0 to its
own end, those of the forward itself included, because they are written before anything attends.  A running sequence
brings one block, or two where the first is finished and only committed; a prompt brings a chunk of blocks.  That is the
block-causal mask, so any mixture of them shares one forward.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from t3d.decoding.cache import SlotCache, padded_keys
from t3d.sdar.backend import AttentionPlan

SLOT_TILE = 16
"""Most slots per attention call: the longest sequence of a call sets the number of keys for all."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a forward, in the order of its tokens: slots ascending, positions ascending within a slot.

    Attributes:
        slots: slot of each block.
        starts: first position of each block.
        size: positions per block.
    """

    slots: NDArray[np.int64]
    starts: NDArray[np.int64]
    size: int

    @property
    def positions(self) -> NDArray[np.int64]:
        """Position of each token [blocks * size]."""
        return (self.starts[:, None] + np.arange(self.size)).reshape(-1)

    def places(self, length: int) -> NDArray[np.int64]:
        """Where in a buffer [slots, length] each token lies [blocks * size]."""
        return np.repeat(self.slots * length, self.size) + self.positions


def attention_plan(blocks: Blocks, cache: SlotCache) -> AttentionPlan:
    """The fastest plan there is for the cache's device and type."""
    keys = cache.keys
    half = keys.dtype in (torch.float16, torch.bfloat16)
    if keys.is_cuda and half and importlib.util.find_spec("flash_attn") is not None:
        return FlashPlan(blocks, cache)
    return SdpaPlan(blocks, cache)


@dataclass(frozen=True)
class Tile:
    """Neighbouring slots that attend in one call.

    Attributes:
        slots: which.
        tokens: the forward's tokens of these slots.
        grid: token of each query, as an index into `tokens` [slots, width]; None where all slots have the same
            number of blocks, so that the tokens are the grid.
        back: query of each token, as an index into the grid; None likewise.
        mask: added to the scores; a query row holds every head that shares a key head.
    """

    slots: slice
    tokens: slice
    grid: Int[Tensor, "slots width"] | None
    back: Int[Tensor, " tokens"] | None
    mask: Float[Tensor, "slots 1 #queries keys"]


class SdpaPlan(AttentionPlan):
    """PyTorch's attention over views of the cache: keys and values are never gathered or expanded."""

    def __init__(self, blocks: Blocks, cache: SlotCache) -> None:
        """Lays out the attention calls; nothing is computed yet."""
        self.cache = cache
        device = cache.keys.device
        self.places = torch.from_numpy(blocks.places(cache.keys.shape[2])).to(device)
        slots, first, counts = np.unique(blocks.slots, return_index=True, return_counts=True)
        # A call takes running sequences of neighbouring slots, or the chunk of one prompt.
        lone = np.where(counts > 2, slots, -1)
        breaks = (np.diff(slots) > 1) | (np.diff(slots // SLOT_TILE) > 0) | (np.diff(lone) != 0)
        edges = [0, *(np.flatnonzero(breaks) + 1), len(slots)]
        self.tiles = [
            self._tile(blocks, first[low:high], counts[low:high]) for low, high in zip(edges, edges[1:], strict=False)
        ]

    def _tile(self, blocks: Blocks, first: NDArray[np.int64], counts: NDArray[np.int64]) -> Tile:
        size, most = blocks.size, int(counts.max())
        low, high = int(first[0]), int(first[-1] + counts[-1])
        rank = np.arange(most)
        present = rank < counts[:, None]
        block = first[:, None] + np.minimum(rank, counts[:, None] - 1)
        ends = torch.from_numpy(blocks.starts[block] + size)
        num_keys = min(padded_keys(int(ends.max())), self.cache.keys.shape[2])
        visible = torch.arange(num_keys) < ends[:, :, None]
        mask = torch.zeros(visible.shape, dtype=self.cache.keys.dtype).masked_fill(~visible, -torch.inf)
        if most > 1:
            mask = mask.repeat_interleave(size, dim=1)
        grid = back = None
        if not present.all():
            tokens = (block - low)[:, :, None] * size + np.arange(size)
            grid = torch.from_numpy(tokens.reshape(len(counts), -1)).to(self.places.device)
            back = torch.from_numpy(np.flatnonzero(np.repeat(present, size, axis=1))).to(self.places.device)
        slots = slice(int(blocks.slots[low]), int(blocks.slots[high - 1]) + 1)
        return Tile(slots, slice(low * size, high * size), grid, back, mask[:, None].to(self.places.device))

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads tokens dim"],
        key: Float[Tensor, "1 kv_heads tokens dim"],
        value: Float[Tensor, "1 kv_heads tokens dim"],
        scale: float,
    ) -> Float[Tensor, "1 tokens heads dim"]:
        """Writes the layer's keys and values and attends, tile by tile."""
        keys, values = self.cache.write(layer, self.places, key, value)
        return torch.cat([self._look(tile, query[0], keys, values, scale) for tile in self.tiles])[None]

    def _look(
        self,
        tile: Tile,
        query: Float[Tensor, "heads tokens dim"],
        keys: Float[Tensor, "slots length kv_heads dim"],
        values: Float[Tensor, "slots length kv_heads dim"],
        scale: float,
    ) -> Float[Tensor, "part heads dim"]:
        num_slots, num_keys = tile.mask.shape[0], tile.mask.shape[-1]
        (num_heads, _, dim), num_groups = query.shape, query.shape[0] // keys.shape[2]
        queries = query[:, tile.tokens]
        if tile.grid is not None:
            queries = queries[:, tile.grid.flatten()]
        # Heads that share a key head become more queries of it: larger products, and no copies of keys.
        queries = queries.reshape(num_heads, num_slots, -1, dim).transpose(0, 1)
        queries = queries.reshape(num_slots, keys.shape[2], -1, dim)
        mask = tile.mask if tile.mask.shape[2] == 1 else tile.mask.repeat(1, 1, num_groups, 1)
        out = scaled_dot_product_attention(
            queries,
            keys[tile.slots, :num_keys].transpose(1, 2),
            values[tile.slots, :num_keys].transpose(1, 2),
            attn_mask=mask,
            scale=scale,
        )
        out = out.reshape(num_slots, num_heads, -1, dim).transpose(1, 2).reshape(-1, num_heads, dim)
        return out if tile.back is None else out[tile.back]


class FlashPlan(AttentionPlan):
    """flash-attn's attention over a cache: every block is a row of its own with its own number of keys.

    Args:
        blocks: of the forward.
        cache: of the slots.
        flash: the kernel; `flash_attn.flash_attn_with_kvcache` if None.
    """

    def __init__(self, blocks: Blocks, cache: SlotCache, flash: Any = None) -> None:
        """Sends the layout to the cache's device."""
        if flash is None:
            from flash_attn import flash_attn_with_kvcache as flash
        self.flash, self.cache, self.size = flash, cache, blocks.size
        device = cache.keys.device
        self.places = torch.from_numpy(blocks.places(cache.keys.shape[2])).to(device)
        self.slots = torch.from_numpy(blocks.slots).to(device, torch.int32)
        self.ends = torch.from_numpy(blocks.starts + blocks.size).to(device, torch.int32)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads tokens dim"],
        key: Float[Tensor, "1 kv_heads tokens dim"],
        value: Float[Tensor, "1 kv_heads tokens dim"],
        scale: float,
    ) -> Float[Tensor, "1 tokens heads dim"]:
        """Writes the layer's keys and values and attends, all blocks in one call."""
        keys, values = self.cache.write(layer, self.places, key, value)
        _, num_heads, num_tokens, dim = query.shape
        queries = query[0].transpose(0, 1).reshape(-1, self.size, num_heads, dim)
        out = self.flash(
            queries, keys, values, cache_seqlens=self.ends, cache_batch_idx=self.slots, softmax_scale=scale, causal=False
        )
        return out.reshape(1, num_tokens, num_heads, dim)
