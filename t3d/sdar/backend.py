"""The network's attention: dense masks by SDPA, and plans, which know the layout of a flat batch.

A dense mask over a padded batch computes what is thrown away.  A plan instead gets every token of a forward in one
row, [1, tokens], so that the linear layers see real tokens alone, and computes attention itself, sequence by sequence
or however its layout allows.  Decoding (sequences in different phases, keys in a cache) and training (packed
documents) each bring their own.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from t3d.sdar.configuration import SDARConfig

ATTENTION = "sdar"
"""Name under which transformers finds `attention`; it stands wherever "sdpa" would."""

Queries: TypeAlias = Float[Tensor, "batch heads tokens dim"]
Keys: TypeAlias = Float[Tensor, "batch kv_heads tokens dim"]
Attended: TypeAlias = Float[Tensor, "batch tokens heads dim"]
"""What attention takes (keys and values have one shape) and gives; the batch of a flat row of tokens is 1."""


class Heads(NamedTuple):
    """The shape of a network's attention: query heads, key heads, and their width."""

    queries: int
    keys: int
    dim: int

    @classmethod
    def of(cls, config: SDARConfig) -> "Heads":
        """A network's."""
        return cls(
            config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads, config.head_dim
        )


TOLERANCE = 0.05
"""Relative error that a kernel on trial may have: half precision lies well below, a mistake far above."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Size of the difference as a share of the expected values'; not a number where `found` is not."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


class AttentionPlan(ABC):
    """How the tokens of one forward attend to each other, and to what earlier forwards left."""

    @abstractmethod
    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Attention of one layer, rotary embeddings applied.

        Args:
            layer: number of the layer, for a plan that keeps keys and values.
            query: of every token of the forward, in the order of `input_ids`.
            key: likewise; `heads` is a multiple of `kv_heads`.
            value: likewise.
            scale: factor on the scores before the softmax.
        """


def masked_kernels(device_type: str) -> AbstractContextManager[Any]:
    """The kernels of torch's that may compute attention under a mask, for as long as the context lasts.

    On CUDA the memory-efficient one, or plain products where that cannot (bfloat16 below compute capability 8.0).
    Left to itself, torch takes cuDNN's on Hopper and Blackwell (not in every release).  That one plans anew for each
    shape it has not met, and a decoder's shapes change at every forward.  Torch's flash kernel takes no masks.
    The setting is the whole process's and is put back at the end.
    """
    if device_type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def masked_attention(
    query: Float[Tensor, "batch heads query dim"],
    key: Float[Tensor, "batch kv_heads key dim"],
    value: Float[Tensor, "batch kv_heads key dim"],
    mask: Bool[Tensor, "#batch 1 query key"] | None,
    scale: float,
) -> Float[Tensor, "batch heads query dim"]:
    """Grouped-query attention under a mask (True: may see; None: sees everything)."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and mask is not None and query.is_cuda:
        # No fused CUDA kernel takes a mask and shared key heads: SDPA would compute all scores in memory.
        groups = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), False
    with nullcontext() if mask is None else masked_kernels(query.device.type):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


class CachedPlan(AttentionPlan):
    """A padded batch under a dense mask, over what a transformers cache holds and the forward's own tokens."""

    def __init__(self, cache: Cache, mask: Bool[Tensor, "#batch 1 query key"]) -> None:
        """Takes the cache, which the forward adds to, and who may see which of its keys."""
        self.cache, self.mask = cache, mask

    def attend(self, layer: int, query: Queries, key: Keys, value: Keys, scale: float) -> Attended:
        """Attention of one layer."""
        keys, values = self.cache.update(key, value, layer)
        return masked_attention(query, keys, values, self.mask, scale).transpose(1, 2)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | AttentionPlan,
    scaling: float,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: [batch, heads, query, dim] in, [batch, query, heads, dim] out."""
    if isinstance(attention_mask, AttentionPlan):
        return _follow(attention_mask, module, query, key, value, scaling), None
    return masked_attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


@torch.compiler.disable
def _follow(
    plan: AttentionPlan, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> Tensor:
    """Leaves compiled code: a plan's layout changes with every forward, and a layer's number tells it from the others.

    The number must be read out here: compiled code that reads it serves that layer alone.
    """
    return plan.attend(int(module.layer_idx), query, key, value, scaling)  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, attention)
