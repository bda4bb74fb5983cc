"""The frozen reference p_ref of DDO, and its refresh with the student's weights (Algorithm 1).

Where an adapter is trained, the two share every other weight, and what is copied, refreshed and saved is the adapter.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter

from t3d.training.parts import forget_gathered, laid_out_as, whole


def trained(network: nn.Module) -> dict[str, Parameter]:
    """The weights that training changes, by name: an adapter's where the network has one, else all."""
    weights = dict(network.named_parameters())
    return {name: weight for name, weight in weights.items() if ".lora_" in name} or weights


def frozen_view(student: nn.Module) -> nn.Module:
    """A second network on the memory of `student`'s weights, that no optimizer knows of and no gradient reaches.

    Whoever trains the student gives one of the two its own memory first.  Where an adapter is trained, all else is the
    student's for good: the same parameters, and the same output head, which is called while the student runs.
    """
    changing = trained(student).values()
    shared: dict[int, Any] = {id(theirs): theirs for theirs in student.parameters()}
    shared |= {id(theirs): Parameter(theirs.data, requires_grad=False) for theirs in changing}
    if has_adapter(student):
        head = student.get_submodule("lm_head")
        shared[id(head)] = head
    return copy.deepcopy(student, shared).eval()


def has_adapter(network: nn.Module) -> bool:
    """Whether training changes an adapter alone."""
    return len(trained(network)) < len(list(network.parameters()))


def frozen_copy(student: nn.Module, device: torch.device | None = None) -> nn.Module:
    """As `frozen_view`, with weights of its own, on `device` (None: where the student's are)."""
    reference = frozen_view(student)
    for tensor in (*trained(reference).values(), *reference.buffers()):
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
    pairs = zip(trained(reference).values(), trained(student).values(), strict=True)
    for ours, theirs in pairs:
        with gathered(theirs), gathered(ours, written=True):
            ours.copy_(laid_out_as(theirs, ours))


def gather(network: nn.Module, main: bool) -> dict[str, Tensor]:
    """The weights that training changes, whole, on the CPU; all processes must call this together.

    Args:
        network: in whatever way it is sharded.
        main: whether this process gets them; the others only take part, and get none.
    """
    weights = {}
    forget_gathered(network)
    for name, weight in trained(network).items():
        with gathered(weight):
            value = whole(weight.detach())
            if main:
                # What is gathered is gone afterwards, and a device has no room for all of it.
                weights[name] = value.to("cpu", copy=_sharded(weight))
    return weights


def save_reference(reference: nn.Module, path: Path, main: bool) -> None:
    """Writes all that a reference does not share with its student to one file; all processes must call this together.

    Args:
        reference: what to write.
        path: of the file.
        main: whether this process writes; the others only take part in gathering.
    """
    weights = gather(reference, main)
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
        for name, weight in trained(reference).items():
            with gathered(weight, written=True):
                weight.copy_(laid_out_as(file.get_tensor(name), weight))


def _sharded(parameter: Parameter) -> bool:
    return "ds_id" in vars(parameter)


def gathered(parameter: Parameter, written: bool = False) -> AbstractContextManager:
    """Within it a parameter is whole where ZeRO-3 divides it, and may be written; all processes must enter it."""
    if not _sharded(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None)
