"""Batches in the training layout: [prompt and clean response][noisy response] per sample, one forward for all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t3d.sdar.attention import PAD_DOCUMENT, block_index, training_mask
from t3d.training.states import State


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward, and what its wanted logits are compared with (one entry per row, row-major).

    Attributes:
        input_ids: token ids.
        position_ids: both copies of a token carry the same position.
        attention_mask: see `t3d.sdar.attention.training_mask`.
        logit_rows: noisy positions whose logits the loss needs.
        targets: the clean token of each row.
        masked: True for rows masked in this state; False for visible ones (release path loss only).
        response: False for rows that are pads after a stop token.
        coarse_step: pi_i of each row.
        sample: sample of each row, 0..num_samples-1.
        block: block of each row, numbered over the batch, 0..num_blocks-1.
        block_sample: sample of each block.
        uniforms: uniform number of each row, for drawing fakes.
        num_samples: samples in the batch.
        num_tokens: tokens that are no padding.
    """

    input_ids: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch 1 seq seq"]
    logit_rows: Bool[Tensor, "batch seq"]
    targets: Int[Tensor, " rows"]
    masked: Bool[Tensor, " rows"]
    response: Bool[Tensor, " rows"]
    coarse_step: Int[Tensor, " rows"]
    sample: Int[Tensor, " rows"]
    block: Int[Tensor, " rows"]
    block_sample: Int[Tensor, " blocks"]
    uniforms: Float[Tensor, " rows"]
    num_samples: int
    num_tokens: int


def collate(states: Sequence[State], pad_id: int, device: torch.device, visible_rows: bool = False) -> Batch:
    """Lays out `states`, one per row, padded on the right.

    Args:
        states: samples in their states.
        pad_id: input at padding, which nothing sees.
        device: where the batch goes.
        visible_rows: also ask for logits at the response's visible positions.
    """
    lengths = [len(state.clean_ids) + len(state.targets) for state in states]
    shape = (len(states), max(lengths))
    ids, positions = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, PAD_DOCUMENT)
    noisy, wanted = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    rows = []
    for index, (state, length) in enumerate(zip(states, lengths, strict=True)):
        num_clean = len(state.clean_ids)
        ids[index, :length] = np.concatenate([state.clean_ids, state.inputs])
        positions[index, :length] = np.concatenate(
            [np.arange(num_clean), state.noisy_start + np.arange(len(state.targets))]
        )
        documents[index, :length] = index
        noisy[index, num_clean:length] = True
        wanted[index, num_clean:length] = state.scored & (state.masked | visible_rows)
        rows.append(wanted[index, num_clean:length])
    origins = torch.tensor([[state.origin] for state in states])
    sizes = torch.tensor([[state.block_size] for state in states])
    blocks = block_index(torch.from_numpy(positions), sizes, origins)
    mask = training_mask(blocks, torch.from_numpy(noisy), torch.from_numpy(documents))[:, None]
    block, block_sample = _number_blocks(rows, [state.block_size for state in states])

    def gather(name: str) -> Tensor:
        parts = [getattr(state, name)[row] for state, row in zip(states, rows, strict=True)]
        return torch.from_numpy(np.concatenate(parts)).to(device)

    return Batch(
        input_ids=torch.from_numpy(ids).to(device),
        position_ids=torch.from_numpy(positions).to(device),
        attention_mask=mask.to(device),
        logit_rows=torch.from_numpy(wanted).to(device),
        targets=gather("targets"),
        masked=gather("masked"),
        response=gather("response"),
        coarse_step=gather("coarse_step"),
        sample=torch.from_numpy(np.repeat(np.arange(len(states)), [row.sum() for row in rows])).to(device),
        block=block.to(device),
        block_sample=block_sample.to(device),
        uniforms=gather("uniforms"),
        num_samples=len(states),
        num_tokens=sum(lengths),
    )


def _number_blocks(rows: Sequence[np.ndarray], block_sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Block of each wanted row, counting only blocks that have one, and the sample of each such block."""
    used = [np.flatnonzero(row) // size for row, size in zip(rows, block_sizes, strict=True)]
    pairs = np.concatenate([np.stack([np.full(len(blocks), index), blocks]) for index, blocks in enumerate(used)], 1)
    unique, numbers = np.unique(pairs, axis=1, return_inverse=True)
    return torch.from_numpy(numbers.reshape(-1)), torch.from_numpy(unique[0])
