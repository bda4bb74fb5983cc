"""What one denoising step learns at the masked positions: tokens, and the scores that strategies and records need."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t3d.decoding.config import DecodingConfig
from t3d.sampling import best_tokens, draw_tokens, entropy, token_probabilities

ROW_TILE = 64
"""Rows at a time on a CPU: a few dozen rows of a large vocabulary still fit its cache, and bound the memory."""
PRODUCT_BYTES = 256 * 2**20
"""Logits of one product of the output head elsewhere, where each product reads the whole head."""
JUDGED_BYTES = 64 * 2**20
"""Single-precision logits judged at a time there, of which several copies live."""


@dataclass(frozen=True)
class RowTiles:
    """How many masked positions are computed at a time.

    Attributes:
        product: rows that the output head is applied to.
        judged: rows of the result that tokens are drawn from.
    """

    product: int
    judged: int


def row_tiles(vocab_size: int, dtype: torch.dtype, device: torch.device) -> RowTiles:
    """The tiles for a vocabulary, by the device that computes and the type of its logits."""
    if device.type == "cpu":
        return RowTiles(ROW_TILE, ROW_TILE)
    product = max(1, PRODUCT_BYTES // (vocab_size * dtype.itemsize))
    return RowTiles(product, min(product, max(1, JUDGED_BYTES // (vocab_size * torch.float32.itemsize))))


@dataclass(frozen=True)
class Draws:
    """One entry per masked position.

    Attributes:
        tokens: the tokens drawn.
        best: the largest logits.
        score: what the strategy ranks by, a probability or an entropy in nats (anything where nothing is ranked).
        logprobs: if recorded, log-probability of the token under the model's own distribution, in nats.
        entropies: if recorded, entropy of that distribution, in nats.
    """

    tokens: Int[Tensor, " rows"]
    best: Float[Tensor, " rows"]
    score: Float[Tensor, " rows"]
    logprobs: Float[Tensor, " rows"] | None = None
    entropies: Float[Tensor, " rows"] | None = None

    @property
    def failed(self) -> Bool[Tensor, " rows"]:
        """Where the logits are no distribution: one is NaN or +inf, or all are -inf."""
        return (self.best - self.best).isnan()  # fewer operations than isfinite

    def to_host(self) -> "Draws":
        """The same on the CPU: one copy, and the moment at which the host waits for the device."""
        if self.tokens.device.type == "cpu":
            return self
        columns = self.packed()
        # MPS gives a tensor of its own for pinned memory (PyTorch 181374).
        arrived = torch.empty(columns.shape, dtype=columns.dtype, pin_memory=columns.is_cuda)
        return self.unpacked(arrived.copy_(columns))

    def packed(self) -> Int[Tensor, "columns rows"]:
        """All columns in one tensor of 32-bit words, those that are None left out."""
        columns: list[Any] = [getattr(self, field.name) for field in fields(self)]
        words = [
            column.view(torch.int32) if column.is_floating_point() else column.int()
            for column in columns
            if column is not None
        ]
        return torch.stack(words)

    def unpacked(self, words: Int[Tensor, "columns rows"]) -> "Draws":
        """Draws with the columns of `words`, which are where `packed` has put them."""
        rows, found = iter(words), {}
        for field in fields(self):
            column = getattr(self, field.name)
            if column is not None:
                word = next(rows)
                found[field.name] = word.view(torch.float32) if column.is_floating_point() else word.to(column.dtype)
        return Draws(**found)

    def at(self, rows: Bool[Tensor, " rows"] | Int[Tensor, " chosen"] | slice) -> "Draws":
        """Those of some rows."""
        columns = (getattr(self, field.name) for field in fields(self))
        chosen: list[Any] = [None if column is None else column[rows] for column in columns]
        return Draws(*chosen)


def judge(
    logits: Float[Tensor, "rows vocab"],
    uniforms: Float[Tensor, " rows"] | None,
    ranked_by: str | None,
    config: DecodingConfig,
) -> Draws:
    """Draws a token per row and scores it.

    Computes only what is asked for: where every mask of a step is revealed anyway, no score is needed and the
    greedy draw is one pass over the logits.

    Args:
        logits: of the masked positions; the mask token's are overwritten.
        uniforms: the random number of each row; None at temperature 0.
        ranked_by: the score that the strategy reads: "confidence", "entropy" or none.
        config: see `DecodingConfig.confidence` and `DecodingConfig.record` for the distributions.
    """
    logits[:, config.mask_id] = -torch.inf
    scores = logits.float()
    best, tokens = best_tokens(scores)
    drawn_from = own = None
    if uniforms is not None or (ranked_by and config.confidence == "scaled"):
        drawn_from = token_probabilities(scores, config.temperature, config.top_k, config.top_p)
        if uniforms is not None:
            tokens = draw_tokens(drawn_from, uniforms)
    if config.record or (ranked_by and config.confidence == "raw"):
        own = scores.softmax(-1)
    ranked = drawn_from if config.confidence == "scaled" else own
    score = best
    if ranked_by == "confidence" and ranked is not None:
        score = ranked.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if ranked_by == "entropy" and ranked is not None:
        score = entropy(ranked)
    logprobs = entropies = None
    if "logprob" in config.record:
        logprobs = scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    if "entropy" in config.record and own is not None:
        entropies = entropy(own)
    return Draws(tokens, best, score, logprobs, entropies)


def join(tiles: list[Draws]) -> Draws:
    """The draws of consecutive rows as one."""
    if len(tiles) == 1:
        return tiles[0]
    columns = [[getattr(tile, field.name) for tile in tiles] for field in fields(Draws)]
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return Draws(*joined)
