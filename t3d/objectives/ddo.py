"""Trajectory-level Direct Discriminative Optimization (Eq. 6-7)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from t3d.objectives.samples import group_mean


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


def ddo_sample_losses(
    real_log_ratio: Float[Tensor, " rows"],
    fake_log_ratio: Float[Tensor, " rows"],
    unit: Int[Tensor, " rows"],
    sample: Int[Tensor, " rows"],
    num_units: int,
    num_samples: int,
    beta: float,
) -> tuple[Float[Tensor, " samples"], Float[Tensor, " samples"]]:
    """The real and the fake term of Eq. 7 for each sample: ratios averaged over units, then the units' terms.

    Args:
        real_log_ratio: log p_theta/p_ref of the recorded token at each masked position, in nats.
        fake_log_ratio: the same of the reference's own token.
        unit: what ratios are averaged over before the sigmoid: a number per sample, block or row.
        sample: the sample of each row; a unit lies in one sample.
        num_units: more than the largest unit.
        num_samples: samples in the batch.
        beta: scale of the ratios inside the sigmoid.
    """
    # A unit without masked positions has no ratio, and is left out.
    unit_sample = sample.new_full((num_units,), num_samples).scatter(0, unit, sample)
    real, fake = (group_mean(ratio, unit, num_units) for ratio in (real_log_ratio, fake_log_ratio))
    losses = ddo_terms(real, fake, beta)
    return group_mean(losses[0], unit_sample, num_samples), group_mean(losses[1], unit_sample, num_samples)
