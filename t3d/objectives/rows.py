"""What the terms need of each row's distribution over the vocabulary, all from one look at its logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.certainty import sharpened_entropy
from t3d.objectives.log_probs import expected_log_ratio, full_log_softmax, token_log_probs
from t3d.sampling import best_tokens, draw_tokens, tempered


@dataclass(frozen=True)
class ReferenceRows:
    """What the ratios need of the reference.

    Attributes:
        real: log p_ref of each row's recorded token, in nats.
        fakes: the reference's own token of each row, or None where its expectation is computed.
        log_probs: log p_ref of the fakes [rows], or of every token [rows, vocab].
        whole: log p_ref of every token, where the soft term compares distributions.
    """

    real: Float[Tensor, " rows"]
    fakes: Int[Tensor, " rows"] | None
    log_probs: Float[Tensor, " rows"] | Float[Tensor, "rows vocab"]
    whole: Float[Tensor, "rows vocab"] | None = None


@torch.no_grad()
def reference_rows(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    uniforms: Float[Tensor, " rows"],
    fake_expectation: str,
    temperature: float,
    soft: bool = False,
) -> ReferenceRows:
    """Looks at the reference's logits once.

    Args:
        logits: of the reference.
        targets: the recorded tokens.
        uniforms: numbers that sampled fakes are drawn by.
        fake_expectation: argmax, sample or exact; see `TrainingConfig`.
        temperature: of p_ref in d_fake.
        soft: keep the whole distribution.
    """
    log_probs = full_log_softmax(logits)
    whole = log_probs if soft else None
    real = token_log_probs(log_probs, targets)
    if fake_expectation == "exact":
        return ReferenceRows(real, None, log_probs, whole)
    if fake_expectation == "argmax":
        _, fakes = best_tokens(log_probs)
    else:
        fakes = draw_tokens(tempered(log_probs, temperature).softmax(-1), uniforms)
    return ReferenceRows(real, fakes, token_log_probs(log_probs, fakes), whole)


def row_values(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    reference: ReferenceRows | None,
    temperature: float,
    certainty: bool,
    confidence: bool = False,
) -> dict[str, Tensor]:
    """Per-row quantities, [rows] each, in nats.

    To first order around student = reference the fake term's gradient flattens the student for argmax fakes, leaves
    it alone for fakes at temperature 1, and sharpens it above.

    Args:
        logits: of the student.
        targets: the recorded tokens.
        reference: what the ratios are formed with; None leaves them out.
        temperature: of p_ref in d_fake.
        certainty: also return what the certainty term needs.
        confidence: also return what the ranking term needs.

    Returns:
        `real`, log p_theta(target); with a reference `real_ratio`, log p_theta/p_ref of the target, and `fake_ratio`,
        the same of the reference's own token, and with its `whole` distribution `divergence`, KL(p_ref || p_theta);
        with `certainty` the `entropy` at temperature 0.5 and `correct`; with `confidence` that of the likeliest token.
    """
    log_probs = full_log_softmax(logits)
    fakes = None if reference is None else reference.fakes
    # One gather for both tokens: its gradient is a tensor of the vocabulary's size.
    picked = log_probs.gather(-1, torch.stack([targets] if fakes is None else [targets, fakes], dim=1))
    values = {"real": picked[:, 0]}
    if reference is not None:
        values["real_ratio"] = values["real"] - reference.real
        if fakes is None:
            values["fake_ratio"] = expected_log_ratio(log_probs, reference.log_probs, temperature)
        else:
            values["fake_ratio"] = picked[:, 1] - reference.log_probs
        if reference.whole is not None:
            values["divergence"] = -expected_log_ratio(log_probs, reference.whole, 1.0)
    if certainty:
        values["entropy"] = sharpened_entropy(log_probs)
        values["correct"] = best_tokens(log_probs.detach())[1] == targets
    if confidence:
        values["confidence"] = log_probs.amax(-1)
    return values
