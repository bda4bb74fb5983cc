"""Attention: every kernel against double precision, and which of them is the fastest."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.findings import Finding
from bench.gpu.world import DensePlan, World, num_places, training_batch
from t3d.decoding.cache import SlotCache
from t3d.decoding.kernel import find_kernel
from t3d.decoding.plan import SdpaPlan, Spans
from t3d.sdar.backend import AttentionPlan, Heads, relative_error
from t3d.training.attention import PackedPlan, TiledPlan, plan_of
from t3d.training.kernel import COMPILING

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative errors that a decoding kernel may have."""
TRAINING_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""And a training kernel and its gradients."""
MOST_GRAPHS = 6
RUNS = ((0, 8, 1), (1, 200, 2), (3, 0, 40), (4, 12, 5), (5, 96, 1))
"""Slot, first position and blocks of each run: all that a forward can hold, and a slot that takes no part."""
SCALE = 0.3


def spans_of(runs: tuple[tuple[int, int, int], ...]) -> Spans:
    """Runs of blocks of four."""
    return Spans(*(np.array(column) for column in zip(*runs, strict=True)), 4)


def filled_cache(world: World, heads: Heads, num_slots: int, length: int, dtype: torch.dtype) -> SlotCache:
    """Filled with random numbers."""
    fields = {"num_attention_heads": heads.queries, "num_key_value_heads": heads.keys, "head_dim": heads.dim}
    cache = SlotCache(world.shape("4B", num_hidden_layers=1, **fields), num_slots, length, dtype, world.device)
    for buffer in (cache.keys, cache.values):
        buffer.normal_()
    return cache


def random_states(world: World, heads: Heads, num_tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values."""
    shapes = [(1, num, num_tokens, heads.dim) for num in (heads.queries, heads.keys, heads.keys)]
    return [torch.randn(shape, device=world.device, dtype=dtype) for shape in shapes]


def _by_hand(cache: SlotCache, spans: Spans, states: list[Tensor]) -> Tensor:
    """Block by block in double precision, from a cache that holds the forward's keys and values already."""
    query, out, token = states[0][0].double(), [], 0
    for slot, start, count in zip(spans.slots, spans.starts, spans.counts, strict=True):
        for block in range(count):
            end, rows = int(start) + (block + 1) * spans.size, slice(token, token + spans.size)
            keys, values = (
                buffer[0, slot, :end].double().transpose(0, 1).repeat_interleave(cache.heads_per_key, 0)
                for buffer in (cache.keys, cache.values)
            )
            out.append((query[:, rows] @ keys.mT * SCALE).softmax(-1) @ values)
            token = rows.stop
    return torch.cat(out, 1).transpose(0, 1)[None]


@torch.inference_mode()
def decoding_kernels(world: World) -> Iterator[Finding]:
    """Torch's attention, and flash-attn where it is, against the oracle."""
    torch.manual_seed(0)
    heads, spans = Heads.of(world.shape("4B")), spans_of(RUNS)
    for dtype, limit in LIMITS.items():
        kernel = find_kernel(world.device, dtype, heads)
        for name, plan in {"torch's scaled_dot_product_attention": SdpaPlan, kernel.name: kernel.plan}.items():
            cache = filled_cache(world, heads, 6, 512, dtype)
            states = random_states(world, heads, int(spans.edges[-1]), dtype)
            with kernel.within():
                found = plan(spans, cache).attend(0, *states, SCALE)
            error = relative_error(found.double(), _by_hand(cache, spans, states))
            values = {"error": error, "limit": limit, "chosen": kernel.name}
            values |= {"as": kernel.why} if kernel.why else {}
            yield Finding(f"decoding, {name}, {str(dtype).removeprefix('torch.')}", values, error <= limit)


def _lengths(world: World) -> list[tuple[int, int]]:
    return [(9, 14), (3, 30)] if world.tiny else [(120, 300), (61, 250), (90, 9)]


def training_kernels(world: World) -> Iterator[Finding]:
    """The device's kernel for packed rows and the tiles, outputs and gradients, against double precision."""
    shape = world.shape("4B")
    heads = Heads.of(shape)
    for dtype, limit in TRAINING_LIMITS.items():
        for kind in dict.fromkeys((plan_of(world.device), TiledPlan)):
            torch.manual_seed(0)
            plans = [training_batch(world, shape, _lengths(world), plan) for plan in (kind, DensePlan)]
            num_tokens = [batch.input_ids.numel() for batch in plans]
            states = random_states(world, heads, num_tokens[0], dtype)
            found = _outputs(plans[0].plan, states, num_tokens[1])
            cut = [state[:, :, : num_tokens[1]].double() for state in states]
            expected = _outputs(plans[1].plan, cut, num_tokens[1])
            errors = [relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
            values = {"output": errors[0], "gradients": max(errors[1:]), "limit": limit}
            name = f"training, {kind.__name__}, {str(dtype).removeprefix('torch.')}"
            yield Finding(name, values, max(errors) <= limit)


def _outputs(plan: AttentionPlan, states: list[Tensor], num_tokens: int) -> list[Tensor]:
    """Attention of the first tokens, which are no padding, and the gradients of queries, keys and values."""
    leaves = [state.clone().requires_grad_() for state in states]
    seen = plan.attend(0, leaves[0], leaves[1], leaves[2], SCALE)[:, :num_tokens]
    gradients = torch.autograd.grad(seen.double().square().sum(), leaves)
    return [seen.detach(), *(gradient[:, :, :num_tokens] for gradient in gradients)]


def training_graphs(world: World) -> Iterator[Finding]:
    """How often the training kernel is compiled as lengths change below the longest, as in a run of training."""
    shape = world.shape("4B")
    rows = [[(40 + 8 * number, 70 + 41 * number)] for number in range(2 if world.tiny else 12)]
    longest = num_places(world, shape, rows[-1])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for lengths in rows:
        batch = training_batch(world, shape, lengths, plan_of(world.device), longest=longest)
        _outputs(batch.plan, random_states(world, Heads.of(shape), batch.input_ids.numel(), torch.bfloat16), 64)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    yield Finding(
        "training, graphs over changing lengths", {"graphs": graphs, "limit": MOST_GRAPHS}, graphs <= MOST_GRAPHS
    )


@torch.inference_mode()
def decoding_choice(world: World) -> Iterator[Finding]:
    """Milliseconds of one layer's attention by every kernel, at three batch sizes, one block to each sequence."""
    heads, dtype = Heads.of(world.shape("4B")), torch.bfloat16
    kernel = find_kernel(world.device, dtype, heads)
    context = 60 if world.tiny else 700
    for num in (1, 4) if world.tiny else (1, 16, 128):
        spans = spans_of(tuple((slot, context - 4, 1) for slot in range(num)))
        cache, states = filled_cache(world, heads, num, 768, dtype), random_states(world, heads, 4 * num, dtype)
        plans: dict[str, tuple[Any, list[SDPBackend] | None]] = {kernel.name: (kernel.plan, None)}
        if world.is_cuda:
            plans |= {
                f"torch, {backend.name.lower()}": (SdpaPlan, [backend])
                for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)
            }
        times = {}
        for name, (build, backends) in plans.items():
            plan = build(spans, cache)
            times[name] = _milliseconds(world, lambda: plan.attend(0, *states, SCALE), backends, kernel.within)  # noqa: B023
        yield Finding(f"decoding attention, {num} sequences", _choice(times, kernel.name))


def _milliseconds(world: World, work: Callable[[], Any], backends: list[SDPBackend] | None, within: Any) -> float:
    """Of one call; infinite where the kernel refuses."""
    try:
        with sdpa_kernel(backends) if backends else within():
            return 1e3 * world.seconds(work, repeats=20)
    except COMPILING:
        return float("inf")


def training_choice(world: World) -> Iterator[Finding]:
    """Milliseconds of one layer's attention, forward and backward, by the device's kernel and by tiles."""
    shape = world.shape("4B")
    torch.compiler.reset()  # as in a run of training, the kernel is compiled for one length
    times = {}
    for kind in dict.fromkeys((plan_of(world.device), TiledPlan)):
        times[kind.__name__] = 1e3 * world.seconds(_step(world, kind), repeats=10)
    yield Finding(
        f"training attention, {shape.num_attention_heads} heads", _choice(times, plan_of(world.device).__name__)
    )


def _step(world: World, kind: type[PackedPlan]) -> Callable[[], Any]:
    shape = world.shape("4B")
    lengths = [(24, 40)] if world.tiny else [(512, 1032)]
    longest = num_places(world, shape, lengths)
    batch = training_batch(world, shape, lengths, kind, longest=longest)
    states = random_states(world, Heads.of(shape), batch.input_ids.numel(), torch.bfloat16)
    return lambda: _outputs(batch.plan, states, batch.input_ids.numel())


def _choice(times: dict[str, float], chosen: str) -> dict[str, Any]:
    fastest = min(times, key=lambda name: times[name])
    return {f"{name}, ms": value for name, value in times.items()} | {"chosen": chosen, "fastest": fastest}
