"""Training: the attention's gradients, the log-ratio of equal networks, and how long a step takes."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.findings import Finding
from bench.gpu.world import DensePlan, World, num_places, training_batch
from t3d.config import TrainConfig, TrainingConfig
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.backend import Heads
from t3d.training.attention import PackedPlan
from t3d.training.forward import batch_losses
from t3d.training.kernel import choose_plan
from t3d.training.memory import estimate
from t3d.training.operations import Work
from t3d.training.packing import Batch
from t3d.training.reference import frozen_copy
from t3d.training.settings import loss_settings

LAYERS = 4
COSINES = {torch.bfloat16: 0.999, torch.float32: 0.99999}
MEMORY = 0.15
"""How far the estimate of memory may be off."""
LOSS = loss_settings(TrainingConfig())


def _plan(world: World, shape: SDARConfig, dtype: torch.dtype, longest: int = 0) -> type[PackedPlan]:
    return choose_plan(world.device, dtype, Heads.of(shape), longest)


def _lengths(world: World, small: bool) -> list[tuple[int, int]]:
    """Prompts and responses: of the parity checks, or of the speed's micro-batch of 2,576 tokens."""
    if world.tiny:
        return [(9, 14), (3, 30)]
    return [(120, 300), (61, 250), (512, 900)] if small else [(512, 1032)]


def _gradients(student: SDARForCausalLM, reference: nn.Module, batch: Batch) -> Tensor:
    """All of one step, as one row."""
    student.zero_grad()
    batch_losses(student, reference, batch, LOSS)["loss/total"].sum().backward()
    parts = [weight.grad.flatten().float() for weight in student.parameters() if weight.grad is not None]
    student.zero_grad()
    return torch.cat(parts)


def _cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(left, right, dim=0))


def gradients(world: World) -> Iterator[Finding]:
    """Four layers of 1.7B: the device's attention beside a dense mask, and with activations recomputed."""
    shape = world.shape("1.7B", num_hidden_layers=LAYERS)
    for dtype, limit in COSINES.items():
        student, name = world.network(shape, dtype).train(), str(dtype).removeprefix("torch.")
        reference, kind = frozen_copy(world.network(shape, dtype, seed=1)), _plan(world, shape, dtype)
        lengths = _lengths(world, small=True)
        batches = {plan: training_batch(world, shape, lengths, plan) for plan in (kind, DensePlan)}
        found = _gradients(student, reference, batches[kind])
        dense = _cosine(found, _gradients(student, reference, batches[DensePlan]))
        yield Finding(f"gradients, {kind.__name__}, {name}", {"cosine": dense, "limit": limit}, dense >= limit)
        student.recompute_activations()
        again = _cosine(found, _gradients(student, reference, batches[kind]))
        yield Finding(f"gradients, recomputed, {name}", {"cosine": again, "limit": limit}, again >= limit)


def equal_networks(world: World) -> Iterator[Finding]:
    """Where the reference is the student every log-ratio is exactly 0, far into the context and after every cast."""
    shape = world.shape("1.7B", num_hidden_layers=LAYERS)
    for dtype in COSINES:
        student = world.network(shape, torch.float32).to(dtype).train()
        batch = training_batch(world, shape, _lengths(world, small=True), _plan(world, shape, dtype))
        terms = batch_losses(student, frozen_copy(student), batch, LOSS)
        largest = max(float(terms[name].abs().max()) for name in ("ratio/real", "ratio/fake"))
        yield Finding(f"log-ratio of equal networks, {str(dtype)[6:]}", {"largest": largest}, largest == 0)


def _memory(shape: SDARConfig, tokens: int, recompute: bool) -> float:
    """What `t3d.training.memory` expects of a step without an optimizer, in GiB."""
    config = TrainConfig()
    training: Any = config.training
    training.tokens_per_batch, training.gradient_checkpointing_enable = tokens, recompute
    training.grad_accum_dtype = "bfloat16"
    found = estimate(config, shape, 1, 1)
    working = max(found.activations + found.backward, found.masks)
    return (found.weights + found.gradients + found.reference + working) / 2**30


def steps(world: World) -> Iterator[Finding]:
    """Forward and backward of one micro-batch of 1.7B in bfloat16, and of a longer pack."""
    shape, rate = world.shape("1.7B"), world.product_rate(torch.bfloat16)
    student = world.network(shape, torch.bfloat16).train()
    reference = frozen_copy(world.network(shape, torch.bfloat16, seed=1))
    packs = {"one sample": _lengths(world, small=False)}
    packs["a pack"] = packs["one sample"] * (2 if world.tiny else 3)
    # As in a run of training, the kernel is compiled for one length, and has not met others.
    longest = num_places(world, shape, packs["a pack"])
    torch.compiler.reset()
    kind = _plan(world, shape, torch.bfloat16, longest)
    for recompute in (False, True):
        if recompute:
            student.recompute_activations()
        for name, lengths in packs.items():
            batch = training_batch(world, shape, lengths, kind, longest=longest)
            yield Finding(
                f"1.7B, {name}, {'recomputed' if recompute else 'kept'}",
                _step_values(world, student, reference, batch, rate) | _expected(world, shape, batch, recompute),
            )


def _expected(world: World, shape: SDARConfig, batch: Batch, recompute: bool) -> dict[str, Any]:
    return (
        {}
        if world.tiny
        else {"estimated_gib": _memory(shape, batch.input_ids.numel(), recompute), "may differ": MEMORY}
    )


def _step_values(
    world: World, student: SDARForCausalLM, reference: nn.Module, batch: Batch, rate: float
) -> dict[str, Any]:
    world.clear()
    parts: dict[str, list[float]] = {"forward_ms": [], "backward_ms": []}

    def step() -> None:
        world.synchronize()
        started = time.perf_counter()
        loss = batch_losses(student, reference, batch, LOSS)["loss/total"].sum()
        world.synchronize()
        middle = time.perf_counter()
        loss.backward()
        world.synchronize()
        parts["forward_ms"].append(1e3 * (middle - started))
        parts["backward_ms"].append(1e3 * (time.perf_counter() - middle))

    seconds = world.seconds(step, repeats=4)
    student.zero_grad()
    networks = (student, reference)
    operations = sum(Work.of(each).count(batch.num_tokens, len(batch.logit_rows)) for each in networks)
    return {
        "tokens": batch.num_tokens,
        "step_ms": 1e3 * seconds,
        **{name: times[-1] for name, times in parts.items()},
        "tokens_per_s": batch.num_tokens / seconds,
        "share of the product rate": operations / seconds / rate,
        "peak_gib": world.peak_gib(),
    }
