"""The frozen reference p_ref of DDO, and its refresh with the student's weights (Algorithm 1)."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import Parameter


def frozen_copy(student: nn.Module) -> nn.Module:
    """A copy of `student` that no optimizer knows of and no gradient reaches."""
    return copy.deepcopy(student).eval().requires_grad_(False)


@torch.no_grad()
def refresh(reference: nn.Module, student: nn.Module) -> None:
    """Copies the student's weights into the reference: right after it every log-ratio is 0.

    Under ZeRO-3 each parameter is gathered while it is copied; all processes must call this together.
    """
    pairs = zip(reference.parameters(), student.parameters(), strict=True)
    for ours, theirs in pairs:
        with _gathered(theirs):
            ours.copy_(theirs)


def _gathered(parameter: Parameter) -> AbstractContextManager:
    if "ds_id" not in vars(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
