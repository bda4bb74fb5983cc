"""How fast the 4B network decodes, beside what its bytes allow and beside its forwards alone."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.findings import Finding
from bench.gpu.world import World, draw_prompts
from t3d.decoding import DecodingConfig, decode
from t3d.decoding.cache import SlotCache
from t3d.sdar import SDARForCausalLM
from t3d.sdar.decoding_layers import compile_layers

CONTEXT = 640
"""Prompt tokens; with half the response about 700 keys."""
SEQUENCES = (1, 16, 128)
DECODINGS = ((4, 4), (4, 1))
TARGETS = {1: 0.6, 16: 0.6}
"""Share of the floor's speed that is aimed at, by the number of sequences."""
EFFICIENCY = 0.85
"""Share of the time that forwards alone take which is aimed at, at 128 sequences."""


@dataclass
class _Recorder:
    """Notes when each forward begins, and keeps those of the second half as bare calls."""

    forward: Callable[..., Any]
    keep_from: int
    starts: list[float] = field(default_factory=list)
    calls: list[Callable[[], Any]] = field(default_factory=list)

    def __call__(self, ids: torch.Tensor, *, head: Callable[..., Any], **layout: Any) -> Any:
        """In place of the network's forward."""
        self.starts.append(time.perf_counter())
        if len(self.starts) > self.keep_from:
            self.calls.append(lambda: self.forward(ids, **layout))
        return self.forward(ids, head=head, **layout)


def _config(model: SDARForCausalLM, block_size: int, steps: int, new: int) -> DecodingConfig:
    return DecodingConfig(model.config.vocab_size - 1, block_size, steps, new)


def _floor_bytes(model: SDARForCausalLM, num_sequences: int, context: int) -> float:
    """What a denoising step must read: the layers, the head, and the keys and values of every sequence."""
    stack = model.model.layers
    layers = sum(weight.numel() for weight in (*stack.parameters(), *stack.buffers()))  # joined ones are buffers
    head = model.config.vocab_size * model.config.hidden_size
    cached = num_sequences * SlotCache.slot_bytes(model.config, context, model.dtype)
    return (layers + head) * model.dtype.itemsize + cached


def _measured(world: World, model: SDARForCausalLM, num: int, decoding: tuple[int, int], rate: float) -> dict[str, Any]:
    """Speed of `num` sequences of one length, whose second half of forwards only denoises."""
    block_size, steps = decoding
    context, new = (24, 16) if world.tiny else (CONTEXT, 64 if num > 16 else 128)
    prompts, config = draw_prompts(model.config, [context] * num), _config(model, block_size, steps, new)
    # The first calls compile and allocate.
    decode(model, prompts[:2], _config(model, block_size, steps, block_size), graphs=False)
    world.clear()
    blocks = new // block_size
    recorder = _Recorder(model.forward, keep_from=1)
    with mock.patch.object(model, "forward", recorder):
        started = time.perf_counter()
        done = decode(model, prompts, config, max_active=num, graphs=False)
        seconds = time.perf_counter() - started
    peak, half = world.peak_gib(), blocks // 2 * steps
    step = fmean(b - a for a, b in zip(recorder.starts[-half:], recorder.starts[-half + 1 :], strict=False))
    bare = world.seconds(lambda: _replay(recorder.calls[-half:]), repeats=1) / half
    floor = _floor_bytes(model, num, context + new * 3 // 4) / rate
    values: dict[str, Any] = {
        "tokens_per_s": num * block_size / steps / step,
        "with prefill": num * new / seconds,
        "step_ms": 1e3 * step,
        "floor_ms": 1e3 * floor,
        "share of floor": floor / step,
        "forward_ms": 1e3 * bare,
        "share of forwards": bare / step,
        "forwards per block": fmean(trajectory.num_steps for trajectory in done) / blocks,
        "peak_gib": peak,
    }
    if num in TARGETS:
        values["target, share of floor"] = TARGETS[num]
    if num == max(SEQUENCES):
        values["target, share of forwards"] = EFFICIENCY
    return values


@torch.inference_mode()
def _replay(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def eager(world: World) -> Iterator[Finding]:
    """Tokens per second of forwards as they are (`recordings.speed` has those that are replayed)."""
    model, rate = world.decoder(world.shape("4B")), world.copy_rate()
    for num in (1, 4) if world.tiny else SEQUENCES:
        for decoding in DECODINGS:
            name = "4B, {} sequences, {}/{}".format(num, *decoding)
            yield Finding(name, _measured(world, model, num, decoding, rate))
    yield Finding("4B, 16 sequences, 4/4, launches", _launches(world, model))


def small_network(world: World) -> Iterator[Finding]:
    """The same of the 1.7B network, at two batch sizes."""
    model, rate = world.decoder(world.shape("1.7B")), world.copy_rate()
    for num in (2,) if world.tiny else (1, 128):
        yield Finding(f"1.7B, {num} sequences, 4/4", _measured(world, model, num, (4, 4), rate))


def _launches(world: World, model: SDARForCausalLM) -> dict[str, Any]:
    """Kernels per forward, and the share of the time in which the device had nothing to do."""
    prompts, config = draw_prompts(model.config, [16] * (2 if world.tiny else 16)), _config(model, 4, 4, 16)
    forwards = _Recorder(model.forward, keep_from=10**9)
    with mock.patch.object(model, "forward", forwards):
        started = time.perf_counter()
        decode(model, prompts, config, max_active=16, graphs=False)
        wall = time.perf_counter() - started
    num = len(forwards.starts)
    if not world.is_cuda:
        return {"forwards": num, "wall_ms": 1e3 * wall / num, "launches": "none: no card"}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        decode(model, prompts, config, max_active=16, graphs=False)
    events = profiled.events() or []
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    busy = sum(event.device_time_total for event in kernels) / 1e6
    return {
        "forwards": num,
        "wall_ms": 1e3 * wall / num,
        "launches per forward": len(kernels) / num,
        "busy_ms": 1e3 * busy / num,
        "idle share": 1 - busy / wall,
    }


def compiled(world: World) -> Iterator[Finding]:
    """Tokens per second with layers that torch.compile has fused."""
    model, rate = world.decoder(world.shape("4B")), world.copy_rate()
    compile_layers(model)
    # What is only tried is not worth half a minute of compiling.
    with torch.compiler.set_stance("force_eager" if world.tiny else "default"):
        for num in (2,) if world.tiny else (1, 128):
            yield Finding(f"4B compiled, {num} sequences, 4/4", _measured(world, model, num, (4, 4), rate))
