"""A micro-batch's forward passes: one of the reference, one of the student, and the losses of its samples.

The output head works on the rows that the loss reads, and never on more of them at once than fit a fixed size: with
a vocabulary of 151,936 the logits of one sample would be larger than everything else that its step keeps.
"""

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from t3d.objectives.rows import ReferenceRows, reference_rows, row_values
from t3d.sdar.mixture import recorded_routing
from t3d.training.clock import Part, untimed
from t3d.training.head import chunked
from t3d.training.loss import LossSettings, sample_losses
from t3d.training.packing import Batch

CHUNK_BYTES = 128 * 2**20
"""Size of the single-precision logits of one chunk.  A handful of such tensors live at a time, never a larger one."""


def batch_losses(
    student: nn.Module, reference: nn.Module | None, batch: Batch, settings: LossSettings, part: Part = untimed
) -> dict[str, Float[Tensor, " samples"]]:
    """The terms of each sample of `batch` (see `sample_losses`).

    Args:
        student: the model that is trained, in whatever wraps it.
        reference: the frozen reference, if the terms need it.
        batch: the samples in their states.
        settings: the terms.
        part: measures the networks' parts "reference" and "student".
    """
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.plan,
        "position_ids": batch.position_ids,
        "logit_rows": batch.logit_rows,
    }
    compared = None
    if reference is not None:
        with torch.no_grad(), part("reference"):
            compared = reference.get_submodule("lm_head"), reference(**inputs, head=_hidden_rows)
    with part("student"):
        with recorded_routing(student) if settings.router else nullcontext() as routing:
            rows = student(**inputs, head=RowHead(batch, settings, compared, part))
        return sample_losses(rows, batch, settings, routing)


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
        reference: tuple[nn.Module, Float[Tensor, "rows hidden"]] | None,
        part: Part = untimed,
    ) -> None:
        """Remembers what the rows are compared with.

        Args:
            batch: the rows' targets and uniforms.
            settings: the terms that will be computed.
            reference: its output head and its hidden states of the same rows, if the terms need it.
            part: measures the part "reference".
        """
        self.batch, self.settings, self.reference, self.part = batch, settings, reference, part

    def __call__(self, lm_head: nn.Linear, rows: Float[Tensor, "rows hidden"]) -> dict[str, Tensor]:
        """What `row_values` gives for all rows."""
        size = max(1, CHUNK_BYTES // (4 * lm_head.out_features))
        num_chunks = self._agreed(-(-len(rows) // size))
        if num_chunks <= 1:
            everything = slice(None)
            # The reference first: of its logits only what is needed lives on beside the student's.
            compared = self._reference_rows(everything)
            return self._values(lm_head(rows), everything, compared)
        chunks = [slice(index * size, (index + 1) * size) for index in range(num_chunks)]
        # Drawn fakes are a number per row and are kept; a whole distribution is computed again with the chunk.
        whole = self.settings.fake_expectation == "exact" or self.settings.soft > 0
        drawn = None if whole else [self._reference_rows(chunk) for chunk in chunks]

        def look(logits: Float[Tensor, "chunk vocab"], index: int) -> dict[str, Tensor]:
            compared = self._reference_rows(chunks[index], lm_head) if drawn is None else drawn[index]
            return self._values(logits, chunks[index], compared)

        return chunked(lm_head, rows, chunks, look)

    def _values(
        self, logits: Float[Tensor, "chunk vocab"], chunk: slice, reference: ReferenceRows | None
    ) -> dict[str, Tensor]:
        settings = self.settings
        return row_values(
            logits,
            self.batch.targets[chunk],
            reference,
            settings.reference_temp,
            certainty=settings.certainty > 0,
            confidence=settings.ranking > 0,
        )

    @torch.no_grad()
    def _reference_rows(self, chunk: slice, running: nn.Module | None = None) -> ReferenceRows | None:
        """What the reference says of a chunk; `running` is the head that this is called within."""
        if self.reference is None:
            return None
        head, rows = self.reference
        with self.part("reference"):
            # A head that both networks share is not called within itself: ZeRO-3 takes its weight away behind a call.
            shared = head is running
            return reference_rows(
                linear(rows[chunk], head.get_parameter("weight")) if shared else head(rows[chunk]),
                self.batch.targets[chunk],
                self.batch.uniforms[chunk],
                self.settings.fake_expectation,
                self.settings.reference_temp,
                soft=self.settings.soft > 0,
            )

    def _agreed(self, num_chunks: int) -> int:
        """The most chunks of any process where ZeRO-3 gathers the reference's head for each: all must take part."""
        if self.reference is None or "ds_id" not in vars(self.reference[0].get_parameter("weight")):
            return num_chunks
        most = torch.tensor(num_chunks, device=self.batch.input_ids.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)
