"""Averages over ragged groups of masked positions (`rows`): a mean names what it divides by."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def group_mean(
    values: Float[Tensor, " rows"], group: Int[Tensor, " rows"], num_groups: int
) -> Float[Tensor, " groups"]:
    """Mean of `values` over the rows of each group; 0 for a group without rows."""
    totals = values.new_zeros(num_groups).index_add(0, group, values)
    counts = torch.bincount(group, minlength=num_groups)
    return totals / counts.clamp(min=1)
