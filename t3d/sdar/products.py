"""Matrix products of a model that only decodes: packed for oneDNN on a CPU, joined on other devices.

On a CPU PyTorch multiplies single-precision matrices with MKL, which adds up the terms of a product in an order that
depends on the number of rows and on the maker of the processor, where it is slow besides: on an AMD EPYC oneDNN, which
PyTorch carries too, is 2.3 times as fast, and a row's result is the same whatever rows are beside it.  oneDNN wants the
weights in an order of its own.  On a GPU a product of few rows costs its start, and fewer products are all that helps.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, silu


class PackedLinear(nn.Module):
    """Linear layers of the same inputs as one, without gradients, their weights kept as oneDNN reads them."""

    def __init__(self, *linears: nn.Linear) -> None:
        """Packs a copy of the weights, which must be in single precision on the CPU; outputs follow each other."""
        super().__init__()
        self.in_features, self.out_features = linears[0].in_features, sum(linear.out_features for linear in linears)
        self.bias = _joined_bias(linears)
        weight = torch.cat([linear.weight.detach() for linear in linears])
        # No buffer: an opaque tensor can be neither moved nor saved.
        self.packed = [torch.ops.mkldnn._reorder_linear_weight(weight, None)]

    def forward(
        self,
        rows: Float[Tensor, "*rows inputs"],
        then: Literal["none", "swish", "add", "mul"] = "none",
        other: Float[Tensor, "*rows outputs"] | None = None,
    ) -> Float[Tensor, "*rows outputs"]:
        """The product and the bias, and `then` what else is done before the result goes to memory.

        Args:
            rows: the inputs.
            then: "swish" (SiLU); "add" or "mul", with `other`.
            other: the second operand.
        """
        if rows.numel() <= self.in_features:
            # A single row would go to another kernel, which rounds otherwise; no row would go nowhere.
            result = self(_filled(rows), then, None if other is None else _filled(other))
            return result[:-2].view(*rows.shape[:-1], self.out_features)
        if other is None:
            return torch.ops.mkldnn._linear_pointwise(rows, self.packed[0], self.bias, then, [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(rows, other, self.packed[0], self.bias, then)


class PackedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), in three products: what comes between them is the last act of the one before."""

    def __init__(self, mlp: Any) -> None:
        """Packs a copy of the weights.

        Args:
            mlp: has `gate_proj`, `up_proj` and `down_proj`.
        """
        super().__init__()
        self.gate_proj, self.up_proj = PackedLinear(mlp.gate_proj), PackedLinear(mlp.up_proj)
        self.down_proj = PackedLinear(mlp.down_proj)

    def forward(
        self, rows: Float[Tensor, "*rows hidden"], residual: Float[Tensor, "*rows hidden"] | None = None
    ) -> Float[Tensor, "*rows hidden"]:
        """The MLP of `rows`, added to `residual` if there is one."""
        gated = self.up_proj(rows, "mul", self.gate_proj(rows, "swish"))
        return self.down_proj(gated, "none" if residual is None else "add", residual)


class JoinedLinear(nn.Module):
    """Linear layers of the same inputs as one product, without gradients."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, *linears: nn.Linear) -> None:
        """Joins a copy of the weights, where and as they are; outputs follow each other."""
        super().__init__()
        # Buffers, so that they move with the model; they are no checkpoint's.
        self.register_buffer("weight", torch.cat([layer.weight.detach() for layer in linears]), persistent=False)
        self.register_buffer("bias", _joined_bias(linears), persistent=False)

    def forward(
        self,
        rows: Float[Tensor, "*rows inputs"],
        _then: Literal["none", "add"] = "none",
        other: Float[Tensor, "*rows outputs"] | None = None,
    ) -> Float[Tensor, "*rows outputs"]:
        """The product and the bias, and `other` added if there is one; called as `PackedLinear.forward` is."""
        result = linear(rows, self.weight, self.bias)
        return result if other is None else result + other


class JoinedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) in two products."""

    def __init__(self, mlp: Any) -> None:
        """Joins a copy of the weights; see `PackedMLP`."""
        super().__init__()
        self.gate_up_proj, self.down_proj = JoinedLinear(mlp.gate_proj, mlp.up_proj), JoinedLinear(mlp.down_proj)

    def forward(
        self, rows: Float[Tensor, "*rows hidden"], residual: Float[Tensor, "*rows hidden"] | None = None
    ) -> Float[Tensor, "*rows hidden"]:
        """The MLP of `rows`, added to `residual` if there is one."""
        gate, up = self.gate_up_proj(rows).chunk(2, -1)
        return self.down_proj(silu(gate) * up, "none" if residual is None else "add", residual)


class Products(NamedTuple):
    """How a layer multiplies: its linear layers and its MLP."""

    linear: type[PackedLinear] | type[JoinedLinear]
    mlp: type[PackedMLP] | type[JoinedMLP]


PACKED, JOINED = Products(PackedLinear, PackedMLP), Products(JoinedLinear, JoinedMLP)


def products_for(layer: nn.Module) -> Products | None:
    """What its linear layers' products can become: packed, joined, or nothing.

    Packed, in single precision on a CPU with a PyTorch that carries oneDNN; joined, on other devices.  A layer that is
    divided among processes stays as it is, as does half precision on a CPU.
    """
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    if any(type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter for layer in linears):
        return None
    weight = linears[0].weight
    if weight.device.type != "cpu":
        return JOINED
    return PACKED if weight.dtype == torch.float32 and torch.backends.mkldnn.is_available() else None


def _filled(rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "more width"]:
    return torch.cat([rows.reshape(-1, rows.shape[-1]), rows.new_zeros(2, rows.shape[-1])])


def _joined_bias(linears: tuple[nn.Linear, ...]) -> Float[Tensor, " outputs"] | None:
    if all(layer.bias is None for layer in linears):
        return None
    return torch.cat(
        [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in linears]
    )
