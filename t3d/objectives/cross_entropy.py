"""Cross-entropy of the recorded tokens (Eq. 3, 5 and 16, as the states are)."""

from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.samples import group_mean


def cross_entropy_loss(
    log_probs: Float[Tensor, " rows"], sample: Int[Tensor, " rows"], num_samples: int
) -> Float[Tensor, " samples"]:
    """Mean over each sample's masked positions of -log p_theta(x0 | x_t), in nats.

    Args:
        log_probs: log p_theta of the recorded token at each masked position, in nats.
        sample: the sample of each row.
        num_samples: samples in the batch.
    """
    return group_mean(-log_probs, sample, num_samples)
