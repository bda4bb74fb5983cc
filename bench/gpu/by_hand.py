"""flash-attn's decoding function in torch's operations: slow, but it can be recorded wherever torch runs."""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from t3d.decoding.kernel import Kernel
from t3d.decoding.plan import FlashPlan


def attend_with_kvcache(
    query: Float[Tensor, "rows queries kv_heads dim"],
    keys: Float[Tensor, "slots_or_pages length kv_heads dim"],
    values: Float[Tensor, "slots_or_pages length kv_heads dim"],
    *,
    cache_seqlens: Int[Tensor, " rows"],
    cache_batch_idx: Int[Tensor, " rows"] | None = None,
    block_table: Int[Tensor, "rows most"] | None = None,
    softmax_scale: float,
    causal: bool,
) -> Float[Tensor, "rows queries kv_heads dim"]:
    """Row i sees the first `cache_seqlens[i]` keys of slot `cache_batch_idx[i]`, or of pages `block_table[i]`.

    Shapes follow from shapes alone.
    """
    assert not causal
    assert (cache_batch_idx is None) != (block_table is None)
    places = cache_batch_idx[:, None] if block_table is None else block_table
    keys, values = (
        buffer.index_select(0, places.flatten()).unflatten(0, places.shape).flatten(1, 2) for buffer in (keys, values)
    )
    seen = torch.arange(keys.shape[1], device=keys.device) < cache_seqlens[:, None]
    out = scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=seen[:, None, None],
        scale=softmax_scale,
    )
    return out.transpose(1, 2)


KERNEL = Kernel("flash-attn's function by hand", partial(FlashPlan, flash=attend_with_kvcache), is_fixed=True)
PAGED = replace(KERNEL, is_paged=True)
