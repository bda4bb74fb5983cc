"""The output head in chunks of rows: no more of its logits than one chunk's at a time, its gradient in one place.

Left to autograd, each chunk's gradient of the head's weight would be a tensor of its own, added to the sum of those
before: with a vocabulary of 151,936 three tensors of the largest weight's size.  Here the backward pass computes a
chunk's logits again and adds its gradient into the one sum.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

Look = Callable[[Float[Tensor, "chunk vocab"], int], Mapping[str, Tensor]]
"""From a chunk's logits and its number to what is kept of them: per-row quantities, [chunk] each."""


def chunked(
    lm_head: nn.Linear, rows: Float[Tensor, "rows hidden"], chunks: Sequence[slice], look: Look
) -> dict[str, Tensor]:
    """What `look` gives for all rows, [rows] each.

    Args:
        lm_head: the output head, a matrix.
        rows: final hidden states.
        chunks: places of each chunk's rows, one chunk behind the other.
        look: called for each chunk in the forward pass and again in the backward pass, to the same result.
    """
    names: list[str] = []

    def product(rows: Float[Tensor, "rows hidden"]) -> tuple[Tensor, ...]:
        # Under autocast the cast is made once, and its gradient is the sum's.
        weight = lm_head.weight.to(_computed_in(rows))
        return _Chunks.apply(rows.to(weight.dtype), weight, chunks, look, names)

    values = _call_as(lm_head, product, rows)
    return dict(zip(names, values, strict=True))


def _call_as(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """Calls `module` with `function` as its forward.

    ZeRO-3 gathers a module's weight before it is called, and again before the gradient of what it gave.
    """
    own = vars(module).get("forward")
    vars(module)["forward"] = function
    try:
        return module(*inputs)
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _computed_in(rows: Tensor) -> torch.dtype:
    """Precision of products with `rows`."""
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def _same_autocast(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts with the autocast that is in force now, for a backward pass, which has none."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled=enabled)


class _Chunks(torch.autograd.Function):
    """Logits chunk by chunk, and what `look` keeps of them."""

    @staticmethod
    def forward(
        context: Any, rows: Tensor, weight: Tensor, chunks: Sequence[slice], look: Look, names: list[str]
    ) -> tuple[Tensor, ...]:
        parts = [look(rows[chunk] @ weight.t(), index) for index, chunk in enumerate(chunks)]
        names.extend(parts[0])
        values = tuple(torch.cat([part[name] for part in parts]) for name in names)
        context.save_for_backward(rows, weight)
        context.chunks, context.look, context.autocast = chunks, look, _same_autocast(rows.device)
        context.mark_non_differentiable(*[value for value in values if not value.is_floating_point()])
        return values

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = context.saved_tensors
        of_rows, of_weight = (
            torch.zeros_like(whole) if needed else None
            for whole, needed in zip((rows, weight), context.needs_input_grad, strict=False)
        )

        # A function, so that nothing of a chunk is left when the next one begins.
        def add(index: int, chunk: slice) -> None:
            of_logits = _logits_gradient(context, index, rows[chunk], weight, [given[chunk] for given in gradients])
            if of_rows is not None:
                torch.mm(of_logits, weight, out=of_rows[chunk])
            if of_weight is not None:
                of_weight.addmm_(of_logits.t(), rows[chunk])

        for index, chunk in enumerate(context.chunks):
            add(index, chunk)
        return of_rows, of_weight, None, None, None


def _logits_gradient(
    context: Any,
    index: int,
    rows: Float[Tensor, "chunk hidden"],
    weight: Float[Tensor, "vocab hidden"],
    gradients: Sequence[Tensor],
) -> Float[Tensor, "chunk vocab"]:
    """Gradient of a chunk's logits, which are computed again."""
    with torch.enable_grad(), context.autocast():
        logits = rows.detach().requires_grad_() @ weight.detach().t()
        # Their place in the graph: the logits themselves are needed no longer than `look` needs them.
        place = get_gradient_edge(logits)
        values = context.look(logits, index)
        del logits
    pairs = [pair for pair in zip(values.values(), gradients, strict=True) if pair[0].requires_grad]
    (found,) = torch.autograd.grad([value for value, _ in pairs], [place], [gradient for _, gradient in pairs])
    return found
