"""Which attention decodes: decided once for a device and a network's heads, tried there, and said in one line."""

import importlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from t3d.decoding.cache import SlotCache
from t3d.decoding.pages import PAGE_SIZE, Paging
from t3d.decoding.plan import FlashPlan, SdpaPlan, Spans, WidePlan, folded, unfolded
from t3d.devices import AMPERE, capability
from t3d.errors import first_line
from t3d.parcel import Parcel
from t3d.sdar.backend import TOLERANCE, AttentionPlan, Heads, masked_kernels, relative_error
from t3d.sdar.modeling import SDARForCausalLM

log = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)
LOADING = (ImportError, OSError, RuntimeError, AttributeError)
"""What an extension raises that was built for another torch, CUDA or Python, or is another release."""
CALLING = (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError)
"""What one raises that was not built for the card, or does not know an argument."""


@dataclass(frozen=True)
class Kernel:
    """How attention is computed while decoding.

    Attributes:
        name: of the kernel.
        plan: lays out one forward's attention.
        within: a context that every forward runs in.
        why: what speaks against a faster kernel; empty if nothing does.
        is_fallback: a faster one is installed and does not work.
        is_fixed: the shapes of its plans follow from the number of blocks, and a slot may come several times, so that
            forwards can be padded and recorded.
        is_paged: it reads pages through a table.
    """

    name: str
    plan: Callable[[Spans, SlotCache, Parcel], AttentionPlan]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    why: str = ""
    is_fallback: bool = False
    is_fixed: bool = False
    is_paged: bool = False


class _UnusableError(Exception):
    """Says why flash-attn is not used."""

    def __init__(self, why: str, is_fallback: bool = False) -> None:
        self.why, self.is_fallback = why, is_fallback
        super().__init__(why)


def choose_kernel(model: SDARForCausalLM) -> Kernel:
    """The kernel for a model where it is; looked for once, and logged then."""
    return _chosen(model.device, model.dtype, Heads.of(model.config))


@cache
def _chosen(device: torch.device, dtype: torch.dtype, heads: Heads) -> Kernel:
    kernel = find_kernel(device, dtype, heads)
    line = f"decoding on {device} in {str(dtype).removeprefix('torch.')} with {kernel.name}"
    log.log(
        logging.WARNING if kernel.is_fallback else logging.INFO, "%s%s", line, f" ({kernel.why})" if kernel.why else ""
    )
    return kernel


def find_kernel(device: torch.device, dtype: torch.dtype, heads: Heads) -> Kernel:
    """The fastest kernel that works there; logs nothing and remembers nothing.

    Args:
        device: where the network is.
        dtype: of its weights.
        heads: of its attention.
    """
    try:
        flash = _load_flash(device, dtype)
        _try(flash, device, dtype, heads, SLOTS)
    except _UnusableError as found:
        why, level = found.why, capability(device)
        if level is not None and level < AMPERE and dtype == torch.bfloat16:
            why += "; bfloat16 is slow there, rollout.dtype=float16 or float32 may be faster"
        within, plan = partial(masked_kernels, device.type), SdpaPlan if device.type == "cpu" else WidePlan
        return Kernel("torch's scaled_dot_product_attention", plan, within, why, found.is_fallback)
    why = ""
    try:
        _try(flash, device, dtype, heads, PAGES)
    except _UnusableError as found:
        why = f"without pages: {found.why}"
    return Kernel("flash-attn", partial(FlashPlan, flash=flash), why=why, is_fixed=True, is_paged=not why)


def choose_paging(kernel: Kernel, wanted: bool | None) -> Paging | None:
    """How keys and values are paged; None where they are not.

    Args:
        kernel: that decodes.
        wanted: None pages where the kernel reads pages itself.
    """
    is_paged = kernel.is_paged if wanted is None else wanted
    return Paging(PAGE_SIZE, is_gathered=not kernel.is_paged) if is_paged else None


def _load_flash(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """flash-attn's function.

    Raises:
        _UnusableError: not for this device or type, not installed, or not loadable.
    """
    level = capability(device)
    if level is None:
        raise _UnusableError("")
    if dtype not in HALF:
        raise _UnusableError("flash-attn computes in bfloat16 and float16 only")
    if level < AMPERE:
        raise _UnusableError("flash-attn needs compute capability {}.{}, the card has {}.{}".format(*AMPERE, *level))
    try:
        return importlib.import_module("flash_attn").flash_attn_with_kvcache
    except LOADING as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "flash_attn":
            raise _UnusableError("flash-attn is not installed") from error
        raise _UnusableError(f"flash-attn cannot be loaded: {first_line(error)}", is_fallback=True) from error


@dataclass(frozen=True)
class _Trial:
    """Two sequences whose keys lie in four slots or pages.

    Attributes:
        length: positions of a slot or page.
        argument: that names them.
        places: the slot of each sequence, or its pages.
        ends: keys that it sees.
    """

    length: int
    argument: str
    places: list[Any]
    ends: tuple[int, int]


SLOTS = _Trial(64, "cache_batch_idx", [1, 0], (4, 37))
PAGES = _Trial(PAGE_SIZE, "block_table", [[3, 1], [2, 0]], (4, PAGE_SIZE + 37))


@torch.inference_mode()
def _try(flash: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, heads: Heads, trial: _Trial) -> None:
    """Attends from a block of four to the first keys of two sequences, and compares.

    Raises:
        _UnusableError: the kernel fails, or computes something else.
    """
    generator = torch.Generator().manual_seed(0)
    cached = (4, trial.length, heads.keys, heads.dim)
    shapes = (2, 4, heads.queries, heads.dim), cached, cached
    query, keys, values = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    places, ends = (torch.tensor(given, dtype=torch.int32, device=device) for given in (trial.places, trial.ends))
    layout = {"cache_seqlens": ends, trial.argument: places}
    try:
        rows = folded(query.flatten(0, 1).transpose(0, 1), 4, heads.keys)
        found = flash(rows, keys, values, **layout, softmax_scale=heads.dim**-0.5, causal=False)
        ended = unfolded(found, 4).unflatten(0, (2, 4)).float().cpu()
    except CALLING as failure:
        raise _UnusableError(f"flash-attn does not run here: {first_line(failure)}", is_fallback=True) from failure
    for row, (place, end) in enumerate(zip(trial.places, trial.ends, strict=True)):
        firsts = [states[place].flatten(0, -3)[:end].float().cpu() for states in (keys, values)]
        seen = [first.transpose(0, 1).repeat_interleave(heads.queries // heads.keys, 0) for first in firsts]
        scores = query[row].float().cpu().transpose(0, 1) @ seen[0].mT * heads.dim**-0.5
        expected = (scores.softmax(-1) @ seen[1]).transpose(0, 1)
        if not (error := relative_error(ended[row], expected)) <= TOLERANCE:
            raise _UnusableError(f"flash-attn computes something else here, off by {error:.0%}", is_fallback=True)
