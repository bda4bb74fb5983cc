"""Attention of one decoding forward: whole blocks of tokens, each of a slot, over the slots' cached keys.

The unit of everything is the block: a forward is a flat row of blocks, and a block sees its slot's keys from 0 to its
own end, those of the forward itself included, because they are written before anything attends.  A running sequence
brings one block, or two where the first is finished and only committed; a prompt brings a chunk of blocks.  That is the
block-causal mask, so any mixture of them shares one forward.
"""

from collections.abc import Callable, Sequence
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
from t3d.decoding.pages import num_pages
from t3d.parcel import Parcel
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
        edges = np.zeros(len(self.counts) + 1, dtype=np.int64)
        np.cumsum(self.counts * self.size, out=edges[1:])
        return edges

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Position of each token."""
        return np.arange(self.edges[-1]) + np.repeat(self.starts - self.edges[:-1], self.counts * self.size)

    @cached_property
    def token_slots(self) -> NDArray[np.int64]:
        """Slot of each token."""
        return np.repeat(self.slots, self.counts * self.size)

    def places(self, length: int) -> NDArray[np.int64]:
        """Where in a buffer [slots, length] each token lies."""
        return self.token_slots * length + self.positions

    def padded(self, num_blocks: int, spare: int) -> "Spans":
        """The same tokens, and after them first blocks of the slot `spare`, `num_blocks` blocks in all."""
        padding = np.ones(num_blocks - int(self.counts.sum()), dtype=np.int64)
        slots, starts = np.concatenate([self.slots, spare * padding]), np.concatenate([self.starts, 0 * padding])
        return Spans(slots, starts, np.concatenate([self.counts, padding]), self.size)


@dataclass(frozen=True)
class Tile:
    """Slots that attend in one call.

    Attributes:
        slots: which; some between them may take no part.
        tokens: the forward's tokens that hold those of these slots.
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


@dataclass(frozen=True)
class _Layout:
    """A tile on the host.  `grid`, `back` and `shown` are numbers in a parcel.

    `shown` is where each row of the mask begins in the cache's `horizon`.
    """

    slots: slice
    tokens: slice
    grid: int | None
    back: int | None
    shown: int
    num_keys: int


class SdpaPlan(AttentionPlan):
    """PyTorch's attention over views of the cache: keys and values are never expanded, and only gathered from pages.

    For a CPU: a call takes running sequences of neighbouring slots, or the chunk of one prompt.
    """

    def __init__(self, spans: Spans, cache: SlotCache, parcel: Parcel | None = None) -> None:
        """Lays out the attention calls; nothing is computed yet.

        Args:
            spans: the tokens of the forward.
            cache: of the slots.
            parcel: takes the layout to the device; None sends it alone.
        """
        self.cache, self.parcel, self._size = cache, parcel or Parcel(cache.keys.device), spans.size
        self._places = self.parcel.add(cache.places(spans.token_slots, spans.positions))
        self._pages = None if cache.pages is None else self.parcel.add(cache.pages.rows.astype(np.int64))
        members = self._members(spans)
        in_order = all(isinstance(part, slice) for part in members)
        self._order = None if in_order else self.parcel.add(_token_order(spans, members))
        self._layouts = [self._lay_out(spans, part) for part in members]

    def _members(self, spans: Spans) -> list[slice | NDArray[np.int64]]:
        """The runs of each call."""
        slots, tiles, lone = spans.slots, spans.slots // SLOT_TILE, spans.counts > 2
        breaks = (slots[1:] > slots[:-1] + 1) | (tiles[1:] > tiles[:-1]) | lone[1:] | lone[:-1]
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(slots)]
        return [slice(low, high) for low, high in pairwise(edges)]

    def _lay_out(self, spans: Spans, part: slice | NDArray[np.int64]) -> _Layout:
        """Adds a call's layout to the parcel."""
        size, slots, counts, starts = spans.size, spans.slots[part], spans.counts[part], spans.starts[part]
        seen, most = slice(int(slots[0]), int(slots[-1]) + 1), int(counts.max())
        blocks = np.minimum(np.arange(most), counts[:, None] - 1) + 1
        # A slot between the others that takes no part looks at one key, and nobody reads what it sees.
        ends = np.ones((seen.stop - seen.start, most), dtype=np.int64)
        ends[slots - seen.start] = starts[:, None] + blocks * size
        num_keys = min(padded_keys(int(ends.max())), self.cache.length)
        first = spans.edges[:-1][part]
        tokens = slice(int(first[0]), int(first[-1] + counts[-1] * size)) if isinstance(part, slice) else slice(None)
        grid = back = None
        if counts.min() < most or len(ends) > len(slots) or tokens == slice(None):
            present = np.zeros((len(ends), most * size), dtype=np.bool_)
            present[slots - seen.start] = np.arange(most * size) < counts[:, None] * size
            places = np.zeros(present.shape, dtype=np.int64)
            places[slots - seen.start] = (first - (tokens.start or 0))[:, None] + np.arange(most * size)
            grid = self.parcel.add(np.where(present, places, 0).ravel())
            back = self.parcel.add(np.flatnonzero(present))
        shown = self.cache.length - ends
        if most > 1:  # else one row of the mask serves all queries of a slot
            shown = np.broadcast_to(shown[:, None, :, None], (len(ends), self.cache.heads_per_key, most, size))
        return _Layout(seen, tokens, grid, back, self.parcel.add(shown.flatten()), num_keys)

    @cached_property
    def tiles(self) -> list[Tile]:
        """The calls, on the device."""
        sent, tiles = self.parcel, []
        for layout in self._layouts:
            grid, back = (None if number is None else sent[number] for number in (layout.grid, layout.back))
            mask = self.cache.horizon.unfold(0, layout.num_keys, 1).index_select(0, sent[layout.shown])
            num_slots = layout.slots.stop - layout.slots.start
            tiles.append(Tile(layout.slots, layout.tokens, grid, back, mask.view(num_slots, 1, -1, layout.num_keys)))
        return tiles

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Writes the layer's keys and values and attends, tile by tile."""
        keys, values = self.cache.write(layer, self.parcel[self._places], key, value)
        seen = torch.cat([self._look(tile, query[0], keys, values, scale) for tile in self.tiles])
        return (seen if self._order is None else seen.index_select(0, self.parcel[self._order]))[None]

    def _look(
        self,
        tile: Tile,
        query: Float[Tensor, "heads tokens dim"],
        keys: Float[Tensor, "slots_or_pages length kv_heads dim"],
        values: Float[Tensor, "slots_or_pages length kv_heads dim"],
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
            self._first(keys, tile.slots, num_keys).transpose(1, 2),
            self._first(values, tile.slots, num_keys).transpose(1, 2),
            attn_mask=tile.mask,
            scale=scale,
        )
        out = out.reshape(num_slots, num_heads, -1, dim).transpose(1, 2).reshape(-1, num_heads, dim)
        return out if tile.back is None else out.index_select(0, tile.back)

    def _first(
        self, buffer: Float[Tensor, "slots_or_pages length kv_heads dim"], slots: slice, num_keys: int
    ) -> Float[Tensor, "slots keys kv_heads dim"]:
        """The first `num_keys` positions of some slots."""
        if self._pages is None:
            return buffer[slots, :num_keys]
        pages = self.parcel[self._pages][slots, : num_pages(num_keys, buffer.shape[1])]
        return buffer[pages].flatten(1, 2)[:, :num_keys]


class WidePlan(SdpaPlan):
    """The same for an accelerator, where a call costs more than the keys that it sees in vain.

    One call takes everything but the chunks of prompts, which come one by one.
    """

    def _members(self, spans: Spans) -> list[slice | NDArray[np.int64]]:
        is_chunk = spans.counts > 2
        chunks = [slice(run, run + 1) for run in np.flatnonzero(is_chunk).tolist()]
        if is_chunk.all():
            return list(chunks)
        running = np.flatnonzero(~is_chunk)
        return [running if chunks else slice(0, len(running)), *chunks]


def _token_order(spans: Spans, members: Sequence[slice | NDArray[np.int64]]) -> NDArray[np.int64]:
    """Where each token lies in a row that holds the tokens of one call after those of another."""
    every = np.arange(len(spans.slots))
    runs = np.concatenate([every[part] for part in members])
    tokens = [np.arange(spans.edges[run], spans.edges[run + 1]) for run in runs]
    return np.argsort(np.concatenate(tokens))


class FlashPlan(AttentionPlan):
    """flash-attn's attention over a cache: every block is a row of its own with its own number of keys.

    It reads pages through their table, the whole width of it, so that shapes follow from the number of blocks alone.
    """

    def __init__(
        self, spans: Spans, cache: SlotCache, parcel: Parcel | None = None, *, flash: Callable[..., Tensor]
    ) -> None:
        """Lays out the rows.

        Args:
            spans: the tokens of the forward.
            cache: of the slots.
            parcel: takes the layout to the device; None sends it alone.
            flash: the kernel, `flash_attn.flash_attn_with_kvcache`.
        """
        self.flash, self.cache, self.size = flash, cache, spans.size
        self.parcel = parcel or Parcel(cache.keys.device)
        ends = spans.positions[spans.size - 1 :: spans.size] + 1
        self._places = self.parcel.add(cache.places(spans.token_slots, spans.positions))
        rows = cache.rows(np.repeat(spans.slots, spans.counts))
        self._rows = {name: self.parcel.add(array) for name, array in rows.items()}
        self._ends = self.parcel.add(ends.astype(np.int32))

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Writes the layer's keys and values and attends, all blocks in one call."""
        keys, values = self.cache.write(layer, self.parcel[self._places], key, value)
        _, num_heads, num_tokens, dim = query.shape
        out = self.flash(
            folded(query[0], self.size, keys.shape[-2]),
            keys,
            values,
            cache_seqlens=self.parcel[self._ends],
            softmax_scale=scale,
            causal=False,
            **{name: self.parcel[number] for name, number in self._rows.items()},
        )
        return unfolded(out, self.size).reshape(1, num_tokens, num_heads, dim)


def folded(
    query: Float[Tensor, "heads tokens dim"], size: int, num_keys: int
) -> Float[Tensor, "blocks size_by_group kv_heads dim"]:
    """Blocks of queries for flash-attn, which pads a few queries to a tile of 64 or more.

    The heads that share a key head see the same keys, so they become more queries of that one head: a tile that would
    be computed for each of them is computed once.
    """
    blocks = query.unflatten(0, (num_keys, -1)).unflatten(2, (-1, size))
    return blocks.permute(2, 3, 1, 0, 4).flatten(1, 2)


def unfolded(out: Float[Tensor, "blocks size_by_group kv_heads dim"], size: int) -> Float[Tensor, "tokens heads dim"]:
    """What `folded` queries see, in the order of tokens and heads."""
    return out.unflatten(1, (size, -1)).transpose(2, 3).flatten(2, 3).flatten(0, 1)
