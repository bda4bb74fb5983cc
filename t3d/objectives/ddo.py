"""Trajectory-level Direct Discriminative Optimization (Eq. 6-7)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def ddo_terms(
    real_log_ratio: Float[Tensor, " units"], fake_log_ratio: Float[Tensor, " units"], beta: float
) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
    """-log sigmoid(beta * d_real) and -log(1 - sigmoid(beta * d_fake)), each per unit.

    1 - sigmoid(x) = sigmoid(-x): written so, the fake term stays finite where the release's overflows
    (beta * d_fake > 16).
    """
    return -logsigmoid(beta * real_log_ratio), -logsigmoid(-beta * fake_log_ratio)


def ddo_loss(
    real_log_ratio: Float[Tensor, " batch"],
    fake_log_ratio: Float[Tensor, " batch"],
    alpha: float,
    beta: float,
) -> Float[Tensor, ""]:
    """Mean over the batch of -log sigmoid(beta d_real) - alpha log(1 - sigmoid(beta d_fake)).

    Implements Eq. 7 of arXiv:2602.12262, with the release's scale beta and weight alpha.  Worked by hand: both
    ratios 0, alpha 0.5: log 2 + 0.5 log 2 = 1.0397; its gradient is -beta/2 on d_real and +alpha beta/2 on d_fake.

    Args:
        real_log_ratio: d_real, mean over a sample's masked positions of log p_theta/p_ref of the teacher's
            recorded tokens, in nats.
        fake_log_ratio: d_fake, the same under tokens of the reference.
        alpha: weight of the fake term.
        beta: scale of the ratios inside the sigmoid.
    """
    real, fake = ddo_terms(real_log_ratio, fake_log_ratio, beta)
    return torch.mean(real + alpha * fake)
