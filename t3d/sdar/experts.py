"""Experts of a model that only decodes."""

from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t3d.sdar.mixture import SparseMLP, experts_of
from t3d.sdar.products import PackedLinear, PackedMLP


class PackedExperts(nn.Module):
    """A router and its experts without gradients, whose result for a row is the same whatever rows are beside it.

    How many rows an expert gets depends on the neighbours, but no packed product does.  A row's experts are added up
    in the order of their numbers, one at a time.
    """

    def __init__(self, mlp: SparseMLP) -> None:
        """Packs a copy of the weights, which must be in single precision on the CPU."""
        super().__init__()
        self.num_per_row, self.normalised = mlp.num_per_row, mlp.normalised
        self.router = PackedLinear(_linear(mlp.gate.weight))
        self.experts = nn.ModuleList(
            PackedMLP(SimpleNamespace(gate_proj=_linear(gate), up_proj=_linear(up), down_proj=_linear(down)))
            for gate, up, down in experts_of(mlp)
        )

    def forward(
        self, rows: Float[Tensor, "*rows hidden"], residual: Float[Tensor, "*rows hidden"]
    ) -> Float[Tensor, "*rows hidden"]:
        """Each row's mixture of its experts, added to `residual`."""
        flat = rows.reshape(-1, rows.shape[-1])
        shares, chosen = self.router(flat).softmax(-1).topk(self.num_per_row, -1)
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        mixed = torch.zeros_like(flat)
        for number in chosen.unique().tolist():
            places, ranks = torch.where(chosen == number)
            expert = self.experts[number](flat.index_select(0, places))
            mixed.index_add_(0, places, expert * shares[places, ranks, None])
        return residual + mixed.view_as(rows)


class KeptExperts(nn.Module):
    """A router and its experts as they are, which on a GPU are few products already."""

    def __init__(self, mlp: SparseMLP) -> None:
        """Keeps the MLP itself."""
        super().__init__()
        self.mixture = mlp

    def forward(
        self, rows: Float[Tensor, "*rows hidden"], residual: Float[Tensor, "*rows hidden"]
    ) -> Float[Tensor, "*rows hidden"]:
        """Each row's mixture of its experts, added to `residual`."""
        return residual + self.mixture(rows)


def _linear(weight: Float[Tensor, "outputs inputs"]) -> nn.Linear:
    """A linear layer around a weight that is there already."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return linear
