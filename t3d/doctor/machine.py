"""The machine: its devices, its kernels, memory, disk and sandbox."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from t3d.decoding.kernel import find_kernel
from t3d.devices import AMPERE, GIB, capability, usable_cores, usable_memory
from t3d.doctor.finding import Finding, counted
from t3d.errors import UserError
from t3d.grading.isolation import find_sandbox
from t3d.sdar.backend import Heads
from t3d.storage.paths import cache_root
from t3d.training.kernel import NAMES, find_plan

USUAL_HEADS = Heads(queries=16, keys=8, dim=128)
"""Of SDAR-1.7B: what kernels are tried with where no model is asked about."""

FREE_SHARE = 0.9
"""A device of which less is free is shared with another program."""

SHARED_MEMORY = GIB
"""What processes that train together may need of /dev/shm; Docker gives 64 MiB."""


@dataclass(frozen=True)
class Device:
    """A device that can decode and train.

    Attributes:
        name: torch's, such as "cuda:0".
        model: its maker's.
        capability: of a CUDA device.
        free: bytes that its driver says are free, or the host.
        usable: bytes of them that may be planned with.
        total: bytes.
    """

    name: str
    model: str
    capability: tuple[int, int] | None
    free: int
    usable: int
    total: int


def find_devices() -> list[Device]:
    """The machine's GPUs, or else its processor."""
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total = torch.cuda.mem_get_info(device)
        model = torch.cuda.get_device_name(device)
        found.append(Device(f"cuda:{index}", model, capability(device), free, usable_memory(device), total))
    if found:
        return found
    memory, device = psutil.virtual_memory(), torch.device("cpu")
    return [Device("cpu", "CPU", None, memory.available, usable_memory(device), memory.total)]


def processor() -> Iterator[Finding]:
    """The cores, and how many of them torch uses."""
    cores, threads = usable_cores(), torch.get_num_threads()
    text = f"{counted(cores, 'core')}, {counted(threads, 'thread')}"
    if threads > cores:
        cure = f"OMP_NUM_THREADS={cores}: threads that wait for a core slow all of them down"
        yield Finding("warning", "processor", text, cure)
    else:
        yield Finding("ok", "processor", text)


def devices(found: Sequence[Device], has_driver: bool) -> Iterator[Finding]:
    """The devices, alike ones together.

    Args:
        found: see `find_devices`.
        has_driver: there is an NVIDIA driver.
    """
    for model in dict.fromkeys(device.model for device in found):
        alike = [device for device in found if device.model == model]
        yield from _alike(alike)
    if found[0].capability is None and has_driver:
        text = f"a driver is here, and torch {torch.__version__} sees no GPU"
        yield Finding(
            "warning", "device", text, "a CUDA build of torch that fits the driver (see README), or a visible GPU"
        )


def _alike(alike: Sequence[Device]) -> Iterator[Finding]:
    first, free = alike[0], min(device.free for device in alike)
    size = f"{size_of(free)} of {size_of(first.total)} free"
    if first.capability is None:
        yield Finding("ok", "device", f"no GPU; {size} on the host")
        return
    count = f"{len(alike)} x " if len(alike) > 1 else ""
    level = "{}.{}".format(*first.capability)
    if first.capability < AMPERE:
        text = f"{count}{first.model}, compute capability {level}, no bfloat16 units; {size}"
        cure = "rollout.dtype=float16, training.mixed_precision=fp16; flash-attn needs {}.{}".format(*AMPERE)
        yield Finding("warning", "device", text, cure)
    else:
        yield Finding("ok", "device", f"{count}{first.model}, compute capability {level}, bfloat16; {size}")
    for device in alike:
        if device.free < FREE_SHARE * device.total:
            text = f"{device.name} is in use: {size_of(device.total - device.free)}"
            yield Finding(
                "warning", "device", text, "nvidia-smi names the programs; CUDA_VISIBLE_DEVICES leaves it out"
            )


def usual_kernels(device: Device) -> Iterator[Finding]:
    """What would decode and train a usual model there."""
    where, dtype = torch.device(device.name), torch.float32 if device.capability is None else torch.bfloat16
    yield from decoding_kernel(where, dtype, USUAL_HEADS)
    yield from training_kernel(where, dtype, USUAL_HEADS)


def decoding_kernel(device: torch.device, dtype: torch.dtype, heads: Heads) -> Iterator[Finding]:
    """Which attention decodes there; it is tried."""
    found = find_kernel(device, dtype, heads)
    text = f"decoding in {short_name(dtype)} with {found.name}" + (f" ({found.why})" if found.why else "")
    if found.is_fallback:
        yield Finding("warning", "kernel", text, "pip install --force-reinstall flash-attn --no-build-isolation")
    else:
        yield Finding("ok", "kernel", text)


def training_kernel(device: torch.device, dtype: torch.dtype, heads: Heads) -> Iterator[Finding]:
    """Which attention trains there; it is tried, and compiled where it must be."""
    plan, why = find_plan(device, dtype, heads)
    text = f"training in {short_name(dtype)} with {NAMES.get(plan, plan.__name__)}" + (f" ({why})" if why else "")
    if why:
        yield Finding("warning", "kernel", text, "a C compiler (apt-get install gcc), or a newer torch (see README)")
    else:
        yield Finding("ok", "kernel", text)


def short_name(dtype: torch.dtype) -> str:
    """A type's name: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def sandbox(name: str, is_needed: bool) -> Iterator[Finding]:
    """Whether model-written code can be graded.

    Args:
        name: as `execute.sandbox`.
        is_needed: by the command.
    """
    try:
        found = find_sandbox(name)
    except UserError as error:
        yield Finding("error" if is_needed else "warning", "sandbox", error.found, error.expected)
        return
    if found.name == "none":
        text = "none: model-written code would run with all of your rights"
        yield Finding("warning", "sandbox", text, "execute.sandbox=auto, with bubblewrap installed")
    else:
        yield Finding("ok", "sandbox", f"{found.name} isolates model-written code")


def storage(folder: Path, num_devices: int) -> Iterator[Finding]:
    """Host memory and disk."""
    memory = psutil.virtual_memory()
    places = {"here": folder, f"in {cache_root()}": nearest_folder(cache_root())}
    disk = ", ".join(f"{shutil.disk_usage(place).free / GIB:.0f} GiB {name}" for name, place in places.items())
    text = f"memory {size_of(memory.available)} of {size_of(memory.total)} free; disk {disk}"
    yield Finding("ok", "host", text)
    shared = Path("/dev/shm")
    if num_devices > 1 and shared.is_dir() and shutil.disk_usage(shared).total < SHARED_MEMORY:
        text = f"/dev/shm has {shutil.disk_usage(shared).total >> 20} MiB: GPUs that train together may need more"
        yield Finding("warning", "host", text, "docker run --ipc=host, or --shm-size=8g")


def size_of(number: float) -> str:
    """Bytes, for people."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.1f} MiB"


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def has_driver() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists()
