"""Attention of one decoding forward: whole blocks of tokens, each of a slot, over the slots' cached keys.

The unit of everything is the block: a forward is a flat row of blocks, and a block sees its slot's keys from 0 to its
own end, those of the forward itself included, because they are written before anything attends.  A running sequence
brings one block, or two where the first is finished and only committed; a prompt brings a chunk of blocks.  That is the
block-causal mask, so any mixture of them shares one forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from t3d.decoding.cache import SlotCache, padded_keys
from t3d.sdar.backend import Attended, AttentionPlan, Keys, Queries

SLOT_TILE = 16
"""Most slots per attention call: the longest sequence of a call sets the number of keys for all."""


@dataclass(frozen=True)
class Spans:
    """The tokens of a forward: a run of whole blocks for each slot that takes part, one after the other.

    Attributes:
        slots: the slots, ascending.
        starts: first position of each run.
        counts: blocks of each run.
        size: positions per block.
    """

    slots: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    size: int

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """First token of each run, and the number of tokens [runs + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts * self.size)])

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Position of each token."""
        return np.arange(self.edges[-1]) + np.repeat(self.starts - self.edges[:-1], self.counts * self.size)

    def places(self, length: int) -> NDArray[np.int64]:
        """Where in a buffer [slots, length] each token lies."""
        return self.positions + np.repeat(self.slots * length, self.counts * self.size)


@dataclass(frozen=True)
class Tile:
    """Neighbouring slots that attend in one call.

    Attributes:
        slots: which.
        tokens: the forward's tokens of these slots.
        grid: token of each query, as an index into `tokens`, slot by slot; None where all slots have the same
            number of blocks, so that the tokens are the grid.
        back: query of each token, as an index into the grid; None likewise.
        mask: added to the scores; a query row holds every head that shares a key head.
    """

    slots: slice
    tokens: slice
    grid: Int[Tensor, " slots_by_width"] | None
    back: Int[Tensor, " tokens"] | None
    mask: Float[Tensor, "slots 1 #queries keys"]


class SdpaPlan(AttentionPlan):
    """PyTorch's attention over views of the cache: keys and values are never gathered or expanded."""

    def __init__(self, spans: Spans, cache: SlotCache) -> None:
        """Lays out the attention calls; nothing is computed yet."""
        self.cache = cache
        device = cache.keys.device
        self.places = torch.from_numpy(spans.places(cache.keys.shape[2])).to(device)
        # A call takes running sequences of neighbouring slots, or the chunk of one prompt.
        slots, lone = spans.slots, np.where(spans.counts > 2, spans.slots, -1)
        breaks = (np.diff(slots) > 1) | (np.diff(slots // SLOT_TILE) > 0) | (np.diff(lone) != 0)
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(slots)]
        self.tiles = [self._tile(spans, low, high) for low, high in pairwise(edges)]

    def _tile(self, spans: Spans, low: int, high: int) -> Tile:
        size, counts, device = spans.size, spans.counts[low:high], self.cache.keys.device
        most = int(counts.max())
        rank = np.arange(most)
        ends = spans.starts[low:high, None] + (np.minimum(rank, counts[:, None] - 1) + 1) * size
        num_keys = min(padded_keys(int(ends.max())), self.cache.keys.shape[2])
        hidden = torch.arange(num_keys) >= torch.from_numpy(ends)[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.cache.keys.dtype).masked_fill_(hidden, -torch.inf)
        if most > 1:  # else one row serves all queries
            shape = (len(counts), self.cache.heads_per_key, most, size, num_keys)
            mask = mask[:, None, :, None].expand(shape).reshape(len(counts), -1, num_keys)
        tokens = slice(int(spans.edges[low]), int(spans.edges[high]))
        grid = back = None
        if counts.min() < most:
            present = np.arange(most * size) < counts[:, None] * size
            first = spans.edges[low:high, None] - tokens.start
            grid = torch.from_numpy(np.where(present, first + np.arange(most * size), 0).ravel()).to(device)
            back = torch.from_numpy(np.flatnonzero(present)).to(device)
        slots = slice(int(spans.slots[low]), int(spans.slots[high - 1]) + 1)
        return Tile(slots, tokens, grid, back, mask[:, None].to(device))

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
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
        num_heads, _, dim = query.shape
        queries = query[:, tile.tokens]
        if tile.grid is not None:
            queries = queries.index_select(1, tile.grid)
        # Heads that share a key head become more queries of it: larger products, and no copies of keys.
        queries = queries.reshape(num_heads, num_slots, -1, dim).transpose(0, 1)
        queries = queries.reshape(num_slots, keys.shape[2], -1, dim)
        out = scaled_dot_product_attention(
            queries,
            keys[tile.slots, :num_keys].transpose(1, 2),
            values[tile.slots, :num_keys].transpose(1, 2),
            attn_mask=tile.mask,
            scale=scale,
        )
        out = out.reshape(num_slots, num_heads, -1, dim).transpose(1, 2).reshape(-1, num_heads, dim)
        return out if tile.back is None else out.index_select(0, tile.back)


class FlashPlan(AttentionPlan):
    """flash-attn's attention over a cache: every block is a row of its own with its own number of keys.

    Args:
        spans: the tokens of the forward.
        cache: of the slots.
        flash: the kernel, `flash_attn.flash_attn_with_kvcache`.
    """

    def __init__(self, spans: Spans, cache: SlotCache, flash: Callable[..., Tensor]) -> None:
        """Sends the layout to the cache's device."""
        self.flash, self.cache, self.size = flash, cache, spans.size
        device = cache.keys.device
        self.places = torch.from_numpy(spans.places(cache.keys.shape[2])).to(device)
        self.slots = torch.from_numpy(np.repeat(spans.slots, spans.counts)).to(device, torch.int32)
        self.ends = torch.from_numpy(spans.positions[spans.size - 1 :: spans.size] + 1).to(device, torch.int32)

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Writes the layer's keys and values and attends, all blocks in one call."""
        keys, values = self.cache.write(layer, self.places, key, value)
        _, num_heads, num_tokens, dim = query.shape
        queries = query[0].transpose(0, 1).reshape(-1, self.size, num_heads, dim)
        out = self.flash(
            queries,
            keys,
            values,
            cache_seqlens=self.ends,
            cache_batch_idx=self.slots,
            softmax_scale=scale,
            causal=False,
        )
        return out.reshape(1, num_tokens, num_heads, dim)
