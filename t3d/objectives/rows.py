"""What the terms need of each row's distribution over the vocabulary, all from one look at its logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.certainty import sharpened_entropy
from t3d.objectives.log_probs import expected_log_ratio, full_log_softmax, token_log_probs
from t3d.sampling import draw_tokens


def row_values(
    logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"] | None,
    targets: Int[Tensor, " rows"],
    uniforms: Float[Tensor, " rows"],
    fake_expectation: str,
    reference_temp: float,
    certainty: bool,
) -> dict[str, Tensor]:
    """Per-row quantities, [rows] each, in nats.

    Args:
        logits: of the student.
        reference_logits: of the reference; no gradient flows into them.  None leaves the ratios out.
        targets: the recorded tokens.
        uniforms: numbers that sampled fakes are drawn by.
        fake_expectation: argmax, sample or exact; see `TrainingConfig`.
        reference_temp: temperature of p_ref in d_fake.
        certainty: also return what the certainty term needs.

    Returns:
        `real`, log p_theta(target); with a reference `real_ratio`, log p_theta/p_ref of the target, and `fake_ratio`,
        the same of the reference's own token; with `certainty` the `entropy` at temperature 0.5 and `correct`.

    To first order around student = reference the fake term's gradient flattens the student for argmax fakes, leaves
    it alone for fakes at temperature 1, and sharpens it above.
    """
    log_probs = full_log_softmax(logits)
    values: dict[str, Tensor] = {}
    if reference_logits is None:
        values["real"] = token_log_probs(log_probs, targets)
    else:
        reference = full_log_softmax(reference_logits.detach())
        if fake_expectation == "exact":
            values["real"] = token_log_probs(log_probs, targets)
            values["fake_ratio"] = expected_log_ratio(log_probs, reference, reference_temp)
        else:
            fakes = _fake_tokens(reference, uniforms, fake_expectation, reference_temp)
            # One gather for both: its gradient is a tensor of the vocabulary's size.
            picked = log_probs.gather(-1, torch.stack([targets, fakes], dim=1))
            values["real"] = picked[:, 0]
            values["fake_ratio"] = picked[:, 1] - token_log_probs(reference, fakes)
        values["real_ratio"] = values["real"] - token_log_probs(reference, targets)
    if certainty:
        values["entropy"] = sharpened_entropy(log_probs)
        values["correct"] = log_probs.argmax(-1) == targets
    return values


def _fake_tokens(
    reference: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"], kind: str, temperature: float
) -> Int[Tensor, " rows"]:
    """The reference's own token at each row."""
    if kind == "argmax":
        return reference.argmax(-1)
    return draw_tokens((reference / temperature).softmax(-1), uniforms)[0]
