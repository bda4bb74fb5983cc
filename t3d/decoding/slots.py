"""The state of every running sequence: counters on the host, tokens and keys on the device, kept dense.

Running sequences always fill slots 0..n-1, so that attention works on views of the cache: a freed slot is given to the
next prompt, or else the last sequence moves into it.
"""

import numpy as np
import torch
from torch import Tensor

from t3d.decoding.cache import SlotCache, padded_keys
from t3d.decoding.config import DecodingConfig
from t3d.decoding.limits import check_memory, full_length
from t3d.sampling import response_uniforms
from t3d.sdar.modeling import SDARForCausalLM

UNREVEALED = 0
"""Step-map entry of a position that no denoising step has revealed."""


class Slots:
    """Everything that is known of the sequences in flight.

    Attributes:
        table: one host record per slot: `index` of the prompt and its length `prompt`; `whole`, the positions to
            prefill, of which `filled` are done; the current block's `start` and denoising `step` and its `masked`
            positions; whether the block before it is `pending`, finished but not committed; `steps` and `forwards`
            spent.
        ids: tokens [slots, length], the mask token where nothing is revealed.
        step_map: denoising step that revealed each position [slots, length].
        notes: recorded values of each position [slots, length], by their name in `Draws`.
        uniforms: random numbers [slots, blocks, steps, block], on the host; empty at temperature 0.
        active: sequences in flight.
    """

    def __init__(self, model: SDARForCausalLM, config: DecodingConfig, num_slots: int, longest_prompt: int) -> None:
        """Allocates everything for `num_slots` sequences of the greatest length that can occur.

        Raises:
            ConfigError: the cache does not fit into the memory that is free.
        """
        self.config, self.device, size = config, model.device, config.block_size
        longest = full_length(longest_prompt, config)
        self.length = padded_keys(longest)
        check_memory(SlotCache.slot_bytes(model.config, self.length, model.dtype), num_slots, self.device)
        self.cache = SlotCache(model.config, num_slots, self.length, model.dtype, self.device)
        counters = ["index", "prompt", "whole", "filled", "start", "step", "steps", "forwards"]
        columns = [(name, np.int64) for name in counters] + [("pending", np.bool_), ("masked", np.bool_, (size,))]
        self.table = np.zeros(num_slots, dtype=np.dtype(columns, align=True))
        self.ids = torch.full((num_slots, self.length), config.mask_id, device=self.device)
        self.step_map = torch.full((num_slots, self.length), UNREVEALED, device=self.device)
        fields = {"logprob": "logprobs", "entropy": "entropies"}
        self.notes = {fields[name]: torch.zeros(self.ids.shape, device=self.device) for name in config.record}
        num_blocks = longest // size if config.temperature > 0 else 0
        self.uniforms = np.zeros((num_slots, num_blocks, config.denoising_steps, size), dtype=np.float32)
        self.active = 0

    @property
    def num_free(self) -> int:
        """Slots without a sequence."""
        return len(self.table) - self.active

    @property
    def running(self) -> np.ndarray:
        """The table of the sequences in flight."""
        return self.table[: self.active]

    def send(self, values: np.ndarray) -> Tensor:
        """A host array on the device."""
        return torch.from_numpy(values).to(self.device)

    def add(self, index: int, prompt: list[int], stream: int) -> None:
        """Puts a prompt into the first free slot."""
        slot, size = self.active, self.config.block_size
        whole = len(prompt) // size * size
        masked = np.arange(whole, whole + size) >= len(prompt)
        self.table[slot] = (index, len(prompt), whole, 0, whole, 0, 0, 0, False, masked)
        self.ids[slot] = self.config.mask_id
        self.ids[slot, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        self.step_map[slot] = UNREVEALED
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
            for column in (self.ids, self.step_map, *self.notes.values()):
                column[slot] = column[last]
            self.cache.move(last, slot, int(self.table["start"][last]) + self.config.block_size)

    def kept(self, slot: int) -> tuple[list[int], list[int], dict[str, list[float]]]:
        """Tokens, steps and recorded values of a slot's revealed response, cut at its end."""
        row = self.table[slot]
        response = slice(int(row["prompt"]), int(row["start"]) + self.config.block_size)
        ids, steps = torch.stack([self.ids[slot, response], self.step_map[slot, response]]).tolist()
        stops = (place + 1 for place, token in enumerate(ids) if token in self.config.stop_ids)
        length = min(next(stops, len(ids)), self.config.max_new_tokens)
        notes = {name: column[slot, response][:length].tolist() for name, column in self.notes.items()}
        return ids[:length], steps[:length], notes
