"""Decoding: the engine against the plain decoder, token for token and step for step, and under a memory's limits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from bench.gpu.findings import Finding
from bench.gpu.partings import parting_margin
from bench.gpu.world import World, draw_prompts
from t3d.decoding import DecodingConfig, decode
from t3d.decoding.cache import SlotCache, padded_keys
from t3d.decoding.limits import full_length
from t3d.decoding.memory import decoding_memory, fitting
from t3d.decoding.plain import decode_plain
from t3d.devices import KEPT_BACK, free_memory, usable_memory
from t3d.sdar import SDARForCausalLM
from t3d.trajectory import Trajectory

LAYERS = 4
SETTINGS = ((4, 4, 0.0), (4, 1, 0.0), (8, 2, 0.0), (4, 4, 0.1), (4, 1, 0.1), (8, 2, 0.1))
"""Block size, steps and temperature."""
ACTIVE = (1, 4, 12)
TIES = {torch.float32: 1e-4, torch.bfloat16: 0.5}
"""How near two choices must lie, in nats (drawn tokens: in probability), for their order to be left to rounding."""


def subject(world: World, dtype: torch.dtype) -> tuple[SDARForCausalLM, list[list[int]]]:
    """Four layers of the 4B network, whose distributions are far from uniform, and twelve prompts."""
    model = world.network(world.shape("4B", num_hidden_layers=LAYERS), dtype)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.4 / float(model.lm_head.weight.float().std()) / model.config.hidden_size**0.5)
    lengths = [3, 8, 17, 5] if world.tiny else [3, 8, 17, 160, 64, 33, 90, 1, 250, 47, 128, 71]
    return model, draw_prompts(model.config, lengths)


def _config(world: World, model: SDARForCausalLM, block_size: int, steps: int, temperature: float) -> DecodingConfig:
    vocab = model.config.vocab_size
    new = 8 if world.tiny else 48
    return DecodingConfig(
        vocab - 1, block_size, steps, new, temperature, stop_ids=tuple(range(0, vocab - 1, 80)), seed=7
    )


def single_precision(world: World) -> Iterator[Finding]:
    """The engine writes what the plain decoder writes, however many sequences are in flight."""
    model, prompts = subject(world, torch.float32)
    for block_size, steps, temperature in SETTINGS:
        config = _config(world, model, block_size, steps, temperature)
        expected = [decode_plain(model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
        for active in ACTIVE:
            values, passed = compared(model, prompts, config, expected, active)
            name = f"float32, {block_size}/{steps}, temperature {temperature:g}, {active} in flight"
            yield Finding(name, values, passed)


def half_precision(world: World) -> Iterator[Finding]:
    """Where the engine first differs from the plain decoder in bfloat16, the choice was nearly a tie."""
    model, prompts = subject(world, torch.bfloat16)
    for block_size, steps, _ in SETTINGS[:3]:
        config = _config(world, model, block_size, steps, 0.0)
        expected = [decode_plain(model, prompt, config, stream) for stream, prompt in enumerate(prompts)]
        values, passed = compared(model, prompts, config, expected, ACTIVE[-1])
        yield Finding(f"bfloat16, {block_size}/{steps}, {ACTIVE[-1]} in flight", values, passed)


def compared(
    model: SDARForCausalLM,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    expected: Sequence[Trajectory],
    active: int,
) -> tuple[dict[str, Any], bool]:
    """How many trajectories are the plain decoder's, which are `expected`, and how far from a tie the others part."""
    return _judged(model, config, decode(model, prompts, config, max_active=active), expected)


def alike(
    model: SDARForCausalLM, config: DecodingConfig, found: Sequence[Trajectory], expected: Sequence[Trajectory]
) -> tuple[dict[str, Any], bool]:
    """The same for two decodes of the engine with other rows beside each: in half precision none may fail, no more.

    A product of another number of rows may be another kernel's and round otherwise: in single precision now and then.
    In half precision it does so often, and the plain decoder's states are not those at which the two part.
    """
    if model.dtype == torch.float32:
        return _judged(model, config, found, expected)
    return {"identical": _count(found, expected)}, not any(done.error for done in found)


def _judged(
    model: SDARForCausalLM, config: DecodingConfig, found: Sequence[Trajectory], expected: Sequence[Trajectory]
) -> tuple[dict[str, Any], bool]:
    limit, margins = TIES[model.dtype], []
    for stream, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if not _is_same(ours, theirs):
            margins.append(parting_margin(model, config, ours, theirs, stream))
    values: dict[str, Any] = {"identical": _count(found, expected)}
    if margins:
        values |= {"largest margin": max(margins), "limit": limit}
    return values, all(margin <= limit for margin in margins)


def _count(found: Sequence[Trajectory], expected: Sequence[Trajectory]) -> str:
    return f"{sum(map(_is_same, found, expected))} of {len(expected)}"


def _is_same(one: Trajectory, other: Trajectory) -> bool:
    return (one.response_ids, one.step_map, one.error) == (other.response_ids, other.step_map, other.error)


def no_number(world: World) -> Iterator[Finding]:
    """Logits that are no numbers end one response, and the others are what they were."""
    model, prompts = subject(world, torch.float32)
    config = _config(world, model, 4, 2, 0.0)
    before = decode(model, prompts, config)
    used = {token for done in before for token in done.response_ids} | {token for prompt in prompts for token in prompt}
    token = next(token for token in range(model.config.vocab_size - 1) if token not in used)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.nan
    *after, broken = decode(model, [*prompts, [token, *prompts[0]]], config, max_active=3)
    values, same = alike(model, config, after, before)
    yield Finding(
        "one response of no numbers", {"error": str(broken.error), **values}, broken.error is not None and same
    )


def two_in_one_process(world: World) -> Iterator[Finding]:
    """A second decode finds the room that the first one left, where each fills more than half of it."""
    model, _ = subject(world, torch.float32)
    vocab = model.config.vocab_size
    new = 64 if world.tiny else 16_000
    config = DecodingConfig(vocab - 1, 4, 1, new, stop_ids=tuple(range(vocab - 1)))
    slot = SlotCache.slot_bytes(model.config, padded_keys(full_length(8, config)), model.dtype)
    wanted = 8 if world.tiny else int(0.55 * usable_memory(world.device) / slot)
    prompts = draw_prompts(model.config, [8] * wanted)
    first = decode(model, prompts, config, max_active=wanted)
    needed = decoding_memory(model.config, model.dtype, config, 8, world.device)
    fit = fitting(needed, world.device, config, 8, wanted).slots
    second = decode(model, prompts, config, max_active=wanted)
    values = {"sequences": wanted, "fit again": fit, "cache_gib": wanted * slot / 2**30}
    yield Finding("two decodes in one process", values, fit == wanted and first == second)


@contextmanager
def _capped(world: World, room: int) -> Iterator[None]:
    """Leaves so many usable bytes: a card is filled, and the host's memory is only said to be full."""
    if not world.is_cuda:
        with mock.patch("t3d.decoding.memory.usable_memory", return_value=room):
            yield
        return
    world.clear()
    filler = torch.empty(max(0, free_memory(world.device) - KEPT_BACK - room), dtype=torch.uint8, device=world.device)
    yield
    del filler


def full_card(world: World) -> Iterator[Finding]:
    """Where three sequences fit, three are in flight, and they write the same."""
    model, prompts = subject(world, torch.float32)
    config = _config(world, model, 4, 2, 0.0)
    expected, longest = decode(model, prompts, config), max(map(len, prompts))
    needed = decoding_memory(model.config, model.dtype, config, longest, world.device)
    with _capped(world, needed.shared + int(3.9 * needed.per_slot)):
        fit = fitting(needed, world.device, config, longest, len(prompts)).slots
        found = decode(model, prompts, config)
    values, same = alike(model, config, found, expected)
    yield Finding("a card that is nearly full", {"fit": fit, "expected": 3, **values}, fit == 3 and same)
