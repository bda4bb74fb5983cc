"""Batches in the training layout: [prompt and clean response][noisy response] per sample, all in one flat row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from t3d.parcel import send
from t3d.sdar.attention import TrainingTokens, block_index
from t3d.training.attention import PackedPlan, plan_of
from t3d.training.states import State


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward, and what its wanted logits are compared with (one entry per row, in order).

    Attributes:
        input_ids: token ids of every sample, one after the other.
        position_ids: both copies of a token carry the same position.
        plan: who sees whom; see `t3d.sdar.attention.may_see`.
        logit_rows: places of the noisy positions whose logits the loss needs.
        targets: the clean token of each row.
        masked: True for rows masked in this state; False for visible ones (release path loss only).
        response: False for rows that are pads after a stop token.
        coarse_step: pi_i of each row.
        sample: sample of each row, 0..num_samples-1.
        block: block of each row; no two samples share a number.
        document: sample of each token of the row; `num_samples` for padding.
        uniforms: uniform number of each row, for drawing fakes.
        num_blocks: more than the largest `block`.
        num_samples: samples in the batch.
        num_tokens: tokens of prompts and responses, both copies; neither what fills last blocks nor padding.
    """

    input_ids: Int[Tensor, "1 tokens"]
    position_ids: Int[Tensor, "1 tokens"]
    plan: PackedPlan
    logit_rows: Int[Tensor, " rows"]
    targets: Int[Tensor, " rows"]
    masked: Bool[Tensor, " rows"]
    response: Bool[Tensor, " rows"]
    coarse_step: Int[Tensor, " rows"]
    sample: Int[Tensor, " rows"]
    block: Int[Tensor, " rows"]
    document: Int[Tensor, " tokens"]
    uniforms: Float[Tensor, " rows"]
    num_blocks: int
    num_samples: int
    num_tokens: int


def collate(
    states: Sequence[State],
    pad_id: int,
    device: torch.device,
    visible_rows: bool = False,
    plan: type[PackedPlan] | None = None,
    longest: int = 0,
) -> Batch:
    """Lays out `states` one after the other.

    Args:
        states: samples in their states.
        pad_id: input at padding, which exists only where the device's attention needs a round number of tokens.
        device: where the batch goes.
        visible_rows: also ask for logits at the response's visible positions.
        plan: kind of attention; None takes the device's, untried (see `t3d.training.kernel`).
        longest: tokens of the longest row to come; 0 if unknown (see `PackedPlan`).
    """
    kind = plan or plan_of(device)
    lengths = [len(state.clean_ids) + len(state.targets) for state in states]
    num_pads = -sum(lengths) % kind.multiple
    if num_pads:
        lengths.append(num_pads)
    tokens, positions = _places(states, num_pads)
    rows = [state.scored & (state.masked | visible_rows) for state in states]
    logit_rows = tokens.noisy.nonzero()[:, 0][torch.from_numpy(np.concatenate(rows))]
    ids = [part for state in states for part in (state.clean_ids, state.inputs)]

    def gather(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(state, name)[row] for state, row in zip(states, rows, strict=True)])

    host = {
        "input_ids": np.concatenate([*ids, np.full(num_pads, pad_id)])[None],
        "position_ids": positions[None].numpy(),
        "logit_rows": logit_rows.numpy(),
        **{name: gather(name) for name in ("targets", "masked", "response", "coarse_step", "uniforms")},
        "sample": tokens.document[logit_rows].numpy(),
        "block": tokens.block[logit_rows].numpy(),
        "document": tokens.document.numpy(),
    }
    return Batch(
        **dict(zip(host, send(list(host.values()), device), strict=True)),
        plan=kind(tokens, lengths, device, longest),
        num_blocks=int(tokens.block.max()) + 1,
        num_samples=len(states),
        num_tokens=sum(state.num_tokens for state in states),
    )


def _places(states: Sequence[State], num_pads: int) -> tuple[TrainingTokens, Int[Tensor, " tokens"]]:
    """Every token as the attention sees it, and its position; blocks are numbered over the row."""
    block, noisy, position, next_block = [], [], [], 0
    for state in states:
        num_clean, num_noisy = len(state.clean_ids), len(state.targets)
        places = torch.cat([torch.arange(num_clean), state.noisy_start + torch.arange(num_noisy)])
        blocks = block_index(places, state.block_size, state.origin)
        block.append(blocks - blocks.min() + next_block)
        next_block = int(block[-1].max()) + 1
        noisy.append(torch.arange(num_clean + num_noisy) >= num_clean)
        position.append(places)
    pads = torch.zeros(num_pads, dtype=torch.long)
    lengths = torch.tensor([*map(len, block), num_pads])
    tokens = TrainingTokens(
        block=torch.cat([*block, pads]),
        noisy=torch.cat([*noisy, pads.bool()]),
        document=torch.arange(len(lengths)).repeat_interleave(lengths),
    )
    return tokens, torch.cat([*position, pads])
