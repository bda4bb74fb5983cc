"""What every section works with: the device, the shapes of the networks, random weights, prompts and samples."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from t3d.devices import give_back
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.attention import TrainingTokens, training_mask
from t3d.sdar.backend import Attended, Keys, Queries, masked_attention
from t3d.sdar.decoding_layers import pack_layers
from t3d.training.attention import PackedPlan, TiledPlan
from t3d.training.memory import SHAPES
from t3d.training.packing import Batch, collate
from t3d.training.states import StateSettings, TrainingSample, draw_state, sample_stream

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.15,
}
"""In place of either shape where only the kit itself is tried."""


@dataclass(frozen=True)
class World:
    """Where the kit runs.

    Attributes:
        device: that is looked at.
        tiny: small networks and few tokens, which try the kit and measure nothing.
    """

    device: torch.device
    tiny: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether there is a card."""
        return self.device.type == "cuda"

    def shape(self, size: str, **changes: Any) -> SDARConfig:
        """The paper's network of a size, "1.7B" or "4B", with changed fields."""
        fields = SHAPES[f"SDAR-{size}-Chat"] | (TINY if self.tiny else {}) | changes
        special = {"block_size": 4, "mask_token_id": fields["vocab_size"] - 1, "max_position_embeddings": 32_768}
        return SDARConfig(**special, bos_token_id=None, eos_token_id=None, **fields)

    def network(self, shape: SDARConfig, dtype: torch.dtype, seed: int = 0) -> SDARForCausalLM:
        """A network of random weights, made on the device."""
        torch.manual_seed(seed)
        with self.device:
            return AutoModelForCausalLM.from_config(shape, dtype=dtype).eval()

    def decoder(self, shape: SDARConfig) -> SDARForCausalLM:
        """A network in bfloat16 that only decodes, as the scripts load one."""
        model = self.network(shape, torch.bfloat16)
        pack_layers(model)
        return model

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Gives back what is no longer used, and forgets the peak."""
        gc.collect()
        give_back(self.device)
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Most that was allocated since `clear`; None where torch does not count."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.is_cuda else None

    def reserved_gib(self) -> float | None:
        """Most that torch held since `clear`, recorded forwards included; None where it does not count."""
        return torch.cuda.max_memory_reserved(self.device) / 2**30 if self.is_cuda else None

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Median wall time of `work` after a first run."""
        if self.tiny:
            repeats = 1
        work()
        times = []
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def copy_rate(self) -> float:
        """Bytes per second that a copy reads and writes: what the floors of time are counted with."""
        source = torch.ones(2**16 if self.tiny else 2**29, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return 2 * 4 * len(source) / self.seconds(lambda: target.copy_(source), repeats=10)

    def product_rate(self, dtype: torch.dtype) -> float:
        """Operations per second of a large square product."""
        size = 64 if self.tiny else 8192
        left, right = (torch.ones(size, size, dtype=dtype, device=self.device) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: left @ right, repeats=10)


def draw_prompts(shape: SDARConfig, lengths: Sequence[int]) -> list[list[int]]:
    """Random prompts without the mask token."""
    chooser = random.Random(0)
    return [[chooser.randrange(shape.vocab_size - 1) for _ in range(length)] for length in lengths]


class DensePlan(PackedPlan):
    """Attention of a packed row at its plainest: every score, under one mask."""

    def __init__(self, tokens: TrainingTokens, lengths: Sequence[int], device: torch.device, longest: int = 0) -> None:
        """Makes the mask."""
        self.mask = training_mask(tokens, tokens)[None, None].to(device)

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Attention of one layer."""
        return masked_attention(query, key, value, self.mask, scale).transpose(1, 2)


def training_batch(
    world: World,
    shape: SDARConfig,
    lengths: Sequence[tuple[int, int]],
    plan: type[PackedPlan],
    block_size: int = 8,
    longest: int = 0,
) -> Batch:
    """Samples of random tokens, decoded in a random order within each block, in drawn states, packed to one row.

    Args:
        world: where.
        shape: of the network.
        lengths: of each sample's prompt and response.
        plan: kind of attention.
        block_size: positions per block.
        longest: tokens of the longest batch to come, for a kernel that is compiled for it; 0 if unknown.
    """
    mask_id, chooser = shape.vocab_size - 1, np.random.default_rng(0)
    settings = StateSettings("trace", (block_size,), mask_id, mask_id - 1, shape.vocab_size, path_k_steps=4)
    states = []
    for index, (prompt, response) in enumerate(lengths):
        ids = chooser.integers(mask_id - 1, size=prompt + response).tolist()
        order = [start + place for start in range(0, response, block_size) for place in chooser.permutation(block_size)]
        sample = TrainingSample(ids[:prompt], ids[prompt:], [int(place) + 1 for place in order[:response]], ended=False)
        states.append(draw_state(sample, settings, sample_stream(0, 0, index)))
    return collate(states, mask_id - 1, world.device, plan=plan, longest=longest)


def num_places(world: World, shape: SDARConfig, lengths: Sequence[tuple[int, int]]) -> int:
    """Tokens of the row that `training_batch` makes of samples so long, for its `longest`."""
    return training_batch(world, shape, lengths, TiledPlan).input_ids.numel()
