"""Keys and values in pages: attention that reads them, and the engine's rollouts, against those in one piece."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from bench.gpu import by_hand
from bench.gpu.attention import LIMITS, RUNS, SCALE, filled_cache, random_states, spans_of
from bench.gpu.decoding import alike, subject
from bench.gpu.findings import Finding
from bench.gpu.world import World
from t3d.decoding import DecodingConfig, decode
from t3d.decoding.cache import PagedCache, SlotCache
from t3d.decoding.kernel import Kernel, choose_kernel, find_kernel
from t3d.decoding.memory import Capacity, fitting
from t3d.decoding.pages import PAGE_SIZE, Paging
from t3d.decoding.plan import SdpaPlan
from t3d.decoding.slots import Slots
from t3d.sdar import SDARForCausalLM
from t3d.sdar.backend import Heads, relative_error

LENGTH = 2 * PAGE_SIZE


def _paged(world: World, cache: SlotCache) -> PagedCache:
    """The same keys and values in pages, which are not in the order of the slots."""
    layers, slots, length, kv_heads, dim = cache.keys.shape
    fields = {"num_attention_heads": kv_heads * cache.heads_per_key, "num_key_value_heads": kv_heads, "head_dim": dim}
    shape = world.shape("4B", num_hidden_layers=layers, **fields)
    number = slots * length // PAGE_SIZE
    paged = PagedCache(shape, number, PAGE_SIZE, slots, length, cache.keys.dtype, world.device)
    for slot in (*range(1, slots, 2), *range(0, slots, 2)):
        paged.grow(slot, length)
    pages = torch.from_numpy(paged.pages.rows).to(world.device, torch.long)
    for ours, theirs in ((paged.keys, cache.keys), (paged.values, cache.values)):
        ours[:, pages.flatten()] = theirs.unflatten(2, (-1, PAGE_SIZE)).flatten(1, 2)
    return paged


@torch.inference_mode()
def attention(world: World) -> Iterator[Finding]:
    """Every kernel over pages, against itself over slots of one piece."""
    torch.manual_seed(0)
    heads, spans = Heads.of(world.shape("4B")), spans_of(RUNS)
    for dtype, limit in LIMITS.items():
        kernel = find_kernel(world.device, dtype, heads)
        plans = {"torch's, gathered": SdpaPlan, by_hand.PAGED.name: by_hand.PAGED.plan}
        plans |= {kernel.name: kernel.plan} if kernel.is_paged else {}
        for name, plan in plans.items():
            cache = filled_cache(world, heads, 6, LENGTH, dtype)
            states = random_states(world, heads, int(spans.edges[-1]), dtype)
            paged = _paged(world, cache)
            with kernel.within():
                found, expected = (plan(spans, each).attend(0, *states, SCALE) for each in (paged, cache))
            error = relative_error(found, expected)
            values = {"error": error, "limit": limit}
            yield Finding(f"pages, {name}, {str(dtype).removeprefix('torch.')}", values, error <= limit)


def same_as_whole(world: World) -> Iterator[Finding]:
    """Sequences in few pages, which wait and are put back, write what they write in one piece."""
    model, prompts = subject(world, torch.float32)
    yield _engine(world, model, prompts, by_hand.PAGED)
    kernel = choose_kernel(model.bfloat16())
    if kernel.is_paged:
        yield _engine(world, model, prompts, kernel)


def _engine(world: World, model: SDARForCausalLM, prompts: list[list[int]], kernel: Kernel) -> Finding:
    """Two responses to each prompt, with pages for three sequences of full length alone."""
    size, new = (16, 24) if world.tiny else (PAGE_SIZE, 400)
    config = DecodingConfig(model.config.vocab_size - 1, 4, 1, new, temperature=0.1, seed=7)
    prompts = [prompt for prompt in prompts for _ in range(2)]

    def few(*arguments: Any, **named: Any) -> Capacity:
        found = fitting(*arguments, **named)
        return replace(found, pages=3 * found.longest)

    with mock.patch("t3d.decoding.engine.choose_kernel", return_value=kernel):
        expected = decode(model, prompts, config, len(prompts), graphs=False, paged=False)
        with (
            mock.patch("t3d.decoding.engine.choose_paging", return_value=Paging(size)),
            mock.patch("t3d.decoding.engine.fitting", few),
            mock.patch.object(Slots, "put_back", autospec=True, side_effect=Slots.put_back) as put_back,
        ):
            found = decode(model, prompts, config, len(prompts), graphs=False)
    values, holds = alike(model, config, found, expected)
    name = f"in pages and not, {str(model.dtype).removeprefix('torch.')}, {kernel.name}"
    return Finding(name, values | {"put back": put_back.call_count}, holds and put_back.call_count > 0)
