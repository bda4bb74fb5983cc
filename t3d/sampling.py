"""Drawing one token per masked position, with the confidence and entropy the strategies rank by.

Rows are masked positions and are treated alone: no result depends on the rows beside it.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

BELOW_ONE = 1 - 2**-22
"""A factor that keeps a target strictly below the last running sum, after rounding too."""

_SMALL_TEMPERATURE = 1e-6
"""Below it a quotient of logits could overflow.  Above it nothing is subtracted, which would cost another pass."""


def response_uniforms(
    seed: int, stream: int, num_blocks: int, denoising_steps: int, block_size: int
) -> NDArray[np.float32]:
    """Uniform numbers [num_blocks, denoising_steps, block_size] of one response's own random stream.

    They depend on (seed, stream) and their place alone: not on batch, order or process.  A longer response
    extends the same numbers.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
    return generator.random((num_blocks, denoising_steps, block_size), dtype=np.float32)


def tempered(scores: Float[Tensor, "rows vocab"], temperature: float) -> Float[Tensor, "rows vocab"]:
    """Scores divided by a temperature above 0, up to a number per row: their softmax is the tempered distribution.

    However small the temperature, the best token's quotient stays finite: it then takes all the mass, and equally
    good ones share it.
    """
    if temperature < _SMALL_TEMPERATURE:
        scores = scores - scores.amax(-1, keepdim=True)
        temperature = max(temperature, torch.finfo(scores.dtype).tiny)
    return scores / temperature


def token_probabilities(
    scores: Float[Tensor, "rows vocab"], temperature: float, top_k: int, top_p: float
) -> Float[Tensor, "rows vocab"]:
    """The distribution tokens are drawn from: tempered, then cut to top-k, then to top-p, renormalised.

    Temperature 0 gives the distribution at temperature 1, from which the caller takes the argmax.

    Args:
        scores: logits in single precision, -inf for what must never be drawn (the mask token: it is an input,
            never an answer).
        temperature: at least 0.
        top_k: tokens kept; 0 keeps all.
        top_p: mass kept, in (0, 1].
    """
    if temperature > 0:
        scores = tempered(scores, temperature)
    if 0 < top_k < scores.shape[-1]:
        kth_best = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth_best, -torch.inf)
    probabilities = scores.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(beyond, 0))
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def best_tokens(
    scores: Float[Tensor, "rows vocab"],
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The largest score of each row and its token, the first of equals: `scores.max(-1)`, several times faster.

    On a CPU torch looks for an index element by element, NumPy does not.
    """
    if scores.device.type != "cpu":
        best, tokens = scores.max(-1)
        return best, tokens
    tokens = torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), tokens


def draw_tokens(probabilities: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """One token per row, by the inverse distribution function of a uniform number.

    In two passes: the groups of the vocabulary are added up and one is found, then the token in it.  A running sum of
    all probabilities would be written to memory and read again.
    """
    groups = probabilities.unflatten(-1, (-1, math.gcd(probabilities.shape[-1], 256)))
    upto = groups.sum(-1).cumsum(-1)
    targets = uniforms[:, None] * upto[:, -1:] * BELOW_ONE
    group = _first_above(upto, targets)
    before = torch.cat([torch.zeros_like(upto[:, :1]), upto], 1).gather(-1, group)
    within = groups.take_along_dim(group[..., None], 1)[:, 0].cumsum(-1)
    # Both sums round, so that what is left of the target may lie beyond the group's last token.
    left = torch.minimum(targets - before, within[:, -1:] * BELOW_ONE)
    return (group * groups.shape[-1] + _first_above(within, left))[:, 0]


def _first_above(cumulative: Float[Tensor, "rows places"], targets: Float[Tensor, "rows 1"]) -> Int[Tensor, "rows 1"]:
    """The first place whose running sum is above the target: never one that adds nothing to it."""
    # A row that is not finite (reported by the caller) can point beyond the last place.
    return torch.searchsorted(cumulative, targets, right=True).clamp(max=cumulative.shape[-1] - 1)


def entropy(probabilities: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Entropy of each row, in nats."""
    # torch.special.entr says the same but is ten times slower on a CPU; 0 * log(tiny) is 0.
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log()).sum(-1)
