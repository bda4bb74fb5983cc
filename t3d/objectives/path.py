"""Path consistency: cross-entropy weighted by the decoding order (Eq. 8-9)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.samples import group_mean


def path_weights(coarse_step: Int[Tensor, "*rows"], num_coarse_steps: int) -> Float[Tensor, "*rows"]:
    """w_i = (B - pi_i + 1) / B (Eq. 9): tokens revealed early weigh most.

    Two coarse steps weigh 1 and 1/2.

    Args:
        coarse_step: pi_i, 1..B, the coarse step that revealed the token within its block.
        num_coarse_steps: B, ceil(block_size / path_k_steps).
    """
    return (num_coarse_steps - coarse_step + 1) / num_coarse_steps


def path_loss(
    log_probs: Float[Tensor, " rows"],
    coarse_step: Int[Tensor, " rows"],
    num_coarse_steps: int,
    sample: Int[Tensor, " rows"],
    num_samples: int,
) -> Float[Tensor, " samples"]:
    """Mean over each sample's masked positions of -w_i log p_theta(x0_i | x_t) (Eq. 8), in nats.

    Args:
        log_probs: log p_theta of the recorded token at each masked position, in nats.
        coarse_step: pi_i of each position.
        num_coarse_steps: B.
        sample: the sample of each row.
        num_samples: samples in the batch.
    """
    return group_mean(-path_weights(coarse_step, num_coarse_steps) * log_probs, sample, num_samples)


def release_path_loss(
    log_probs: Float[Tensor, " rows"],
    coarse_step: Int[Tensor, " rows"],
    num_coarse_steps: int,
    sample: Int[Tensor, " rows"],
    num_samples: int,
) -> Float[Tensor, " samples"]:
    """The authors' release instead of Eq. 8: per sample, the mean over levels of a mean cross-entropy.

    Level l averages over every position revealed up to coarse step l, masked or visible.  With two coarse steps
    of equal size the early tokens weigh 3:1, not 2:1.

    Args:
        log_probs: log p_theta of the recorded token at each response position, in nats.
        coarse_step: pi_i of each position.
        num_coarse_steps: B.
        sample: the sample of each row.
        num_samples: samples in the batch.
    """
    losses = []
    for level in range(1, num_coarse_steps + 1):
        within = (coarse_step <= level).to(log_probs.dtype)
        totals = log_probs.new_zeros(num_samples).index_add(0, sample, -log_probs * within)
        counts = log_probs.new_zeros(num_samples).index_add(0, sample, within)
        losses.append(totals / counts.clamp(min=1))
    return torch.stack(losses).mean(0)
