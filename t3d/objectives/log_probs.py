"""Log-probabilities of given tokens, and likelihood ratios against the reference."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t3d.sampling import tempered


def full_log_softmax(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """Log-probabilities in at least single precision, whatever the network computes in."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def token_log_probs(log_probs: Float[Tensor, "rows vocab"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Log p(token) of each row, in nats."""
    return log_probs.gather(-1, tokens[:, None])[:, 0]


def expected_log_ratio(
    student: Float[Tensor, "rows vocab"], reference: Float[Tensor, "rows vocab"], temperature: float
) -> Float[Tensor, " rows"]:
    """E over x ~ p_ref at `temperature` of log p_theta(x) / p_ref(x), exactly, per position, in nats.

    The fake term's expectation (Eq. 6-7), available in closed form because p_ref factorises over masked
    positions.  At temperature 1 it is -KL(p_ref || p_theta), at most 0.

    Args:
        student: log p_theta.
        reference: log p_ref; no gradient flows into it.
        temperature: of the distribution the expectation is taken over, above 0.
    """
    reference = reference.detach()
    weights = tempered(reference, temperature).softmax(-1)
    # 0 * (-inf - -inf) is 0 here: a token the reference excludes has no weight.
    return (weights * torch.where(weights > 0, student - reference, 0)).sum(-1)
