"""Recorded forwards: whether replays write what forwards as they are write, and how much faster they do."""

import time
from collections.abc import Iterator, Sequence
from unittest import mock

import torch

from bench.gpu import by_hand
from bench.gpu.decoding import alike, subject
from bench.gpu.findings import Finding
from bench.gpu.world import World, draw_prompts
from t3d.decoding import DecodingConfig, decode
from t3d.decoding.graphs import CudaGraphs, Record, Work
from t3d.decoding.kernel import Kernel, choose_kernel
from t3d.sdar import SDARForCausalLM

SPEED = ((1, 128), (16, 128), (128, 64))
"""Sequences and tokens of each."""


class _Counter:
    """Records, and counts recordings and replays; on a CPU a replay is the forward again."""

    def __init__(self, world: World) -> None:
        self.record: Record = CudaGraphs(world.device) if world.is_cuda else lambda work: work
        self.recordings = self.replays = 0

    def __call__(self, work: Work) -> Work:
        replay = self.record(work)
        self.recordings += 1

        def counted():
            self.replays += 1
            return replay()

        return counted


def same_as_eager(world: World) -> Iterator[Finding]:
    """Replays write the tokens and step maps of forwards as they are, in exact products over attention by hand."""
    model, prompts = subject(world, torch.float32)
    yield _compared(world, model, prompts, by_hand.KERNEL)
    kernel = choose_kernel(model.bfloat16())
    if kernel.is_fixed:
        yield _compared(world, model, prompts, kernel)


def _compared(world: World, model: SDARForCausalLM, prompts: Sequence[list[int]], kernel: Kernel) -> Finding:
    vocab, counter = model.config.vocab_size, _Counter(world)
    config = DecodingConfig(vocab - 1, 4, 2, 48, temperature=0.1, seed=7)
    found = []
    with mock.patch("t3d.decoding.engine.choose_kernel", return_value=kernel):
        for record in (None, counter):
            is_recorded = mock.patch("t3d.decoding.engine.are_recorded", return_value=record is not None)
            with is_recorded, mock.patch("t3d.decoding.engine.CudaGraphs", return_value=record):
                found.append(decode(model, prompts, config, max_active=len(prompts)))
    values, same = alike(model, config, *found)
    counted = {"recordings": counter.recordings, "replays": counter.replays}
    dtype = str(model.dtype).removeprefix("torch.")
    holds = counter.replays > counter.recordings > 0 and same
    return Finding(f"replayed and not, {dtype}, {kernel.name}", values | counted, holds)


def speed(world: World) -> Iterator[Finding]:
    """Tokens per second of the 4B network, prefill included, with recorded forwards and without."""
    model = world.decoder(world.shape("4B"))
    kernel = choose_kernel(model)
    for num, new in ((2, 16),) if world.tiny else SPEED:
        prompts = draw_prompts(model.config, [24 if world.tiny else 64] * num)
        config = DecodingConfig(model.config.vocab_size - 1, 4, 4, new)
        values: dict[str, float | str | None] = {}
        for graphs in (False, True) if kernel.is_fixed and world.is_cuda else (False,):
            world.clear()
            world.synchronize()
            started = time.perf_counter()
            decode(model, prompts, config, max_active=num, graphs=graphs)
            name = "replayed" if graphs else "eager"
            values[name] = num * new / (time.perf_counter() - started)
            values[f"{name}, reserved_gib"] = world.reserved_gib()
        if "replayed" not in values:
            values["not replayed"] = f"over {kernel.name}"
        yield Finding(f"4B, {num} sequences, 4/4, tokens per second", values)
