"""From per-row quantities to the terms of the objective, per sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from t3d.objectives.balance import balance_loss
from t3d.objectives.certainty import certainty_loss
from t3d.objectives.cross_entropy import cross_entropy_loss
from t3d.objectives.ddo import ddo_sample_losses
from t3d.objectives.path import path_loss, release_path_loss
from t3d.objectives.ranking import ranking_loss
from t3d.objectives.samples import group_mean
from t3d.objectives.soft import soft_loss
from t3d.sdar.mixture import Routing
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
    router: float = 0.0
    ranking: float = 0.0
    soft: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """True if the reference's forward is needed."""
        return self.ddo > 0 or self.soft > 0

    @property
    def needs_visible_rows(self) -> bool:
        """True if the loss looks at visible positions too."""
        return self.path > 0 and self.path_loss == "release"


def sample_losses(
    rows: Mapping[str, Float[Tensor, " rows"]],
    batch: Batch,
    settings: LossSettings,
    routing: Routing | None = None,
) -> dict[str, Float[Tensor, " samples"]]:
    """Every term of the objective for each sample of the batch, unweighted, and their weighted sum `loss/total`.

    Each term is a mean over a sample's masked positions, so that a sample counts the same whatever its length.

    Args:
        rows: what `t3d.objectives.rows.row_values` gives.
        batch: what the rows are.
        settings: the terms.
        routing: where a mixture of experts sent its tokens: all of them or, in the last layer, the wanted rows.
    """
    num_samples = batch.num_samples
    known = {"sample": batch.sample, "block": batch.block, "coarse_step": batch.coarse_step}
    hidden = {**rows, **known}
    if settings.needs_visible_rows:  # else every row is a masked one, and to look would wait for the device
        hidden = {name: values[batch.masked] for name, values in hidden.items()}
    sample, steps = hidden["sample"], hidden["coarse_step"]
    terms: dict[str, Tensor] = {}
    total = rows["real"].new_zeros(num_samples)
    if settings.cross_entropy:
        terms["loss/cross_entropy"] = cross_entropy_loss(hidden["real"], sample, num_samples)
        total = total + settings.cross_entropy * terms["loss/cross_entropy"]
    if settings.ddo:
        terms |= _ddo(hidden, batch, settings)
        total = total + settings.ddo * terms["loss/ddo"]
    if settings.path:
        terms["loss/path"] = _path(hidden, rows["real"], batch, settings)
        total = total + settings.path * terms["loss/path"]
    if settings.certainty:
        terms["loss/certainty"] = certainty_loss(hidden["entropy"], hidden["correct"], sample, num_samples)
        total = total + settings.certainty * terms["loss/certainty"]
    if settings.ranking:
        terms["loss/ranking"] = ranking_loss(hidden["confidence"], steps, hidden["block"], sample, num_samples)
        total = total + settings.ranking * terms["loss/ranking"]
    if settings.soft:
        divergence, num_steps = hidden["divergence"], settings.num_coarse_steps
        terms["loss/soft"] = soft_loss(divergence, steps, num_steps, sample, num_samples)
        total = total + settings.soft * terms["loss/soft"]
    if routing is not None:
        sample_of = {len(batch.document): batch.document, len(batch.sample): batch.sample}
        routed = torch.cat([sample_of[len(logits)] for logits in routing.logits])
        terms["loss/router"] = balance_loss(torch.cat(routing.logits), routing.num_per_token, routed, num_samples)
        total = total + settings.router * terms["loss/router"]
    return {"loss/total": total, **terms}


def _ddo(hidden: Mapping[str, Tensor], batch: Batch, settings: LossSettings) -> dict[str, Tensor]:
    sample, real, fake = hidden["sample"], hidden["real_ratio"], hidden["fake_ratio"]
    num_samples = batch.num_samples
    unit, num_units = {
        "sample": (sample, num_samples),
        "block": (hidden["block"], batch.num_blocks),
        "token": (torch.arange(len(sample), device=sample.device), len(sample)),
    }[settings.ddo_level]
    loss_real, loss_fake = ddo_sample_losses(real, fake, unit, sample, num_units, num_samples, settings.beta)
    return {
        "loss/ddo": loss_real + settings.alpha * loss_fake,
        "loss/ddo_real": loss_real,
        "loss/ddo_fake": loss_fake,
        "ratio/real": group_mean(real.detach(), sample, num_samples),
        "ratio/fake": group_mean(fake.detach(), sample, num_samples),
    }


def _path(
    hidden: Mapping[str, Tensor], real: Float[Tensor, " rows"], batch: Batch, settings: LossSettings
) -> Float[Tensor, " samples"]:
    num_steps, num_samples = settings.num_coarse_steps, batch.num_samples
    if settings.path_loss == "paper":
        return path_loss(hidden["real"], hidden["coarse_step"], num_steps, hidden["sample"], num_samples)
    rows = batch.response
    return release_path_loss(real[rows], batch.coarse_step[rows], num_steps, batch.sample[rows], num_samples)
