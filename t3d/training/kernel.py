"""Which attention trains: decided once for a device and a network's heads, tried there, and said in one line."""

import logging
import subprocess
from functools import cache

import torch

from t3d.errors import first_line
from t3d.sdar.attention import TrainingTokens
from t3d.sdar.backend import TOLERANCE, Heads, relative_error
from t3d.training.attention import FlexPlan, PackedPlan, SmallFlexPlan, TiledPlan, plan_of

log = logging.getLogger(__name__)

NAMES: dict[type[PackedPlan], str] = {
    FlexPlan: "flex_attention",
    SmallFlexPlan: "flex_attention in small tiles",
    TiledPlan: "torch's scaled_dot_product_attention in tiles",
}
NEXT: dict[type[PackedPlan], type[PackedPlan]] = {FlexPlan: SmallFlexPlan}
"""What is tried where a plan does not work; behind the last are tiles, which do everywhere."""
COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
"""Precision of attention under each `training.mixed_precision`."""
COMPILING = (RuntimeError, ImportError, OSError, subprocess.SubprocessError)
"""What compiling a kernel raises: torch's compilers, a missing Triton, a missing C compiler and its failure."""


@cache
def choose_plan(device: torch.device, dtype: torch.dtype, heads: Heads, longest: int = 0) -> type[PackedPlan]:
    """The plan for packed documents; looked for once, and logged then."""
    plan, why = find_plan(device, dtype, heads, longest)
    line = f"training on {device} in {str(dtype).removeprefix('torch.')} with {NAMES.get(plan, plan.__name__)}"
    log.log(logging.WARNING if why else logging.INFO, "%s%s", line, f" ({why})" if why else "")
    return plan


def find_plan(device: torch.device, dtype: torch.dtype, heads: Heads, longest: int = 0) -> tuple[type[PackedPlan], str]:
    """The device's plan if it works there, else the next; and what speaks against those before, empty if nothing does.

    Args:
        device: where the network is.
        dtype: precision of attention.
        heads: of the network; what is tried is compiled for them.
        longest: tokens of the longest row to come, for which it is compiled, too; 0 if unknown.
    """
    plan, first = plan_of(device), dict[str, str]()
    while plan is not TiledPlan and (fault := _fault(plan, device, dtype, heads, longest)):
        first.setdefault(fault, NAMES.get(plan, plan.__name__))
        plan = NEXT.get(plan, TiledPlan)
    return plan, "; ".join(f"{name} {fault}" for fault, name in first.items())


def _fault(plan: type[PackedPlan], device: torch.device, dtype: torch.dtype, heads: Heads, longest: int) -> str:
    """What a plan does wrong there; empty if nothing."""
    try:
        found = _attend(plan, device, dtype, heads, longest)
    except COMPILING as failure:
        return f"does not run here: {first_line(failure)}"
    for ours, theirs in zip(found, _attend(TiledPlan, device, dtype, heads, longest), strict=True):
        if not (error := relative_error(ours, theirs)) <= TOLERANCE:
            return f"computes something else here, off by {error:.0%}"
    return ""


def _attend(
    plan: type[PackedPlan], device: torch.device, dtype: torch.dtype, heads: Heads, longest: int
) -> list[torch.Tensor]:
    """Attention of one document in blocks of 4 and its noisy copy, and its gradients by queries, keys and values.

    Of 512 tokens, so that a kernel meets tiles that it sees in full; fewer where all rows are shorter.
    """
    size = 64 if 0 < longest < 512 else 256
    block = torch.arange(size) // 4
    tokens = TrainingTokens(torch.cat([block, block]), torch.arange(2 * size) >= size, torch.zeros(2 * size).long())
    generator = torch.Generator().manual_seed(0)
    inputs = [  # in memory by tokens, as a layer's products leave them
        torch.randn(1, 2 * size, num, heads.dim, generator=generator).to(device, dtype).transpose(1, 2).requires_grad_()
        for num in (heads.queries, heads.keys, heads.keys)
    ]
    query, key, value = inputs
    seen = plan(tokens, [2 * size], device, longest).attend(0, query, key, value, heads.dim**-0.5)
    gradients = torch.autograd.grad(seen.float().square().sum(), inputs)
    return [part.detach().float().cpu() for part in (seen, *gradients)]
