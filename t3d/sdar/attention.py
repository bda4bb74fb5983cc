"""Every attention layout of a block-diffusion model, as pure functions of positions.

Axes: `query` and `key` count tokens of one row; a mask is True where a query may see a key.  A token's block is
`(position - origin) // block_size`; `origin` is 0 where blocks are counted as the decoder counts them (absolute
alignment) and the prompt length where they start at the response (the authors' release).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


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
    """Bidirectional inside a block, causal across blocks.

    The same function serves a whole sequence (queries are the keys), prefill and cached decoding (queries are the
    newest blocks): a key of a later block is hidden whatever the cache holds there.
    """
    return (
        block_index(query_positions, block_size)[..., :, None] >= block_index(key_positions, block_size)[..., None, :]
    )


@dataclass(frozen=True)
class TrainingTokens:
    """Tokens of a training batch as its attention sees them.

    Attributes:
        block: block number of each token (see `block_index`).
        noisy: True in the noisy copy, False in prompt and clean copy.
        document: the sample that a token belongs to; padding is a document of its own.
    """

    block: Int[Tensor, "..."]
    noisy: Bool[Tensor, "..."]
    document: Int[Tensor, "..."]

    def at(self, places: Any) -> "TrainingTokens":
        """The tokens at `places`: whatever indexes a tensor."""
        return TrainingTokens(self.block[places], self.noisy[places], self.document[places])


def may_see(query: TrainingTokens, key: TrainingTokens) -> Bool[Tensor, "..."]:
    """Attention in the training layout [prompt][clean response][noisy response], element by element.

    A clean token sees the clean tokens of its own and earlier blocks.  A noisy token sees the clean tokens of
    earlier blocks and the noisy tokens of its own: exactly what the decoder shows it in that denoising state.
    """
    clean_key = ~key.noisy & torch.where(query.noisy, key.block < query.block, key.block <= query.block)
    noisy_key = query.noisy & key.noisy & (key.block == query.block)
    return (query.document == key.document) & (clean_key | noisy_key)


def training_mask(queries: TrainingTokens, keys: TrainingTokens) -> Bool[Tensor, "query key"]:
    """`may_see` of every query and every key, any number of documents to a row."""
    return may_see(queries.at((slice(None), None)), keys.at((None,)))


def block_start(position: int, block_size: int, origin: int) -> int:
    """First position of the block that `position` lies in."""
    return origin + (position - origin) // block_size * block_size
