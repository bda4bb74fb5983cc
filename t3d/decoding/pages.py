"""Which pages hold the keys and values of which sequence: a table on the host, and a list of what is free.

A sequence takes a page when it reaches it, not when it begins, so that memory holds what responses are and not what
they might be.  Sequences with the same prompt hold the pages that it fills together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE = 256
"""Positions of a page: flash-attn reads multiples of 256."""
BLANK = 0
"""A page that no sequence gets: padding writes to it, and the table names it where a sequence has no page (yet)."""


@dataclass(frozen=True)
class Paging:
    """How keys and values are paged.

    Attributes:
        size: positions of a page.
        is_gathered: attention cannot read pages through a table; what it reads is laid side by side before each call.
    """

    size: int = PAGE_SIZE
    is_gathered: bool = False


def num_pages(length: int, size: int) -> int:
    """Pages that hold so many positions."""
    return -(-length // size)


class PageTable:
    """The pages of each slot, in the order of their positions.

    Attributes:
        size: positions of a page.
        rows: numbers of each slot's pages [slots, most], `BLANK` behind them.
        counts: how many each slot has.
        holders: slots that hold each page; 0 of a free one.
        free: pages that none holds.
    """

    def __init__(self, number: int, size: int, num_slots: int, most: int) -> None:
        """Begins with `number` free pages, 1 to `number`, and slots without any.

        Args:
            number: of pages, the blank one not counted.
            size: positions of each.
            num_slots: rows of the table.
            most: pages that a slot may have.
        """
        self.size = size
        self.rows = np.full((num_slots, most), BLANK, dtype=np.int32)
        self.counts = np.zeros(num_slots, dtype=np.int64)
        self.holders = np.zeros(number + 1, dtype=np.int64)
        self.free = list(range(number, 0, -1))

    def take(self, slot: int, number: int) -> Sequence[int]:
        """Gives a slot `number` more pages of the free ones, of which there must be so many."""
        assert number <= len(self.free), "whoever takes pages has counted them"
        taken = [self.free.pop() for _ in range(number)]
        self._append(slot, taken)
        return taken

    def share(self, source: int, target: int, number: int) -> None:
        """Gives a slot without pages the first `number` pages of another."""
        self._append(target, self.rows[source, :number].tolist())

    def release(self, slot: int) -> None:
        """Takes all pages of a slot; those that no other holds are free."""
        held = self.rows[slot, : self.counts[slot]]
        self.holders[held] -= 1
        self.free += held[self.holders[held] == 0].tolist()
        self.rows[slot], self.counts[slot] = BLANK, 0

    def move(self, source: int, target: int) -> None:
        """Gives all pages of a slot to another, which has none."""
        self.rows[target], self.counts[target] = self.rows[source], self.counts[source]
        self.rows[source], self.counts[source] = BLANK, 0

    def places(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in a buffer [pages, size] positions of slots lie."""
        page, within = np.divmod(positions, self.size)
        return self.rows[slots, page].astype(np.int64) * self.size + within

    def _append(self, slot: int, pages: Sequence[int]) -> None:
        first = self.counts[slot]
        self.rows[slot, first : first + len(pages)] = pages
        self.holders[pages] += 1
        self.counts[slot] += len(pages)
