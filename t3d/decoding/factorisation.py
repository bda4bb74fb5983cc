r"""What few steps cost, in nats and without labels: how far the tokens of a step are from being independent.

Let p be the distribution that a model writes one token per step (`t3d.decoding.likelihood`), and q_S that of the same
model and order with S steps per block, which draws the tokens of a step each from its own marginal.  On the model's own
samples x ~ p:

    gap = log p(x | c) - log q_S(x | c),    E[gap] = KL(p || q_S) >= 0

With S = 1, q is the product of one-step marginals q_i = p_theta(x_i | c, masks), and a block's gap is, with p_i the
marginals of p,

    KL(p || \prod_i q_i) = TC + \sum_i KL(p_i || q_i),    TC = KL(p || \prod_i p_i)

where TC is the conditional total correlation of the block given what precedes it (Definition 4.4 of arXiv:2602.12262,
x_s the block, x_t its masks).  A network's one-step marginals need not be those of its own chain rule, so the gap is
an upper bound of TC, exact where they are; it is in any case what the decoder of S steps loses.  With S = 2 it bounds
the sum of Equation 22, TC(x_t | x_T) + TC(x_0 | x_t), with t where the block's first half is revealed.

Two things that it is not.  The order is left to right, where decoders choose by confidence.  And a model that always
writes the same has a gap of 0 whatever it writes: the entropy of its samples is told beside it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from t3d.decoding.likelihood import iter_likelihoods
from t3d.sdar.modeling import SDARForCausalLM

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of a response."""


@dataclass(frozen=True)
class Gap:
    """One sample's gap; that of several is their sum.

    Attributes:
        nats: log p - log q; below 0 for some samples, not in the mean.
        surprise: -log p, in nats.
        num_blocks: blocks that hold a token of the response.
        num_tokens: of the response.
    """

    nats: float
    surprise: float
    num_blocks: int
    num_tokens: int


@dataclass(frozen=True)
class Factorisation:
    """Means over samples.

    Attributes:
        nats_per_block: all gaps over all blocks.
        stderr: of it; see `mean_gap`.
        nats_per_token: all gaps over all tokens.
        entropy_per_block: -log p of all samples over all blocks, which estimates p's entropy.
        num_samples: what was drawn: responses, or problems where each has several.
        num_blocks: of all of them.
        num_tokens: of all of them.
    """

    nats_per_block: float
    stderr: float
    nats_per_token: float
    entropy_per_block: float
    num_samples: int
    num_blocks: int
    num_tokens: int


def gaps(
    model: SDARForCausalLM,
    pairs: Sequence[Pair],
    mask_id: int,
    block_size: int,
    few: Iterable[int] = (1,),
    max_active: int = 32,
    report: Callable[[], object] = lambda: None,
) -> dict[int, list[Gap]]:
    """The gaps of the pairs, in their order, for each number of denoising steps per block among `few`.

    Args:
        model: the network, in eval mode, on any device.
        pairs: the model's own samples, of the sequential decoder with a step per position, at temperature 1.
        mask_id: id of the mask token.
        block_size: positions per block.
        few: numbers of steps, each at most `block_size`.
        max_active: most pairs in one forward; results do not depend on it.
        report: called for every pair scored, 1 + the number of `few` times each.

    Raises:
        UserError: see `iter_likelihoods`.
    """

    def log_probs(steps: int) -> list[float]:
        found = [math.nan] * len(pairs)
        for place, likelihood in iter_likelihoods(model, pairs, mask_id, block_size, max_active, steps):
            found[place] = likelihood.log_prob
            report()
        return found

    chain = log_probs(block_size)
    sizes = [(num_blocks(len(prompt), len(response), block_size), len(response)) for prompt, response in pairs]
    return {
        steps: [Gap(p - q, -p, *size) for p, q, size in zip(chain, log_probs(steps), sizes, strict=True)]
        for steps in few
    }


def num_blocks(prompt_length: int, response_length: int, block_size: int) -> int:
    """Blocks that hold a token of the response; the prompt's tail may share the first of them."""
    if not response_length:
        return 0
    return (prompt_length + response_length - 1) // block_size - prompt_length // block_size + 1


def joined(samples: Sequence[Gap]) -> Gap:
    """The gap of several samples together."""
    return Gap(
        math.fsum(gap.nats for gap in samples),
        math.fsum(gap.surprise for gap in samples),
        sum(gap.num_blocks for gap in samples),
        sum(gap.num_tokens for gap in samples),
    )


def mean_gap(found: Sequence[Gap]) -> Factorisation:
    r"""Ratios of sums, with the linearised standard error of nats per block.

    With gap g_i and b_i blocks of sample i: r = \sum g_i / \sum b_i, stderr = \sqrt{\sum (g_i - r b_i)^2} / \sum b_i.

    Args:
        found: of independent samples (those of one problem `joined`).  Where none has a token, ratios are nan.
    """
    total = joined(found)
    blocks, tokens = total.num_blocks or math.nan, total.num_tokens or math.nan
    ratio = total.nats / blocks
    squares = sum((gap.nats - ratio * gap.num_blocks) ** 2 for gap in found)
    return Factorisation(
        nats_per_block=ratio,
        stderr=math.sqrt(squares) / blocks,
        nats_per_token=total.nats / tokens,
        entropy_per_block=total.surprise / blocks,
        num_samples=sum(gap.num_tokens > 0 for gap in found),
        num_blocks=total.num_blocks,
        num_tokens=total.num_tokens,
    )
