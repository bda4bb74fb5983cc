"""The certainty term of dParallel: sharpen what is already right."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t3d.objectives.samples import group_mean

CERTAINTY_TEMPERATURE = 0.5


def sharpened_entropy(log_probs: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Entropy of each row at temperature 0.5, in nats."""
    sharpened = (log_probs / CERTAINTY_TEMPERATURE).log_softmax(-1)
    return -(sharpened.exp() * sharpened).sum(-1)


def certainty_loss(
    entropy: Float[Tensor, " rows"], correct: Bool[Tensor, " rows"], sample: Int[Tensor, " rows"], num_samples: int
) -> Float[Tensor, " samples"]:
    """Mean over each sample's correctly predicted positions of the entropy; wrong ones carry no gradient here.

    Args:
        entropy: of each masked position, sharpened, in nats.
        correct: True where the student's argmax is the recorded token.
        sample: the sample of each row.
        num_samples: samples in the batch.
    """
    return group_mean(entropy, torch.where(correct, sample, num_samples), num_samples)
