"""Soft targets far in the trajectory: what is revealed late is not known yet, and should not be learnt as if it were.

Cross-entropy asks for the recorded token also where the teacher itself, in the same state, has several in mind; the
path loss (Eq. 8-9) weighs such positions less, and this term asks for the reference's distribution in their place.  It
is none of the paper's terms.  With `training.multi_round=false` the reference is the teacher.
"""

from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.path import path_weights
from t3d.objectives.samples import group_mean


def soft_loss(
    divergence: Float[Tensor, " rows"],
    coarse_step: Int[Tensor, " rows"],
    num_coarse_steps: int,
    sample: Int[Tensor, " rows"],
    num_samples: int,
) -> Float[Tensor, " samples"]:
    """Mean over each sample's masked positions of (1 - w_i) KL(p_ref || p_theta), in nats, w_i as in Eq. 9.

    Args:
        divergence: KL(p_ref || p_theta) at each masked position, in nats.
        coarse_step: pi_i of each position.
        num_coarse_steps: B.
        sample: the sample of each row.
        num_samples: samples in the batch.
    """
    return group_mean((1 - path_weights(coarse_step, num_coarse_steps)) * divergence, sample, num_samples)
