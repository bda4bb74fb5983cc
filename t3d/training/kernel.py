"""Which attention trains: decided once for a device and a network's heads, tried there, and said in one line."""

import logging
import subprocess
from functools import cache

import torch

from t3d.errors import first_line
from t3d.sdar.attention import TrainingTokens
from t3d.sdar.backend import TOLERANCE, Heads, relative_error
from t3d.training.attention import FlexPlan, PackedPlan, TiledPlan, plan_of

log = logging.getLogger(__name__)

NAMES: dict[type[PackedPlan], str] = {
    FlexPlan: "flex_attention",
    TiledPlan: "torch's scaled_dot_product_attention in tiles",
}
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
    """The device's plan if it works there, else tiles; and what speaks against the first, empty if nothing does.

    Args:
        device: where the network is.
        dtype: precision of attention.
        heads: of the network; what is tried is compiled for them.
        longest: tokens of the longest row to come, for which it is compiled, too; 0 if unknown.
    """
    plan = plan_of(device)
    if plan is TiledPlan:
        return plan, ""
    try:
        found, gradient = _attend(plan, device, dtype, heads, longest)
    except COMPILING as failure:
        return TiledPlan, f"{NAMES.get(plan, plan.__name__)} does not run here: {first_line(failure)}"
    expected, expected_gradient = _attend(TiledPlan, device, dtype, heads, longest)
    for ours, theirs in ((found, expected), (gradient, expected_gradient)):
        if not (error := relative_error(ours, theirs)) <= TOLERANCE:
            return TiledPlan, f"{NAMES.get(plan, plan.__name__)} computes something else here, off by {error:.0%}"
    return plan, ""


def _attend(
    plan: type[PackedPlan], device: torch.device, dtype: torch.dtype, heads: Heads, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one document of 16 blocks of 4 and its noisy copy, and the gradient of the queries, in full."""
    size = 64
    block = torch.arange(size) // 4
    tokens = TrainingTokens(torch.cat([block, block]), torch.arange(2 * size) >= size, torch.zeros(2 * size).long())
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, num, 2 * size, heads.dim, generator=generator).to(device, dtype).requires_grad_()
        for num in (heads.queries, heads.keys, heads.keys)
    )
    seen = plan(tokens, [2 * size], device, longest).attend(0, query, key, value, heads.dim**-0.5)
    (gradient,) = torch.autograd.grad(seen.float().square().sum(), query)
    return seen.detach().float().cpu(), gradient.float().cpu()
