"""What autograd keeps of a network's forward pass, counted on fake tensors: for `t3d.training.memory`."""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from t3d.sdar.backend import AttentionPlan
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.mixture import NETWORKS, SDARMoeConfig
from t3d.training.routed import EvenExperts


@dataclass
class Kept:
    """Counts what autograd keeps for the backward pass, a storage once, parameters never."""

    parameters: set[int]
    storages: dict[int, int] = field(default_factory=dict)

    def __call__(self, tensor: Tensor) -> Tensor:
        """As a hook on saved tensors."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters:
            self.storages[storage._cdata] = storage.nbytes()
        return tensor


class _FusedAttention(torch.autograd.Function):
    """Attention as a fused kernel keeps it: its inputs, its output and one number per query and head."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen = torch.empty_like(query)
        context.save_for_backward(query, key, value, seen, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return seen


class _FusedPlan(AttentionPlan):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one layer."""
        return _FusedAttention.apply(query, key, value).transpose(1, 2)


def activations(
    shape: SDARConfig, tokens: int, computed: int, autocast: bool, recomputed: int | None
) -> tuple[float, float]:
    """Bytes that the layers keep for the backward pass, and bytes that it works with in one layer.

    Args:
        shape: of the network.
        tokens: in one micro-batch.
        computed: bytes per number of the network's products.
        autocast: the weights are fp32, and only products are computed in fewer bytes.
        recomputed: layers whose activations are recomputed; None: all.
    """
    fields = shape.to_json_string(use_diff=False)
    one, two = (kept_bytes(fields, layers, tokens, computed, autocast) for layers in (1, 2))
    layer, rest = two - one, 2 * one - two
    layer_input = tokens * shape.hidden_size * (4 if autocast else computed)
    few = shape.num_hidden_layers if recomputed is None else min(recomputed, shape.num_hidden_layers)
    others = shape.num_hidden_layers - few
    # The first ones are recomputed when the others' activations are gone.
    again = 1.25 - others if few else 0.0
    return rest + few * layer_input + others * layer, max(0.5 if others else 0.0, again) * layer


@cache
def kept_bytes(fields: str, layers: int, tokens: int, computed: int, autocast: bool) -> float:
    """Bytes that autograd keeps of a forward through `layers` layers and the final norm.

    Every layer of a mixture of experts is counted as a sparse one.

    Args:
        fields: `config.json` of the network.
        layers: in place of its own number.
        tokens: of the forward, one row.
        computed: see `activations`.
        autocast: see `activations`.
    """
    known = json.loads(fields)
    shape = NETWORKS[known["model_type"]][0](**{**known, "num_hidden_layers": layers, "layer_types": None})
    low = computed < 4
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast and low):
        dtype = torch.bfloat16 if low and not autocast else torch.float32
        network = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        if isinstance(shape, SDARMoeConfig):
            for layer in network.model.layers:
                layer.mlp = EvenExperts(shape, dtype)
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        kept = Kept({parameter.untyped_storage()._cdata for parameter in network.parameters()})
        with saved_tensors_hooks(kept, lambda tensor: tensor):
            network(ids, _FusedPlan(), torch.zeros_like(ids), head=lambda _head, rows: rows)
    return float(sum(kept.storages.values()))
