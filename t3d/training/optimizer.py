"""AdamW, with the kernel of the device and weight decay where it is asked for."""

import torch
from torch import Tensor, nn

from t3d.config.schema import OptimizerParams
from t3d.training.reference import trained


def make_optimizer(
    student: nn.Module, params: OptimizerParams, peak_rate: float, device: torch.device, scaled: bool
) -> torch.optim.AdamW:
    """The optimizer of the student's weights.

    Args:
        student: what is trained; its weights may be sharded.
        params: of AdamW.
        peak_rate: learning rate that it begins with.
        device: where the weights are updated.
        scaled: torch's scaler decides whether an update is made.
    """
    return torch.optim.AdamW(
        _groups(list(trained(student).values()), params),
        lr=peak_rate,
        betas=(params.beta1, params.beta2),
        eps=params.epsilon,
        fused=True if is_fused(device.type, scaled) else None,
    )


def is_fused(device_type: str, scaled: bool) -> bool:
    """Whether one kernel makes the whole update, which needs no memory of its own, in place of several.

    On CUDA; on a CPU nothing is gained.  Where torch's scaler decides about updates the fused kernel would leave them
    out by itself, and nobody could count them.
    """
    return device_type == "cuda" and not scaled


def _groups(weights: list[nn.Parameter], params: OptimizerParams) -> list[dict[str, object]]:
    if params.decay_norms:
        return [{"params": weights, "weight_decay": params.weight_decay}]
    matrices = [weight for weight in weights if _num_axes(weight) > 1]
    others = [weight for weight in weights if _num_axes(weight) <= 1]
    groups = ((matrices, params.weight_decay), (others, 0.0))
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def _num_axes(weight: Tensor) -> int:
    """Of the whole weight, where ZeRO-3 has cut it up."""
    return len(vars(weight).get("ds_shape", weight.shape))
