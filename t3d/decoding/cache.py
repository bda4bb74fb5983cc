"""Keys and values of every running sequence, addressed by slot and position."""

import math
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from t3d.decoding.pages import PageTable, num_pages
from t3d.sdar.backend import Heads
from t3d.sdar.configuration import SDARConfig

SHORT, LONG = 64, 256

ALIGNED = 64
"""Every buffer begins at a multiple of so many bytes, as torch's own do: kernels may round by it."""


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
    values that are not finite, as even a masked one (0 * NaN) poisons the sum: see `free` and `move`.

    Attributes:
        length: positions of a slot.
        pages: which pages hold a slot; None where it is one piece.
    """

    pages: PageTable | None = None

    def __init__(self, config: SDARConfig, num_slots: int, length: int, dtype: torch.dtype, device: torch.device):
        """Allocates 2 * layers * num_slots * length * kv_heads * head_dim elements."""
        queries, keys, dim = Heads.of(config)
        shape = (config.num_hidden_layers, num_slots, length, keys, dim)
        self.heads_per_key, self.length = queries // keys, length
        self.keys, self.values = _zeros(shape, dtype, device), _zeros(shape, dtype, device)

    @cached_property
    def horizon(self) -> Float[Tensor, " twice_length"]:
        """The masks of all ends in one: from place `length - end` on, it shows `end` keys and hides the others."""
        seen = torch.zeros(2 * self.length, dtype=self.keys.dtype, device=self.keys.device)
        seen[self.length :] = -torch.inf
        return seen

    @staticmethod
    def slot_bytes(config: SDARConfig, length: int, dtype: torch.dtype) -> int:
        """Memory of one slot."""
        _, keys, dim = Heads.of(config)
        return 2 * config.num_hidden_layers * length * keys * dim * dtype.itemsize

    def write(
        self,
        layer: int,
        places: Int[Tensor, " tokens"],
        key: Float[Tensor, "1 kv_heads tokens dim"],
        value: Float[Tensor, "1 kv_heads tokens dim"],
    ) -> tuple[Float[Tensor, "slots length kv_heads dim"], Float[Tensor, "slots length kv_heads dim"]]:
        """Stores one layer's keys and values at `places` and returns all of the layer."""
        for buffer, states in ((self.keys[layer], key), (self.values[layer], value)):
            buffer.flatten(0, 1).index_copy_(0, places, states[0].transpose(0, 1))
        return self.keys[layer], self.values[layer]

    def places(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in a layer's buffer, its slots laid end to end, positions of slots lie."""
        return slots * self.length + positions

    def rows(self, slots: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
        """What tells flash-attn the slot of each of its rows, by the name of the argument."""
        return {"cache_batch_idx": slots.astype(np.int32)}

    def grow(self, slot: int, length: int) -> bool:
        """Whether a slot has its first `length` positions from now on."""
        return length <= self.length

    def free(self, slot: int, poisoned: bool) -> None:
        """Ends a slot's sequence, whose values may not be finite if it is `poisoned`."""
        if poisoned:
            self.clear(slot)

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


class PagedCache(SlotCache):
    """The same in pages [layers, pages, page_size, kv_heads, dim], which slots take as they grow.

    What an earlier sequence left in a page may not be finite, so that a page is overwritten when it is taken.
    """

    pages: PageTable

    def __init__(
        self,
        config: SDARConfig,
        number: int,
        size: int,
        num_slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocates `number` pages of `size` positions, and one that stays blank, for slots of `length` positions."""
        super().__init__(config, number + 1, size, dtype, device)
        most = num_pages(length, size)
        self.length, self.pages = most * size, PageTable(number, size, num_slots, most)

    def places(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in a layer's buffer, its pages laid end to end, positions of slots lie."""
        return self.pages.places(slots, positions)

    def rows(self, slots: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
        """What tells flash-attn the pages of each of its rows, by the name of the argument."""
        return {"block_table": self.pages.rows[slots]}

    def grow(self, slot: int, length: int) -> bool:
        """Gives a slot pages for its first `length` positions; False, and none, where too few are free."""
        wanted = num_pages(length, self.pages.size) - int(self.pages.counts[slot])
        if wanted > len(self.pages.free):
            return False
        for page in self.pages.take(slot, wanted):
            self.clear(page)
        return True

    def free(self, slot: int, poisoned: bool) -> None:
        """Ends a slot's sequence."""
        self.pages.release(slot)

    def move(self, source: int, target: int, length: int) -> None:
        """Moves a slot to another: no key or value moves."""
        self.pages.move(source, target)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "..."]:
    """Zeros; a CPU's are cleared by the system when they are first touched, and much of a slot never is."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + ALIGNED, dtype=np.uint8)
    start = -buffer.ctypes.data % ALIGNED
    return torch.from_numpy(buffer[start : start + size]).view(dtype).view(shape)
