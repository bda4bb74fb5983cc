"""A micro-batch's forward passes: one of the reference, one of the student, and the losses of its samples.

The output head works on the rows that the loss reads, and never on more of them at once than fit a fixed size: with
a vocabulary of 151,936 the logits of one sample would be larger than everything else that its step keeps.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t3d.objectives.rows import row_values
from t3d.training.loss import LossSettings, sample_losses
from t3d.training.packing import Batch

CHUNK_BYTES = 128 * 2**20
"""Size of the single-precision logits of one chunk.  A handful of such tensors live at a time, never a larger one."""


def batch_losses(
    student: nn.Module, reference: nn.Module | None, batch: Batch, settings: LossSettings
) -> dict[str, Float[Tensor, " samples"]]:
    """The terms of each sample of `batch` (see `sample_losses`).

    Args:
        student: the model that is trained, in whatever wraps it.
        reference: the frozen reference, if the terms need it.
        batch: the samples in their states.
        settings: the terms.
    """
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.plan,
        "position_ids": batch.position_ids,
        "logit_rows": batch.logit_rows,
    }
    compared = None
    if reference is not None:
        with torch.no_grad():
            compared = reference.get_submodule("lm_head"), reference(**inputs, head=_hidden_rows)
    return sample_losses(student(**inputs, head=RowHead(batch, settings, compared)), batch, settings)


def _hidden_rows(_lm_head: nn.Module, rows: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
    """As a model's `head`: the hidden states themselves, to apply the output head to them later."""
    return rows


class RowHead:
    """As the student's `head`: from hidden states to per-row quantities, chunk by chunk.

    Every chunk's logits are computed anew in the backward pass, except where one chunk holds every row.
    """

    def __init__(
        self,
        batch: Batch,
        settings: LossSettings,
        reference: tuple[Callable[[Tensor], Tensor], Float[Tensor, "rows hidden"]] | None,
    ) -> None:
        """Remembers what the rows are compared with.

        Args:
            batch: the rows' targets and uniforms.
            settings: the terms that will be computed.
            reference: its output head and its hidden states of the same rows, if the terms need it.
        """
        self.batch, self.settings, self.reference = batch, settings, reference

    def __call__(self, lm_head: nn.Linear, rows: Float[Tensor, "rows hidden"]) -> dict[str, Tensor]:
        """What `row_values` gives for all rows."""
        size = max(1, CHUNK_BYTES // (4 * lm_head.out_features))
        chunks = [slice(first, first + size) for first in range(0, max(1, len(rows)), size)]
        compute = self._values if len(chunks) == 1 else partial(_recomputed, self._values)
        parts = [compute(lm_head, rows[chunk], chunk) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _values(self, lm_head: nn.Module, rows: Float[Tensor, "chunk hidden"], chunk: slice) -> dict[str, Tensor]:
        reference_logits = None
        if self.reference is not None:
            reference_head, reference_rows = self.reference
            with torch.no_grad():
                reference_logits = reference_head(reference_rows[chunk])
        return row_values(
            lm_head(rows),
            reference_logits,
            self.batch.targets[chunk],
            self.batch.uniforms[chunk],
            self.settings.fake_expectation,
            self.settings.reference_temp,
            certainty=self.settings.certainty > 0,
        )


def _recomputed(
    compute: Callable[..., dict[str, Tensor]], lm_head: nn.Module, rows: Tensor, chunk: slice
) -> dict[str, Tensor]:
    return checkpoint(compute, lm_head, rows, chunk, use_reentrant=False, preserve_rng_state=False)
