"""How many sequences the device has room for: what decoding needs beside the weights, counted before it starts."""

import gc
import logging
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch

from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import row_tiles
from t3d.decoding.limits import cache_length, full_length, prefill_chunk
from t3d.decoding.pages import Paging, num_pages
from t3d.devices import GIB, exhaustion, free_memory, give_back, usable_memory
from t3d.errors import ConfigError
from t3d.sdar.backend import Heads
from t3d.sdar.configuration import SDARConfig

log = logging.getLogger(__name__)

Result = TypeVar("Result")

LOGIT_BYTES, SORTED_BYTES = 24, 40
"""Of each logit that is judged: its copies in single precision on the way to a token, without and with top-p."""


POOL_GROWTH = 1.75
"""How many times the largest recorded forward the recordings' memory may be: sizes rise while sequences are admitted,
and a larger forward finds no room in what smaller ones have left (up to 1.7 in a simulation of torch's allocator)."""


@dataclass(frozen=True)
class Capacity:
    """What a device holds beside the weights.

    Attributes:
        slots: sequences at a time.
        paging: of keys and values; None where each sequence has those of the longest.
        pages: for all sequences; 0 without paging.
        longest: pages of the longest sequence, of which there are at least so many.
    """

    slots: int
    paging: Paging | None = None
    pages: int = 0
    longest: int = 0

    def part(self, slots: int) -> "Capacity":
        """For so many of the sequences, and their part of the pages."""
        pages = max(self.longest, self.pages * slots // self.slots)
        return replace(self, slots=slots, pages=min(pages, slots * self.longest))

    def agreed(self, agree: Callable[[int], int]) -> "Capacity":
        """The numbers that all of several processes use."""
        return replace(self, slots=agree(self.slots), pages=self.pages if self.paging is None else agree(self.pages))


@dataclass(frozen=True)
class DecodingMemory:
    """Bytes that decoding takes beside the weights.

    Attributes:
        shared: whatever the number of sequences: a prefilled chunk or, after it, a tile of logits.
        per_slot: of each sequence: its part of a forward, and its keys and values if they are not paged.
        paging: None without pages.
        per_page: of each page.
        longest: pages of the longest sequence.
    """

    shared: int
    per_slot: int
    paging: Paging | None = None
    per_page: int = 0
    longest: int = 0

    @property
    def least(self) -> int:
        """Of one sequence alone."""
        return self.shared + self.per_slot + self.longest * self.per_page

    def slots(self, room: int) -> int:
        """The sequences that fit into `room` bytes, 0 or more; of paged ones the longest whole and others begun."""
        left = room - self.least
        return 0 if left < 0 else 1 + left // (self.per_slot + self.per_page)

    def capacity(self, room: int, wanted: int) -> Capacity:
        """What fits into `room` bytes for at most `wanted` sequences."""
        slots = min(wanted, self.slots(room))
        if self.paging is None:
            return Capacity(slots)
        pages = (room - self.shared - slots * self.per_slot) // self.per_page
        return Capacity(slots, self.paging, max(0, min(pages, slots * self.longest)), self.longest)


def decoding_memory(
    model: SDARConfig,
    dtype: torch.dtype,
    decoding: DecodingConfig,
    longest_prompt: int,
    device: torch.device,
    recorded: bool = False,
    paging: Paging | None = None,
) -> DecodingMemory:
    """What decoding takes, counted from shapes: keys and values exactly, the rest at most.

    Args:
        model: the network's shape.
        dtype: of its weights.
        decoding: settings; the length and the block size count.
        longest_prompt: tokens.
        device: that decodes; it need not be there.
        recorded: forwards are padded, and replayed in memory of their own.
        paging: of keys and values; None: each sequence has those of the longest.
    """
    length, size = cache_length(longest_prompt, decoding), decoding.block_size
    heads, kv_heads, dim = Heads.of(model)
    queries = heads * dim
    # One layer at a time: the residual stream and its norms, and queries, keys and values before and after rotation or
    # else the MLP.  Norms are computed in single precision.
    widest = max(queries + 2 * kv_heads * dim, model.mlp_width)
    mask = heads // kv_heads * length  # a query's row for each head that shares its keys, made for all layers
    token = dtype.itemsize * (3 * model.hidden_size + 3 * widest + mask) + 4 * 2 * max(model.hidden_size, queries)
    # On the host: ids, steps and records of each position, random numbers of each step.
    position = 16 + 4 * len(decoding.record) + (4 * decoding.denoising_steps if decoding.temperature > 0 else 0)
    judged, tiles = LOGIT_BYTES if decoding.top_p == 1 else SORTED_BYTES, row_tiles(model.vocab_size, dtype, device)
    logits = tiles.judged * judged + (tiles.product - tiles.judged) * dtype.itemsize
    again = POOL_GROWTH if recorded else 0
    # A recorded forward is padded, to less than twice its size.
    slot, forward = SlotCache.slot_bytes(model, length, dtype), int(2 * size * token * (1 + 2 * again))
    shared = int(max(prefill_chunk(size) * token, logits * model.vocab_size) * (1 + again))
    if paging is None:  # padding writes to a slot of its own
        return DecodingMemory(shared + recorded * slot, slot + forward + length * position)
    page = SlotCache.slot_bytes(model, paging.size, dtype)
    gathered = 2 * slot // model.num_hidden_layers if paging.is_gathered else 0  # a layer's, and a copy under way
    return DecodingMemory(
        shared=shared + page,  # the blank one
        per_slot=gathered + forward + length * position,
        paging=paging,
        per_page=page,
        longest=num_pages(full_length(longest_prompt, decoding), paging.size),
    )


def speculative_memory(
    networks: Sequence[tuple[SDARConfig, torch.dtype]],
    decoding: DecodingConfig,
    longest_prompt: int,
    device: torch.device,
) -> DecodingMemory:
    """What speculative decoding takes: of the model, a slot for each state of a sequence that a forward computes.

    Args:
        networks: shape and type of the model and, if there is one, of the network that drafts.
        decoding: see `decoding_memory`.
        longest_prompt: likewise.
        device: likewise.
    """
    own, *others = (decoding_memory(shape, dtype, decoding, longest_prompt, device) for shape, dtype in networks)
    return DecodingMemory(
        shared=max(needed.shared for needed in (own, *others)),
        per_slot=own.per_slot * num_states(decoding) + sum(needed.per_slot for needed in others),
    )


def num_states(decoding: DecodingConfig) -> int:
    """States of a sequence that a speculative forward computes: those of a block, and the next one's first."""
    return decoding.denoising_steps + 1


def fitting(
    needed: DecodingMemory,
    device: torch.device,
    decoding: DecodingConfig,
    longest_prompt: int,
    wanted: int,
    sharing: int = 1,
) -> Capacity:
    """As many of the `wanted` sequences as the device has room for now; fewer are logged, once.

    In pages there is room for the longest sequence at least, and the others wait for each other's.

    Args:
        needed: what they take.
        device: that decodes.
        decoding: settings.
        longest_prompt: tokens.
        wanted: sequences.
        sharing: processes that decode on the device, this one among them, each with an equal part of it.

    Raises:
        ConfigError: not even one fits.
    """
    room = usable_memory(device, sharing)
    fit = needed.capacity(room, wanted)
    if fit.slots < 1:
        kept = "the rest is kept back" if sharing == 1 else f"for {sharing} processes, and some is kept back"
        raise ConfigError(
            "rollout.max_token" if sharing == 1 else "rollout.num_workers",
            f"a prompt of {longest_prompt} tokens and {decoding.max_new_tokens} new ones to fit into {room / GIB:.2f} "
            f"GiB ({free_memory(device) / GIB:.2f} are free on {device}, {kept})",
            f"{needed.least / GIB:.2f} GiB for one sequence",
        )
    if fit.slots < wanted:
        _tell_once(f"decoding {fit.slots} sequences at a time, not {wanted}: as many as {device} has memory for")
    if fit.paging is not None and fit.pages < fit.slots * fit.longest:
        pages = f"{fit.pages} pages of {fit.paging.size} tokens, as many as {device} has memory for"
        _tell_once(f"decoding up to {fit.slots} sequences at a time in {pages}: not all can be of full length")
    return fit


@cache
def _tell_once(line: str) -> None:
    log.info("%s (results do not depend on it)", line)


def within_memory(
    decode: Callable[[Capacity], Generator[tuple[int, Result], None, None]],
    left: Sized,
    capacity: Capacity,
    device: torch.device,
    agreed: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Yields what `decode` yields, until nothing is left; where memory runs out, it begins anew with half the slots.

    Args:
        decode: decodes what is left within a capacity.
        left: what is not finished; `decode` takes out of it what it finishes.
        capacity: to begin with.
        device: that decodes.
        agreed: see `fewer_slots`.

    Raises:
        ConfigError: see `fewer_slots`.
    """
    while left:
        found = None
        try:
            with closing(decode(capacity)) as news:
                yield from news
        except (RuntimeError, MemoryError) as failure:
            found = exhaustion(failure)
            if found is None:
                raise
        if found is not None:  # here, where the error no longer holds what filled the memory
            capacity = capacity.part(fewer_slots(min(capacity.slots, len(left)), device, found, agreed))
            gc.collect()
        give_back(device)


def fewer_slots(num_slots: int, device: torch.device, reason: str, agreed: bool) -> int:
    """How many sequences to go on with after memory ran out, which is logged.

    Args:
        num_slots: sequences that were too many.
        device: which is full.
        reason: in the allocator's words.
        agreed: other processes count on this number.

    Raises:
        ConfigError: it cannot be lowered, as it is 1 or agreed.
    """
    if agreed or num_slots == 1:
        where = "rollout.max_active" if num_slots > 1 else "rollout.max_token"
        raise ConfigError(where, f"memory on {device} for {num_slots} sequence(s) at a time", reason)
    half = num_slots // 2
    log.warning(
        "no memory on %s for %d sequences at a time (%s): going on with %d, which changes no result; "
        "rollout.max_active=%d starts there",
        *(device, num_slots, reason, half, half),
    )
    return half
