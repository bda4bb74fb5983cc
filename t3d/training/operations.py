"""Floating-point operations of a step, and what a device can do: model FLOPs utilisation, "mfu".

Counted are the products with the network's matrices, twice the numbers of each matrix per row, none of them twice: not
what is recomputed in the backward pass.  Attention's own products come on top, a few per cent at the paper's lengths,
and are left out.
"""

import logging
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from t3d.config import TrainingConfig
from t3d.sdar.mixture import SparseMLP

log = logging.getLogger(__name__)

PEAKS = {
    "A100": 312,
    "A800": 312,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "H200": 989,
    "H20": 148,
    "GH200": 989,
    "B200": 2250,
    "L40S": 362,
    "L4": 121,
    "A40": 150,
    "A10": 125,
    "RTX A6000": 155,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""TFLOP/s of dense products in bf16 and fp16 by a part of the device's name, as its maker states them."""


@dataclass(frozen=True)
class Work:
    """Operations of one network in a step.

    Attributes:
        per_token: of each token that it is given.
        per_row: of each row that the loss reads: the output head, and most of the last layer.
    """

    per_token: float
    per_row: float

    @classmethod
    def of(cls, network: nn.Module) -> "Work":
        """Of a network: forward, and the backward pass if anything of it is trained."""
        trained = any(weight.requires_grad for weight in network.parameters())
        layers = network.get_submodule("model.layers")
        last = layers.get_submodule(str(len(list(layers.children())) - 1))
        every, total = _operations(layers, trained), _operations(network, trained)
        # The last layer's keys and values are those of all tokens; everything else of it works for the rows alone.
        keys = sum(_operations(last.get_submodule(f"self_attn.{name}"), trained) for name in ("k_proj", "v_proj"))
        rows = _operations(last, trained) - keys
        return cls(per_token=every - rows, per_row=total - every + rows)

    def count(self, num_tokens: int, num_rows: int) -> float:
        """Operations of a micro-batch."""
        return self.per_token * num_tokens + self.per_row * num_rows


def _operations(part: nn.Module, trained: bool) -> float:
    """Per row of inputs: forward, gradient of the inputs, and gradient of those matrices that are trained."""
    mixtures = [module for module in part.modules() if isinstance(module, SparseMLP)]
    theirs = {module for mixture in mixtures for module in mixture.modules()}
    linears = [module for module in part.modules() if isinstance(module, nn.Linear) and module not in theirs]
    weights: list[tuple[int, nn.Module]] = [(linear.in_features * linear.out_features, linear) for linear in linears]
    weights += [(mixture.weights_per_row, mixture) for mixture in mixtures]
    return float(
        sum(2 * number * (1 + trained + next(module.parameters()).requires_grad) for number, module in weights)
    )


def peak_operations(training: TrainingConfig, device: torch.device) -> float:
    """Operations per second that a device can do at most in the precision of a run; NaN where nobody knows."""
    if training.device_peak_tflops is not None:
        return 1e12 * training.device_peak_tflops
    if device.type != "cuda":
        return math.nan
    return _known_peak(torch.cuda.get_device_name(device), training.mixed_precision)


@cache
def _known_peak(name: str, precision: str) -> float:
    """Of a GPU by its name; the longest known name that is part of it counts."""
    words = [known for known in PEAKS if f" {known} " in f" {name.replace('-', ' ')} "]
    if words and precision != "no":
        return 1e12 * PEAKS[max(words, key=len)]
    found = f"unknown in single precision on {name}" if words else f"unknown device {name}"
    log.info("mfu is null: %s (training.device_peak_tflops says what it can do)", found)
    return math.nan
