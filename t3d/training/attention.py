"""Attention over packed documents: one flat row of tokens, of which only what may see each other is computed.

Axes: `tokens` counts the row; a document is one sample's [prompt and clean copy][noisy copy]; a tile is a run of
queries with the keys that any of them may see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad

from t3d.parcel import send
from t3d.sdar.attention import TrainingTokens, may_see, training_mask
from t3d.sdar.backend import Attended, AttentionPlan, Keys, Queries, masked_attention

TILE = 128
"""Queries per tile: fewer see fewer keys in vain, more make fewer and larger products."""

GROUP = 2 * TILE
"""Documents that together have no more tokens share one tile: small products cost mostly their call."""


class PackedPlan(AttentionPlan):
    """A plan for packed documents."""

    multiple: ClassVar[int] = 1
    """The row is padded to a multiple of this."""

    def __init__(self, tokens: TrainingTokens, lengths: Sequence[int], device: torch.device, longest: int = 0) -> None:
        """Plans the attention of a row.

        Args:
            tokens: every token of the row, documents one after the other, on the CPU.
            lengths: tokens of each document.
            device: where the network computes.
            longest: tokens of the longest row to come, for a kernel that is compiled for each length; 0 if unknown.
        """


@dataclass(frozen=True)
class Tile:
    """Queries `first` to `last` of a group of documents, and the keys that one of them may see.

    Attributes:
        first: first query, counted from the group's start.
        last: one behind the last query.
        keys: the pieces (see `Group`) that hold them, in order.
        mask: True where a query may see a key.
    """

    first: int
    last: int
    keys: list[int]
    mask: Bool[Tensor, "1 1 query key"]


@dataclass(frozen=True)
class Group:
    """Documents of one row that no other query sees.

    Attributes:
        length: tokens.
        pieces: lengths that the keys are split into, at every place where some tile begins or ends to see them.
        tiles: the tiles, in the order of their queries.
    """

    length: int
    pieces: list[int]
    tiles: list[Tile]


class TiledPlan(PackedPlan):
    """Scaled dot-product attention tile by tile: on a CPU, where no kernel skips what a mask hides."""

    def __init__(self, tokens: TrainingTokens, lengths: Sequence[int], device: torch.device, longest: int = 0) -> None:
        """Cuts the row into groups of documents and those into tiles."""
        self.groups: list[Group] = []
        start = 0
        for length in _group_lengths(lengths):
            self.groups.append(_make_group(tokens.at(slice(start, start + length)), device))
            start += length

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Attention of one layer."""
        # Split and joined again: the backward pass of a slice would fill a tensor as large as what it was cut from.
        lengths = [group.length for group in self.groups]
        parts = zip(self.groups, *(whole.split(lengths, dim=2) for whole in (query, key, value)), strict=True)
        seen = []
        for group, queries, keys, values in parts:
            key_pieces, value_pieces = (whole.split(group.pieces, dim=2) for whole in (keys, values))
            query_pieces = queries.split([tile.last - tile.first for tile in group.tiles], dim=2)
            for tile, piece in zip(group.tiles, query_pieces, strict=True):
                visible_keys, visible_values = _join(key_pieces, tile.keys), _join(value_pieces, tile.keys)
                seen.append(masked_attention(piece, visible_keys, visible_values, tile.mask, scale))
        return torch.cat([part.transpose(1, 2) for part in seen], dim=1)


class FlexPlan(PackedPlan):
    """flex_attention with a block mask of the row: on CUDA, where its kernel skips hidden blocks of scores.

    The kernel is compiled for the length of its inputs.  So rows of every length are given to it as long as the longest
    one: pads cost a copy and one block of scores per 128 of them here, while the linear layers see the row as it is.
    """

    multiple = 128
    options: ClassVar[dict[str, int] | None] = None
    """The kernel's tiles and stages; None: torch's choice for the card."""

    @classmethod
    def padded_length(cls, length: int, longest: int) -> int:
        """Tokens that the kernel sees of a row: the longest's, or twice as many while that is too short."""
        size = -(-longest // cls.multiple) * cls.multiple or length
        while size < length:
            size *= 2
        return size

    def __init__(self, tokens: TrainingTokens, lengths: Sequence[int], device: torch.device, longest: int = 0) -> None:
        """Makes the block mask."""
        self.length = len(tokens.block)
        size = self.padded_length(self.length, longest)
        self.num_pads = size - self.length
        padded = _padded(tokens, self.num_pads)
        moved = TrainingTokens(*send([part.numpy() for part in (padded.block, padded.noisy, padded.document)], device))
        self.block_mask = create_block_mask(_mask_mod(moved), None, None, size, size, device)

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Attention of one layer."""
        grouped = query.shape[1] != key.shape[1]
        kernel = _flex_kernel(query.device.type)
        # Autocast knows nothing of it, and leaves normalised queries and keys in the weights' precision.
        query, key, value = (pad(part.to(value.dtype), (0, 0, 0, self.num_pads)) for part in (query, key, value))
        seen = kernel(
            query, key, value, block_mask=self.block_mask, scale=scale, enable_gqa=grouped, kernel_options=self.options
        )
        return seen[:, :, : self.length].transpose(1, 2)


class SmallFlexPlan(FlexPlan):
    """The same in tiles for cards with 99 KiB of shared memory (compute capability 8.6, 8.9), as those of 24 GB are.

    For them torch before 2.13 has the tiles of an A100, which do not fit (PyTorch 133254).
    """

    options: ClassVar[dict[str, int] | None] = {
        **{"BLOCK_M": 64, "BLOCK_N": 64, "num_stages": 2},  # of heads of 128: 80 KiB
        **{"BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32},  # of the backward pass
    }


PLANS: dict[str, type[PackedPlan]] = {"cuda": FlexPlan}
"""Device type -> its plan; every other device's is `TiledPlan`."""


def plan_of(device: torch.device) -> type[PackedPlan]:
    """The plan for packed documents on `device`."""
    return PLANS.get(device.type, TiledPlan)


@cache
def _flex_kernel(device_type: str) -> Any:
    """flex_attention, compiled where it is meant to be fast; compiling for a CPU takes longer than a test."""
    return flex_attention if device_type == "cpu" else torch.compile(flex_attention)


def _padded(tokens: TrainingTokens, num_pads: int) -> TrainingTokens:
    """The row with pads behind it, which see no more than the pads of their own block of scores: others are skipped."""
    fill = tokens.block.new_zeros(num_pads)
    documents = tokens.document.max() + 1 + (len(tokens.block) + torch.arange(num_pads)) // FlexPlan.multiple
    return TrainingTokens(
        torch.cat([tokens.block, fill]), torch.cat([tokens.noisy, fill.bool()]), torch.cat([tokens.document, documents])
    )


def _mask_mod(tokens: TrainingTokens) -> Any:
    """`may_see` as flex_attention asks: by the places of a query and a key."""
    # flex_attention counts the arguments, which the wrapper that checks annotations under pytest would hide.
    return lambda _batch, _head, query, key: may_see(tokens.at(query), tokens.at(key))


def _group_lengths(lengths: Sequence[int]) -> list[int]:
    """Lengths of runs of documents of at most `GROUP` tokens together; a longer document stays alone."""
    groups: list[int] = []
    for length in lengths:
        if groups and groups[-1] + length <= GROUP:
            groups[-1] += length
        else:
            groups.append(length)
    return groups


def _cut(document: TrainingTokens) -> list[tuple[int, int]]:
    """Query ranges of at most `TILE` tokens that lie in one copy of a document."""
    num_clean, length = int((~document.noisy).sum()), len(document.noisy)
    ranges: list[tuple[int, int]] = []
    for start, stop in ((0, num_clean), (num_clean, length)):
        edges = np.linspace(start, stop, -(-(stop - start) // TILE) + 1).astype(int).tolist()
        ranges += pairwise(edges)
    return ranges


def _make_group(tokens: TrainingTokens, device: torch.device) -> Group:
    """Tiles a run of documents."""
    length = len(tokens.block)
    queries = [(0, length)] if length <= GROUP else _cut(tokens)
    masks = [training_mask(tokens.at(slice(first, last)), tokens) for first, last in queries]
    seen = torch.stack([mask.any(0) for mask in masks])
    changes = (seen[:, 1:] != seen[:, :-1]).any(0).nonzero()[:, 0] + 1
    edges = [0, *changes.tolist(), length]
    tiles = []
    for (first, last), row, mask in zip(queries, seen, masks, strict=True):
        pieces = [piece for piece, edge in enumerate(edges[:-1]) if row[edge]]
        tiles.append(Tile(first, last, pieces, mask[None, None, :, row].to(device)))
    return Group(length, [stop - start for start, stop in pairwise(edges)], tiles)


def _join(pieces: Sequence[Tensor], chosen: Sequence[int]) -> Float[Tensor, "1 kv_heads key dim"]:
    """The chosen pieces, one after the other."""
    return pieces[chosen[0]] if len(chosen) == 1 else torch.cat([pieces[index] for index in chosen], dim=2)
