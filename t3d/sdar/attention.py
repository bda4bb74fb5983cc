"""Every attention layout of a block-diffusion model, as pure functions of positions.

Axes: `query` and `key` count tokens of one row; a mask is True where a query may see a key.  A token's block is
`(position - origin) // block_size`; `origin` is 0 where blocks are counted as the decoder counts them (absolute
alignment) and the prompt length where they start at the response (the authors' release).
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PAD_DOCUMENT = -1
"""Document number of a padding token: it sees itself alone, and nothing else sees it."""


def block_index(
    positions: Int[Tensor, "*batch seq"],
    block_size: int | Int[Tensor, "*batch 1"],
    origin: int | Int[Tensor, "*batch 1"] = 0,
) -> Int[Tensor, "*batch seq"]:
    """Block number of each position; before `origin` the numbers are negative (blocks right-aligned to it)."""
    return torch.div(positions - origin, block_size, rounding_mode="floor")


def block_causal_mask(
    query_positions: Int[Tensor, "*batch query"], key_positions: Int[Tensor, "*batch key"], block_size: int
) -> Bool[Tensor, "*batch query key"]:
    """Bidirectional inside a block, causal across blocks (SPEC section 1).

    The same function serves a whole sequence (queries are the keys), prefill and cached decoding (queries are the
    newest blocks): a key of a later block is hidden whatever the cache holds there.
    """
    return (
        block_index(query_positions, block_size)[..., :, None] >= block_index(key_positions, block_size)[..., None, :]
    )


def training_mask(
    blocks: Int[Tensor, "*batch seq"], noisy: Bool[Tensor, "*batch seq"], documents: Int[Tensor, "*batch seq"]
) -> Bool[Tensor, "*batch seq seq"]:
    """Mask of the training layout [prompt][clean response][noisy response], any number of documents to a row.

    A clean token sees the clean tokens of its own and earlier blocks.  A noisy token sees the clean tokens of
    earlier blocks and the noisy tokens of its own: exactly what the decoder shows it in that denoising state.

    Args:
        blocks: block number of each token (see `block_index`).
        noisy: True in the noisy copy, False in prompt and clean copy.
        documents: which sample of the row a token belongs to; `PAD_DOCUMENT` for padding.

    Returns:
        The mask; a padding token sees itself, so that no softmax row is empty.
    """
    query_block, key_block = blocks[..., :, None], blocks[..., None, :]
    query_noisy, key_noisy = noisy[..., :, None], noisy[..., None, :]
    clean_key = ~key_noisy & torch.where(query_noisy, key_block < query_block, key_block <= query_block)
    noisy_key = query_noisy & key_noisy & (key_block == query_block)
    same_document = (documents[..., :, None] == documents[..., None, :]) & (documents[..., None, :] != PAD_DOCUMENT)
    itself = torch.eye(blocks.shape[-1], dtype=torch.bool, device=blocks.device)
    return same_document & (clean_key | noisy_key) | itself


def block_origin_start(position: int, block_size: int, origin: int = 0) -> int:
    """First position of the block that `position` lies in."""
    return origin + (position - origin) // block_size * block_size
