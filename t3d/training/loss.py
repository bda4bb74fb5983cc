"""From logits at the rows of a batch to the terms of the objective, per sample."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from t3d.objectives.certainty import certainty_loss
from t3d.objectives.ddo import ddo_terms
from t3d.objectives.log_probs import expected_log_ratio, token_log_probs
from t3d.objectives.path import path_weights, release_path_loss
from t3d.objectives.samples import group_mean
from t3d.sampling import draw_tokens
from t3d.training.packing import Batch


@dataclass(frozen=True)
class LossSettings:
    """Weights and variants of the terms; see `TrainingConfig` and `Objective`."""

    cross_entropy: float
    ddo: float
    path: float
    certainty: float
    alpha: float
    beta: float
    ddo_level: str
    fake_expectation: str
    reference_temp: float
    path_loss: str
    num_coarse_steps: int

    @property
    def needs_reference(self) -> bool:
        """True if the reference's forward is needed."""
        return self.ddo > 0

    @property
    def needs_visible_rows(self) -> bool:
        """True if the loss looks at visible positions too."""
        return self.path > 0 and self.path_loss == "release"


def sample_losses(
    logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"] | None,
    batch: Batch,
    settings: LossSettings,
) -> dict[str, Float[Tensor, " samples"]]:
    """Every term of the objective for each sample of the batch, unweighted, and their weighted sum `loss/total`.

    Each term is a mean over a sample's masked positions, so that a sample counts the same whatever its length.
    """
    logits = logits.float()
    log_probs = logits.log_softmax(-1)
    real = token_log_probs(log_probs, batch.targets)
    hidden = batch.masked
    sample, num_samples = batch.sample[hidden], batch.num_samples
    terms: dict[str, Tensor] = {}
    total = logits.new_zeros(num_samples)
    if settings.cross_entropy:
        terms["loss/cross_entropy"] = group_mean(-real[hidden], sample, num_samples)
        total = total + settings.cross_entropy * terms["loss/cross_entropy"]
    if settings.ddo:
        assert reference_logits is not None
        reference = reference_logits[hidden].float().log_softmax(-1)
        ratios = real[hidden] - token_log_probs(reference, batch.targets[hidden])
        fakes = fake_log_ratio(log_probs[hidden], reference, batch.uniforms[hidden], settings)
        terms |= _ddo(ratios, fakes, batch, settings)
        total = total + settings.ddo * terms["loss/ddo"]
    if settings.path:
        terms["loss/path"] = _path(real, batch, settings)
        total = total + settings.path * terms["loss/path"]
    if settings.certainty:
        terms["loss/certainty"] = certainty_loss(logits[hidden], batch.targets[hidden], sample, num_samples)
        total = total + settings.certainty * terms["loss/certainty"]
    return {"loss/total": total, **terms}


def fake_log_ratio(
    student: Float[Tensor, "rows vocab"],
    reference: Float[Tensor, "rows vocab"],
    uniforms: Float[Tensor, " rows"],
    settings: LossSettings,
) -> Float[Tensor, " rows"]:
    """Log p_theta/p_ref of the reference's own token at each row (d_fake of Eq. 6), in nats.

    To first order around student = reference the fake term's gradient flattens the student for argmax fakes,
    leaves it alone for fakes at temperature 1, and sharpens it above.
    """
    if settings.fake_expectation == "exact":
        return expected_log_ratio(student, reference, settings.reference_temp)
    if settings.fake_expectation == "sample":
        fakes, _ = draw_tokens((reference / settings.reference_temp).softmax(-1), uniforms)
    else:
        fakes = reference.argmax(-1)
    return token_log_probs(student, fakes) - token_log_probs(reference, fakes)


def _ddo(real: Tensor, fake: Tensor, batch: Batch, settings: LossSettings) -> dict[str, Tensor]:
    sample, num_samples = batch.sample[batch.masked], batch.num_samples
    ratio_real, ratio_fake = group_mean(real, sample, num_samples), group_mean(fake, sample, num_samples)
    if settings.ddo_level == "sample":
        loss_real, loss_fake = ddo_terms(ratio_real, ratio_fake, settings.beta)
    elif settings.ddo_level == "token":
        per_token = ddo_terms(real, fake, settings.beta)
        loss_real, loss_fake = (group_mean(part, sample, num_samples) for part in per_token)
    else:
        # Renumbered, as a block whose wanted rows are all visible has no ratio.
        blocks, block = batch.block[batch.masked].unique(return_inverse=True)
        per_block = ddo_terms(group_mean(real, block, len(blocks)), group_mean(fake, block, len(blocks)), settings.beta)
        loss_real, loss_fake = (group_mean(part, batch.block_sample[blocks], num_samples) for part in per_block)
    return {
        "loss/ddo": loss_real + settings.alpha * loss_fake,
        "loss/ddo_real": loss_real,
        "loss/ddo_fake": loss_fake,
        "ratio/real": ratio_real.detach(),
        "ratio/fake": ratio_fake.detach(),
    }


def _path(real: Float[Tensor, " rows"], batch: Batch, settings: LossSettings) -> Float[Tensor, " samples"]:
    coarse: Int[Tensor, " rows"] = batch.coarse_step
    if settings.path_loss == "release":
        rows = batch.response
        return release_path_loss(
            real[rows], coarse[rows], settings.num_coarse_steps, batch.sample[rows], batch.num_samples
        )
    weighted = -path_weights(coarse, settings.num_coarse_steps) * real
    return group_mean(weighted[batch.masked], batch.sample[batch.masked], batch.num_samples)
