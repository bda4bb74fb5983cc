"""The certainty term of dParallel: sharpen what is already right."""

from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.samples import group_mean

CERTAINTY_TEMPERATURE = 0.5


def certainty_loss(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    sample: Int[Tensor, " rows"],
    num_samples: int,
) -> Float[Tensor, " samples"]:
    """Mean over each sample's correctly predicted positions of the entropy at temperature 0.5, in nats.

    A position is correct when the argmax of `logits` is the target; wrong ones carry no gradient here.
    """
    correct = logits.argmax(-1) == targets
    sharpened = (logits[correct] / CERTAINTY_TEMPERATURE).log_softmax(-1)
    entropy = -(sharpened.exp() * sharpened).sum(-1)
    return group_mean(entropy, sample[correct], num_samples)
