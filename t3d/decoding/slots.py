"""The state of every running sequence, kept dense: keys and values on the device, all else on the host.

Running sequences always fill slots 0..n-1, so that attention works on views of the cache: a freed slot is given to the
next prompt, or else the last sequence moves into it.
"""

from collections import deque
from typing import Any

import numpy as np

from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.limits import cache_length, full_length
from t3d.sampling import response_uniforms
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import UNFINISHED, Trajectory

Request = tuple[int, list[int], int]
"""Index of a prompt, its token ids, and the stream of its random numbers."""

RECORDS = {"logprob": "logprobs", "entropy": "entropies"}
"""The fields of `Draws` and `Trajectory` that `DecodingConfig.record` asks for."""


class Slots:
    """Everything that is known of the sequences in flight.

    Attributes:
        cache: keys and values, on the model's device.
        table: one record per slot: `index` of the prompt and its length `prompt`; `whole`, the positions to
            prefill, of which `filled` are done; the current block's `start` and denoising `step` and its `masked`
            positions; whether the block before it is `pending`, finished but not committed; `steps` and `forwards`
            spent.
        columns: what is known of each position [slots, length]: `ids`, the mask token where nothing is revealed,
            `step_map`, the step that revealed it, and the recorded values by their name in `Draws`.
        is_stop: whether each token of the vocabulary ends a response.
        uniforms: random numbers [slots, blocks, steps, block]; empty at temperature 0.
        active: sequences in flight.
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
        counters = ["index", "prompt", "whole", "filled", "start", "step", "steps", "forwards"]
        columns = [(name, np.int64) for name in counters] + [("pending", np.bool_), ("masked", np.bool_, (size,))]
        self.table = np.zeros(num_slots, dtype=np.dtype(columns, align=True))
        types = {"ids": np.int64, "step_map": np.int64} | {RECORDS[name]: np.float32 for name in config.record}
        self.columns = {name: np.zeros((num_slots, self.length), dtype=kind) for name, kind in types.items()}
        num_blocks = full_length(longest_prompt, config) // size if config.temperature > 0 else 0
        self.uniforms = np.zeros((num_slots, num_blocks, config.denoising_steps, size), dtype=np.float32)
        self.is_stop = np.zeros(model.config.vocab_size, dtype=np.bool_)
        self.is_stop[[token for token in config.stop_ids if token < len(self.is_stop)]] = True
        self.active = 0

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
        while self.num_free:
            try:
                index, prompt, stream = waiting.popleft()
            except IndexError:  # asked for, not looked up: another lane may take the last one at any moment
                break
            taken[index] = prompt
            self.add(index, prompt, stream)
        return taken

    def add(self, index: int, prompt: list[int], stream: int) -> None:
        """Puts a prompt into the first free slot."""
        slot, size = self.active, self.config.block_size
        whole = len(prompt) // size * size
        masked = np.arange(whole, whole + size) >= len(prompt)
        self.table[slot] = (index, len(prompt), whole, 0, whole, 0, 0, 0, False, masked)
        self.columns["ids"][slot] = self.config.mask_id
        self.columns["ids"][slot, : len(prompt)] = prompt
        if self.config.temperature > 0:
            num_blocks = (full_length(len(prompt), self.config) - whole) // size
            self.uniforms[slot, :num_blocks] = response_uniforms(
                self.config.seed, stream, num_blocks, self.config.denoising_steps, size
            )
        self.active += 1

    def remove(self, slot: int, poisoned: bool) -> None:
        """Frees a slot and moves the last sequence into it.

        Args:
            slot: of the finished sequence.
            poisoned: its cached values may not be finite, so they are overwritten.
        """
        if poisoned:
            self.cache.clear(slot)
        self.active -= 1
        last = self.active
        if slot != last:
            self.table[slot] = self.table[last]
            self.uniforms[slot] = self.uniforms[last]
            for column in self.columns.values():
                column[slot] = column[last]
            self.cache.move(last, slot, int(self.table["start"][last]) + self.config.block_size)

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
