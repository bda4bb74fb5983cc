"""The balance loss of a mixture of experts: tokens that all go to the same experts leave the others untrained."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.samples import group_mean


def balance_loss(
    logits: Float[Tensor, "rows experts"],
    num_per_token: int,
    sample: Int[Tensor, " rows"],
    num_samples: int,
) -> Float[Tensor, " samples"]:
    """The auxiliary loss of the Switch Transformer (arXiv:2101.03961, Eq. 4-6) for each sample.

    With E experts, f_e the share of rows that go to expert e and P_e its mean probability, it is E * sum_e f_e P_e:
    `num_per_token` where experts share evenly, more where they do not.  Peers take the means over a micro-batch; over
    a sample, a token's loss does not depend on what else was packed beside it.

    Args:
        logits: of the routers, a row for each token and layer.
        num_per_token: experts that a token goes to.
        sample: sample of each row; rows of others, such as padding, have `num_samples` or more.
        num_samples: samples of the batch.
    """
    probabilities, sample = logits.float().softmax(-1), sample.clamp(max=num_samples)
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(num_per_token, -1).indices, 1)
    shares, means = (group_mean(values, sample, num_samples) for values in (chosen, probabilities))
    return logits.shape[-1] * (shares * means).sum(-1)
