"""What a device is and has room for, asked of its driver; every answer is a plain value that a test can replace."""

import atexit
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from t3d.errors import ConfigError, UserError, first_line

AMPERE = (8, 0)
"""The first compute capability with bfloat16 units, which flash-attn needs, too."""
GROUPED = (9, 10) if torch.__version__ >= "2.9" else (9,)
"""The major ones, Hopper's and that of Blackwell's servers, whose grouped product of bfloat16 does not wait for the
groups' sizes; elsewhere it asks the device for them (PyTorch 2.13)."""

KEPT_BACK = 3 * 2**29
"""Bytes of an accelerator that no plan counts on: libraries' workspaces, and what fragmentation wastes."""
KEPT_BACK_SHARE = 10
"""Of a machine's own memory, which other programs use too, one part in so many is left to them."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of two settings, from its malloc.h."""
KEPT_BY_MALLOC = 2**31 - 1
"""Bytes: what is smaller is taken from freed memory, and so much of that is kept; the most that an int can say."""

CONTEXT = 2**29
"""Bytes of a GPU that a process takes before its first tensor: the driver's context, libraries' kernels and handles."""

CORES_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of computing, and of how many, that a container may have; "max" is all."""

GIB = 2**30

EXHAUSTED = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What stands in the messages of those allocators that raise a bare RuntimeError: a CPU's, MPS, CUDA's libraries."""


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device; None of any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def pick_device(name: str, worker: int = 0, where: str = "rollout.device") -> torch.device:
    """The device called `name`; auto is CUDA, else MPS, else the CPU, and CUDA's GPUs go to workers in turn.

    Args:
        name: auto, or torch's name of a device.
        worker: number of the process on its machine.
        where: the key, for the error.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{worker % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(where, "a device of this machine", f"{name} ({first_line(error)})") from error
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now.

    What torch's allocator holds for tensors that are gone counts as free, although the driver does not say so; not what
    is left of a block that is still in use in part, where nothing large finds room.
    """
    if device.type != "cuda":
        import psutil  # compiled, and a machine that is lent need not have it

        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    remainders = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0)
    return torch.cuda.mem_get_info(device)[0] + cached - remainders


def usable_memory(device: torch.device, sharing: int = 1) -> int:
    """Bytes of `free_memory` that may be planned with.

    Args:
        device: to plan for.
        sharing: processes that use it alike, this one among them.  Of a GPU each has an equal part of the whole,
            whether the others have come yet or not: what is free changes as they load and decode.
    """
    free = free_memory(device)
    if device.type != "cuda":
        return max(0, free - free // KEPT_BACK_SHARE) // sharing
    if sharing == 1:
        return max(0, free - KEPT_BACK)
    part = (torch.cuda.mem_get_info(device)[1] - KEPT_BACK) // sharing
    return max(0, min(free - KEPT_BACK, part - CONTEXT - torch.cuda.memory_allocated(device)))


def usable_cores() -> int:
    """Cores that this process may use: those that it may run on and, of a container's quota, the whole ones."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or "max" for no quota
        quota, period = map(int, CORES_QUOTA.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def forget_peak(device: torch.device) -> None:
    """Lets `peak_memory` begin anew, where a device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes in use: on CUDA by tensors, since `forget_peak`; elsewhere by this process, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back(device: torch.device) -> None:
    """Returns what torch's allocator holds unused, so that other processes and other sizes can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reuse_freed_memory() -> None:
    """Makes the C library keep freed memory for the next step instead of returning it to the system, for work on a CPU.

    Getting it back costs a page fault per 4 KB.  Without effect where the user has set this, and without glibc.
    """
    if {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BY_MALLOC)
    mallopt(M_TRIM_THRESHOLD, KEPT_BY_MALLOC)


def leave_group_at_exit() -> None:
    """Ends the process group, if there is one, when this process has done its work.

    Else the group's threads abort a process now and then as it ends, and a finished launch looks like a crash.  A
    process that ends by an exception leaves no group: NCCL's would wait for the others (see `t3d.entry`).
    """
    atexit.register(_leave_group)


def _leave_group() -> None:
    if not dist.is_initialized():
        return
    if getattr(sys, "last_value", None) is not None and dist.get_world_size() > 1:  # it has been printed
        sys.stderr.flush()
        os._exit(1)
    dist.destroy_process_group()


def exhaustion(error: Exception) -> str | None:
    """The first line of an allocator's complaint that memory is full; None of any other error."""
    line = next(iter(str(error).splitlines()), "")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in EXHAUSTED)
    )
    return (line or "out of memory") if known else None


@contextmanager
def room(where: str, expected: str, kind: type[UserError] = ConfigError) -> Iterator[None]:
    """Raises an error of `kind` in place of one that says that memory is full.

    Args:
        where: what to lower.
        expected: what must fit.
        kind: of `UserError`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        found = exhaustion(error)
        if found is None:
            raise
        raise kind(where, expected, found) from error
