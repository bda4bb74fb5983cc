"""The header: which device, which versions, and the two rates that every floor is counted with."""

import importlib.metadata
import platform
from collections.abc import Iterator

import torch

from bench.gpu.findings import Finding
from bench.gpu.world import World

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "triton", "flash-attn")


def versions(world: World) -> Iterator[Finding]:
    """What runs on what."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    yield Finding("versions", found | {"cuda": torch.version.cuda or "none"})
    if world.is_cuda:
        card = torch.cuda.get_device_properties(world.device)
        yield Finding(
            "card",
            {
                "name": card.name,
                "memory_gib": card.total_memory / 2**30,
                "capability": f"{card.major}.{card.minor}",
                "processors": card.multi_processor_count,
            },
        )
    else:
        yield Finding("card", {"name": f"none: {platform.machine()}, {torch.get_num_threads()} threads"})


def rates(world: World) -> Iterator[Finding]:
    """Bytes and products per second."""
    yield Finding("copy rate", {"gb_per_s": world.copy_rate() / 1e9})
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield Finding(f"{name} products", {"tflop_per_s": world.product_rate(dtype) / 1e12})
