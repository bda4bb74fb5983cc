"""Ranking confidences by reveal order: a few-step decoder reveals what it is most confident of, all at once.

A decoder that takes larger steps chooses a set of positions by confidence.  This term asks that positions which the
teacher revealed in an earlier coarse step be more confident than those that it left for later ones.  It is none of the
paper's terms.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from t3d.objectives.samples import group_mean


def ranking_loss(
    confidence: Float[Tensor, " rows"],
    coarse_step: Int[Tensor, " rows"],
    block: Int[Tensor, " rows"],
    sample: Int[Tensor, " rows"],
    num_samples: int,
) -> Float[Tensor, " samples"]:
    """Mean over each sample's ordered pairs of masked positions of log(1 + c_later / c_earlier).

    A pair lies in one block, in two coarse steps.  The term is the logistic loss of the difference of log-confidences:
    log 2 where both are equal, 0 where the later one has none.  A sample without a pair has 0.

    Args:
        confidence: log-probability of each masked position's likeliest token, in nats.
        coarse_step: pi_i of each position.
        block: the block of each row; a block's rows are neighbours.
        sample: the sample of each row.
        num_samples: samples in the batch.
    """
    _, sizes = torch.unique_consecutive(block, return_counts=True)
    widest = int(sizes.max()) if len(sizes) else 0
    row = torch.arange(len(block), device=block.device)
    earlier, later = [], []
    # Each row against the one that comes `distance` after it: a block has few rows, and no table is as large as all.
    for distance in range(1, widest):
        near, far = row[:-distance], row[distance:]
        same = block[near] == block[far]
        for first, second in ((near, far), (far, near)):
            ordered = same & (coarse_step[first] < coarse_step[second])
            earlier.append(first[ordered])
            later.append(second[ordered])
    first, second = (torch.cat(rows) if rows else row[:0] for rows in (earlier, later))
    return group_mean(softplus(confidence[second] - confidence[first]), sample[first], num_samples)
