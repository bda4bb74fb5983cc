"""Host arrays on their way to a device: all that one forward needs, in one copy.

A copy from ordinary memory waits for the device, and every copy costs the host some 10 microseconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

ALIGNED = 16
"""Every array begins at a multiple of so many bytes."""


class Parcel:
    """Takes arrays, and gives tensors on the device for them; everything is sent when the first one is asked for."""

    def __init__(self, device: torch.device, fixed: "FixedBuffer | None" = None) -> None:
        """Begins empty.

        Args:
            device: where everything goes.
            fixed: its memory there; None takes new memory.
        """
        self.device, self.fixed = device, fixed
        self._waiting: list[NDArray[Any]] = []
        self._sent: list[Tensor] = []

    def add(self, array: NDArray[Any]) -> int:
        """Takes an array, which must not change any more, and returns its number."""
        self._waiting.append(array)
        return len(self._sent) + len(self._waiting) - 1

    def __getitem__(self, number: int) -> Tensor:
        """The tensor of an array."""
        if self._waiting:
            self._sent += send(self._waiting, self.device) if self.fixed is None else self.fixed.send(self._waiting)
            self._waiting = []
        return self._sent[number]


class FixedBuffer:
    """Memory on a device that arrays of the same types and shapes are sent to again and again."""

    def __init__(self, device: torch.device) -> None:
        """Takes no memory yet: the first arrays say how much."""
        self.device = device
        self._there: Tensor | None = None

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """The arrays as tensors that lie where those of the last call lay."""
        is_cuda = self.device.type == "cuda"
        buffer = packed(arrays, pinned=is_cuda)
        if self._there is None:
            self._there = torch.empty_like(buffer, device=self.device)
        return unpacked(self._there.copy_(buffer, non_blocking=is_cuda), arrays)


def send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on the device; a CPU's are the arrays' own memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    # MPS would read the buffer when it is gone (PyTorch 189690); CUDA's allocator keeps pinned memory until then.
    is_cuda = device.type == "cuda"
    return unpacked(packed(arrays, pinned=is_cuda).to(device, non_blocking=is_cuda), arrays)


def packed(arrays: Sequence[NDArray[Any]], pinned: bool) -> UInt8[Tensor, " bytes"]:
    """All arrays in one buffer.

    Args:
        arrays: of any types and shapes.
        pinned: in memory that a device reads by itself.  Torch reuses such a buffer only after its copy has ended.
    """
    buffer = torch.empty(_edges(arrays)[-1], dtype=torch.uint8, pin_memory=pinned)
    for array, start in zip(arrays, _edges(arrays), strict=False):
        buffer.numpy()[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return buffer


def unpacked(buffer: UInt8[Tensor, " bytes"], arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Views of a buffer that `packed` filled, wherever it is now."""
    tensors = []
    for array, start in zip(arrays, _edges(arrays), strict=False):
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors.append(buffer[start : start + array.nbytes].view(kind).view(array.shape))
    return tensors


def _edges(arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Where each array begins, and where the buffer ends."""
    return np.cumsum([0, *(-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays)]).tolist()
