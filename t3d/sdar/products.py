"""Faster layers for a model that only decodes.

On a CPU the linear layers are replaced, which also makes a row's result the same whatever is decoded beside it.
PyTorch multiplies single-precision matrices with MKL, which adds up the terms of a product in an order that depends
on the number of rows and on the maker of the processor, where it is slow besides: on an AMD EPYC oneDNN, which PyTorch
carries too, is 2.3 times as fast.  oneDNN wants the weights in an order of its own.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer without gradients whose weights are kept as oneDNN reads them."""

    def __init__(self, linear: nn.Linear) -> None:
        """Packs a copy of the weights of `linear`, which must be in single precision on the CPU."""
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        # No buffer: an opaque tensor can be neither moved nor saved.
        self.packed = [torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)]

    def forward(self, rows: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """The product, and the bias."""
        if rows.numel() > self.in_features:
            return self._product(rows)
        # A single row would go to another kernel, which rounds otherwise; no row would go nowhere.
        filled = torch.cat([rows.reshape(-1, self.in_features), rows.new_zeros(2, self.in_features)])
        return self._product(filled)[:-2].view(*rows.shape[:-1], self.out_features)

    def _product(self, rows: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        return torch.ops.mkldnn._linear_pointwise(rows, self.packed[0], self.bias, "none", [], "")


def pack_products(model: nn.Module) -> None:
    """Replaces the linear layers of a model that will not be trained any more, where that is possible.

    It is for single precision on the CPU with a PyTorch that carries oneDNN.  Everywhere else nothing happens.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
                setattr(parent, name, PackedLinear(child))


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Lets torch.compile fuse what each layer does around its products; attention stays the plan's.

    The first forwards take about half a minute.  All layers share what is compiled, and the number of tokens is
    free.  It rounds otherwise than the layers do uncompiled.

    Args:
        model: with its layers in `model.layers`, as SDAR has them.
        **options: of torch.compile.
    """
    for layer in model.get_submodule("model.layers").children():
        layer.compile(dynamic=True, **options)
