"""Averages over ragged groups of masked positions (`rows`): a mean names what it divides by."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def group_mean(
    values: Float[Tensor, "rows ..."], group: Int[Tensor, " rows"], num_groups: int
) -> Float[Tensor, "groups ..."]:
    """Mean of `values` over the rows of each group; 0 for a group without rows.

    Nothing in here waits for a GPU, as `bincount` and a mask would.

    Args:
        values: to average.
        group: of each row; `num_groups` leaves a row out.
        num_groups: groups of the result.
    """
    totals = values.new_zeros(num_groups + 1, *values.shape[1:]).index_add(0, group, values)
    counts = group.new_zeros(num_groups + 1).index_add(0, group, torch.ones_like(group)).clamp(min=1)
    return (totals / counts.view(-1, *[1] * (values.dim() - 1)))[:num_groups]
