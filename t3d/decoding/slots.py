"""The state of every running sequence, kept dense: keys and values on the device, all else on the host.

Running sequences always fill slots 0..n-1, so that attention works on views of the cache: a freed slot is given to the
next prompt, or else the last sequence moves into it.

Where keys and values are paged (`t3d.decoding.pages`), a sequence takes pages as it grows.  When none is free, the
sequence that was admitted last is put back: it gives up its pages, and goes on later from where it was, once its keys
and values are computed again.  So the others go on, the first of them always, and every sequence ends.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.limits import cache_length, full_length, prefill_forwards, prompt_error
from t3d.decoding.pages import num_pages
from t3d.errors import ConfigError
from t3d.sampling import response_uniforms
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import UNFINISHED, Trajectory

RECORDS = {"logprob": "logprobs", "entropy": "entropies"}
"""The fields of `Draws` and `Trajectory` that `DecodingConfig.record` asks for."""

PER_FREE_PAGE = 8
"""A page stays free for every so many running sequences when another is admitted: else that would soon be put back."""


@dataclass(frozen=True)
class Progress:
    """How far a sequence was when it was put back: its row of the table, and of each column."""

    row: Any
    columns: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Request:
    """A response to decode.

    Attributes:
        index: of its prompt.
        prompt: token ids.
        stream: of its random numbers.
        progress: of a sequence that was put back.
    """

    index: int
    prompt: list[int]
    stream: int
    progress: Progress | None = None


def make_requests(
    prompts: Sequence[list[int]], streams: Sequence[int] | None, config: DecodingConfig, *networks: SDARConfig
) -> tuple[dict[int, Request], dict[int, Trajectory]]:
    """Requests for the prompts that all networks can decode, and trajectories with an `error` for the others, by index.

    Raises:
        ConfigError: the mask token is outside a network's vocabulary.
    """
    for network in networks:
        if config.mask_id >= network.vocab_size:
            raise ConfigError("decoding.mask_id", f"an id below the model's {network.vocab_size}", config.mask_id)
    requests, refused = dict[int, Request](), dict[int, Trajectory]()
    for index, (prompt, stream) in enumerate(zip(prompts, streams or range(len(prompts)), strict=True)):
        errors = [error for network in networks if (error := prompt_error(network, prompt, config)) is not None]
        if errors:
            refused[index] = Trajectory(list(prompt), [], [], "error", 0, 0, errors[0])
        else:
            requests[index] = Request(index, prompt, stream)
    return requests, refused


class Slots:
    """Everything that is known of the sequences in flight.

    Attributes:
        cache: keys and values, on the model's device.
        table: one record per slot: `index` of the prompt, its random `stream` and its length `prompt`, in whole
            blocks `whole`, of which sequences with this prompt have the first `common` in pages that they share;
            `filled`, the positions whose keys and values are there; the current block's `start` and denoising `step`
            and its `masked` positions; whether the block before it is `pending`, finished but not committed; `steps`
            and `forwards` spent; `turn`, which admission it was.
        columns: what is known of each position [slots, length]: `ids`, the mask token where nothing is revealed,
            `step_map`, the step that revealed it, and the recorded values by their name in `Draws`.
        is_stop: whether each token of the vocabulary ends a response.
        uniforms: random numbers [slots, blocks, steps, block]; empty at temperature 0.
        active: sequences in flight.
        num_admitted: sequences so far, those that were put back counted once.
    """

    def __init__(
        self,
        model: SDARForCausalLM,
        config: DecodingConfig,
        num_slots: int,
        longest_prompt: int,
        num_spare: int = 0,
        cache: SlotCache | None = None,
    ) -> None:
        """Allocates everything for `num_slots` sequences of the greatest length that can occur.

        Args:
            model: the network.
            config: decoding settings.
            num_slots: sequences of this engine.
            longest_prompt: tokens of the longest prompt.
            num_spare: further slots of the cache, which no sequence gets.
            cache: of `cache_length` positions; None: a slot for each sequence, and the spare ones.
        """
        self.config, self.device, size = config, model.device, config.block_size
        self.length = cache_length(longest_prompt, config)
        if cache is None:
            cache = SlotCache(model.config, num_slots + num_spare, self.length, model.dtype, self.device)
        self.cache = cache
        counters = ["index", "prompt", "whole", "common", "filled", "start", "step", "steps", "forwards", "turn"]
        columns: list[Any] = [("stream", np.uint64), *((name, np.int64) for name in counters)]
        columns += [("pending", np.bool_), ("masked", np.bool_, (size,))]
        self.table = np.zeros(num_slots, dtype=np.dtype(columns, align=True))
        types = {"ids": np.int64, "step_map": np.int64} | {RECORDS[name]: np.float32 for name in config.record}
        self.columns = {name: np.zeros((num_slots, self.length), dtype=kind) for name, kind in types.items()}
        num_blocks = full_length(longest_prompt, config) // size if config.temperature > 0 else 0
        self.uniforms = np.zeros((num_slots, num_blocks, config.denoising_steps, size), dtype=np.float32)
        self.is_stop = np.zeros(model.config.vocab_size, dtype=np.bool_)
        self.is_stop[[token for token in config.stop_ids if token < len(self.is_stop)]] = True
        self.active = self.num_admitted = 0

    @property
    def num_free(self) -> int:
        """Slots without a sequence."""
        return len(self.table) - self.active

    @property
    def running(self) -> np.ndarray:
        """The table of the sequences in flight."""
        return self.table[: self.active]

    def fill(self, waiting: deque[Request]) -> dict[int, list[int]]:
        """Gives every free slot a request, while there are any: the prompts taken, by their index."""
        taken: dict[int, list[int]] = {}
        while self.num_free and waiting:
            try:
                request = waiting.popleft()
            except IndexError:  # another lane has just taken the last one
                break
            if not self.has_pages(request):
                waiting.appendleft(request)
                break
            taken[request.index] = request.prompt
            self.add(request.index, request.prompt, request.stream, request.progress)
        return taken

    def add(self, index: int, prompt: list[int], stream: int, progress: Progress | None = None) -> None:
        """Puts a prompt, or a sequence that was put back, into the first free slot; see `has_pages`."""
        slot, size = self.active, self.config.block_size
        whole = len(prompt) // size * size
        if progress is None:
            masked = np.arange(whole, whole + size) >= len(prompt)
            forwards = prefill_forwards(len(prompt), size)  # counted here, as they may be shared or repeated
            counted = index, len(prompt), whole, self._common(whole), 0, whole, 0, 0, forwards, self.num_admitted
            self.table[slot] = (stream, *counted, False, masked)
            self.columns["ids"][slot] = self.config.mask_id
            self.columns["ids"][slot, : len(prompt)] = prompt
            self.num_admitted += 1
        else:
            self.table[slot], self.table["filled"][slot] = progress.row, 0
            for name, column in self.columns.items():
                column[slot] = progress.columns[name]
        if self.config.temperature > 0:
            num_blocks = (full_length(len(prompt), self.config) - whole) // size
            self.uniforms[slot, :num_blocks] = response_uniforms(
                self.config.seed, stream, num_blocks, self.config.denoising_steps, size
            )
        relative, shared = self._relative(prompt)
        if shared and self.cache.pages is not None:
            self.cache.pages.share(relative, slot, shared // self.cache.pages.size)
            self.table["filled"][slot] = min(shared, self.table["filled"][relative])
        self.cache.grow(slot, int(self.table["start"][slot]) + size)
        self.active += 1

    def remove(self, slot: int, poisoned: bool) -> None:
        """Frees a slot and moves the last sequence into it.

        Args:
            slot: of the finished sequence.
            poisoned: its cached values may not be finite, so they are overwritten.
        """
        self.cache.free(slot, poisoned)
        self.active -= 1
        last = self.active
        if slot != last:
            self.table[slot] = self.table[last]
            self.uniforms[slot] = self.uniforms[last]
            for column in self.columns.values():
                column[slot] = column[last]
            self.cache.move(last, slot, int(self.table["start"][last]) + self.config.block_size)

    def has_pages(self, request: Request) -> bool:
        """Whether a request finds the pages that it begins with, and leaves some to those that run."""
        pages, size, progress = self.cache.pages, self.config.block_size, request.progress
        if pages is None:
            return True
        start = len(request.prompt) // size * size if progress is None else int(progress.row["start"])
        wanted = num_pages(start + size, pages.size) - self._relative(request.prompt)[1] // pages.size
        return wanted + num_pages(self.active, PER_FREE_PAGE) <= len(pages.free)

    def make_room(self) -> list[Request]:
        """Gives each sequence the page that its block begins, and puts back those whose pages are needed for that."""
        pages, size, put_back = self.cache.pages, self.config.block_size, list[Request]()
        while pages is not None:
            ends = self.running["start"] + size
            lacking = np.flatnonzero(ends > pages.counts[: self.active] * pages.size)
            if not len(lacking):
                break
            first = int(lacking[self.running["turn"][lacking].argmin()])
            if not self.cache.grow(first, int(ends[first])):
                put_back.append(self.put_back(int(self.running["turn"].argmax())))
        return put_back

    def put_back(self, slot: int) -> Request:
        """Takes a sequence out of its slot, to go on later."""
        row, columns = self.table[slot].copy(), {name: column[slot].copy() for name, column in self.columns.items()}
        self.remove(slot, poisoned=False)
        prompt = columns["ids"][: row["prompt"]].tolist()
        return Request(int(row["index"]), prompt, int(row["stream"]), Progress(row, columns))

    def _common(self, whole: int) -> int:
        """How many of a prompt's `whole` positions lie in full pages, the last of which ends where a block ends."""
        if self.cache.pages is None:
            return 0
        unit = math.lcm(self.cache.pages.size, self.config.block_size)
        return whole // unit * unit

    def _relative(self, prompt: list[int]) -> tuple[int, int]:
        """A running sequence with this prompt, and how many positions it shares; without any, none are shared."""
        if self.cache.pages is None:
            return -1, 0
        same = np.flatnonzero(self.running["prompt"] == len(prompt))
        same = same[(self.columns["ids"][same, : len(prompt)] == prompt).all(1)]
        return (int(same[0]), int(self.table["common"][same[0]])) if len(same) else (-1, 0)

    def leaders(self, unfilled: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the slots prefill: of those that share pages that are not filled yet, the first."""
        pages = self.cache.pages
        if pages is None or len(unfilled) < 2:
            return unfilled
        table = self.table[unfilled]
        fills_common = table["filled"] < table["common"]
        _, first = np.unique(np.where(fills_common, pages.rows[unfilled, 0], -1 - unfilled), return_index=True)
        return unfilled[np.sort(first)]

    def share_filled(self, prefilled: NDArray[np.int64]) -> None:
        """Tells the sequences that share a prompt's pages what one of them has filled."""
        if self.cache.pages is None:
            return
        first, filled = self.cache.pages.rows[: self.active, 0], self.running["filled"]
        for slot in prefilled:
            same, common = first == first[slot], self.table["common"][slot]
            filled[same] = np.maximum(filled[same], min(filled[slot], common))

    def trajectory(self, slot: int, prompt: list[int], failed: bool = False, goes_on: bool = False) -> Trajectory:
        """What a slot has come to.

        Args:
            slot: whose response is decided, or failed, or goes on.
            prompt: of it.
            failed: its last step met logits that are not finite.
            goes_on: the response is not decided yet, and ends where the current block starts.
        """
        row = self.table[slot]
        num_steps, forwards = int(row["steps"]), int(row["forwards"])
        if failed:
            reason = f"logits that are not finite at denoising step {num_steps}"
            return Trajectory(list(prompt), [], [], "error", forwards, num_steps, reason)
        kept: dict[str, Any] = self.response(slot, goes_on)
        ids, step_map = kept.pop("ids"), kept.pop("step_map")
        why = UNFINISHED if goes_on else "stop" if ids[-1] in self.config.stop_ids else "length"
        return Trajectory(list(prompt), ids, step_map, why, forwards, num_steps, **kept)

    def response(self, slot: int, goes_on: bool = False) -> dict[str, list[Any]]:
        """What the columns hold of a slot's response, from the prompt's end to its own; see `trajectory`."""
        row, columns = self.table[slot], self.columns
        first = int(row["prompt"])
        room = slice(first, int(row["start"]) if goes_on else first + self.config.max_new_tokens)
        stops = np.flatnonzero(self.is_stop[columns["ids"][slot, room]])
        kept = slice(room.start, room.start + int(stops[0]) + 1) if len(stops) else room
        return {name: column[slot, kept].tolist() for name, column in columns.items()}
