"""Faster layers for a model that only decodes: fewer products and operations, and compiled."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from t3d.sdar.backend import ATTENTION, attention
from t3d.sdar.experts import KeptExperts, PackedExperts
from t3d.sdar.mixture import SparseMLP
from t3d.sdar.products import PACKED, PackedLinear, Products, products_for


class PackedLayer(nn.Module):
    """Qwen3's layer without gradients, in fewer operations: starting these is what a few rows cost.

    Queries, keys and values are one product, normalised and rotated together; activation, gate and residual are the
    last act of the products before them.  As in `LastLayer`, the last layer's output projection and MLP work for the
    wanted rows alone.
    """

    head_weights: Tensor
    signs: Tensor

    def __init__(self, layer: Qwen3DecoderLayer, is_last: bool, products: Products) -> None:
        """Copies the layer's weights into `products`."""
        super().__init__()
        attend = layer.self_attn
        self.is_last, self.layer_idx = is_last, attend.layer_idx
        self.scaling, self.dim, self.eps = attend.scaling, attend.head_dim, attend.q_norm.variance_epsilon
        self.attention_type = "full_attention"  # transformers 4 asks each layer
        self.num_keys = attend.k_proj.out_features // self.dim
        self.num_queries = attend.q_proj.out_features // self.dim
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        weights = [attend.q_norm.weight] * self.num_queries + [attend.k_norm.weight] * self.num_keys
        self.register_buffer("head_weights", torch.stack([weight.detach() for weight in weights]), persistent=False)
        signs = weights[0].new_ones(self.dim)
        signs[: self.dim // 2] = -1
        self.register_buffer("signs", signs, persistent=False)
        self.qkv_proj = products.linear(attend.q_proj, attend.k_proj, attend.v_proj)
        self.o_proj = products.linear(attend.o_proj)
        experts = PackedExperts if products is PACKED else KeptExperts
        self.mlp = experts(layer.mlp) if isinstance(layer.mlp, SparseMLP) else products.mlp(layer.mlp)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        attention_mask: Any,
        position_embeddings: tuple[Tensor, Tensor],
        logit_rows: Int[Tensor, " rows"] | None = None,
        **_kwargs: Any,
    ) -> Float[Tensor, "..."]:
        """Runs the layer; arguments and result are those of `LastLayer`."""
        seen = self._attend(self._norm(self.input_layernorm, hidden_states), attention_mask, *position_embeddings)
        if self.is_last and logit_rows is not None:
            seen, hidden_states = (
                rows.flatten(0, 1).index_select(0, logit_rows)[None] for rows in (seen, hidden_states)
            )
        hidden_states = self.o_proj(seen, "add", hidden_states)
        normed = self._norm(self.post_attention_layernorm, hidden_states)
        return self.mlp(normed, hidden_states)

    def _attend(
        self,
        normed: Float[Tensor, "batch seq hidden"],
        attention_mask: Any,
        cosine: Float[Tensor, "#batch seq dim"],
        sine: Float[Tensor, "#batch seq dim"],
    ) -> Float[Tensor, "batch seq queries_by_dim"]:
        heads = self.qkv_proj(normed).unflatten(-1, (-1, self.dim))
        rotated, value = heads.split([self.num_queries + self.num_keys, self.num_keys], -2)
        rotated = rms_norm(rotated, (self.dim,), eps=self.eps) * self.head_weights
        # The half that moves to the front is the one that rotation subtracts.
        turned = rotated.roll(self.dim // 2, -1)
        rotated = torch.addcmul(rotated * cosine[..., None, :], turned, (sine * self.signs)[..., None, :])
        query, key = rotated.transpose(1, 2).split([self.num_queries, self.num_keys], 1)
        seen, _ = attention(self, query, key, value.transpose(1, 2), attention_mask, self.scaling)
        return seen.flatten(-2)

    @staticmethod
    def _norm(norm: Any, rows: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return rms_norm(rows, rows.shape[-1:], norm.weight, norm.variance_epsilon)


def pack_layers(model: nn.Module, products: Products | None = None) -> None:
    """Replaces the layers and the output head of a model that will not be trained any more, where that is possible.

    Args:
        model: SDAR.
        products: which; None: those that suit the device and the type (see `products_for`).
    """
    stack: Any = model.get_submodule("model")
    if stack.config._attn_implementation == ATTENTION and stack.config.hidden_act == "silu":
        for place, layer in enumerate(stack.layers):
            if chosen := products or products_for(layer):
                stack.layers[place] = PackedLayer(layer, place == len(stack.layers) - 1, chosen)
    head = model.get_submodule("lm_head")
    if (products or products_for(head)) is PACKED:  # joined, it would be a copy
        model.set_submodule("lm_head", PackedLinear(head))  # type: ignore[arg-type]


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
