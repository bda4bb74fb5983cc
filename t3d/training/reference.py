"""The frozen reference p_ref of DDO, and its refresh with the student's weights (Algorithm 1)."""

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import Parameter

from t3d.training.fsdp import forget_gathered, laid_out_as, whole


def frozen_view(student: nn.Module) -> nn.Module:
    """A second network on the memory of `student`'s weights, that no optimizer knows of and no gradient reaches.

    Whoever trains the student gives one of the two its own memory first.
    """
    shared = {id(theirs): Parameter(theirs.data, requires_grad=False) for theirs in student.parameters()}
    return copy.deepcopy(student, shared).eval()


def frozen_copy(student: nn.Module, device: torch.device | None = None) -> nn.Module:
    """As `frozen_view`, with weights of its own, on `device` (None: where the student's are)."""
    reference = frozen_view(student)
    for tensor in (*reference.parameters(), *reference.buffers()):
        tensor.data = tensor.data.to(device or tensor.device, copy=True)
    return reference


@torch.no_grad()
def refresh(reference: nn.Module, student: nn.Module) -> None:
    """Copies the student's weights into the reference: right after it every log-ratio is 0.

    Where one of the two is sharded and the other is not, each parameter is gathered while it is copied; all processes
    must call this together.
    """
    forget_gathered(reference)
    forget_gathered(student)
    pairs = zip(reference.parameters(), student.parameters(), strict=True)
    for ours, theirs in pairs:
        with _gathered(theirs), _gathered(ours, written=True):
            ours.copy_(laid_out_as(theirs, ours))


def save_reference(reference: nn.Module, path: Path, main: bool) -> None:
    """Writes the whole reference to one file, however it is sharded; all processes must call this together.

    Args:
        reference: what to write.
        path: of the file.
        main: whether this process writes; the others only take part in gathering.
    """
    weights = {}
    forget_gathered(reference)
    for name, weight in reference.named_parameters():
        with _gathered(weight):
            gathered = whole(weight.detach())
            if main:
                # What is gathered is gone afterwards, and a device has no room for all of it.
                weights[name] = gathered.to("cpu", copy=_sharded(weight))
    if main:
        save_file(weights, path)


@torch.no_grad()
def load_reference(reference: nn.Module, path: Path) -> None:
    """Reads what `save_reference` wrote, one weight at a time; all processes must call this together.

    Raises:
        SafetensorError: no such file, or one of something else.
    """
    forget_gathered(reference)
    with safe_open(path, "pt") as file:
        for name, weight in reference.named_parameters():
            with _gathered(weight, written=True):
                weight.copy_(laid_out_as(file.get_tensor(name), weight))


def _sharded(parameter: Parameter) -> bool:
    return "ds_id" in vars(parameter)


def _gathered(parameter: Parameter, written: bool = False) -> AbstractContextManager:
    if not _sharded(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None)
