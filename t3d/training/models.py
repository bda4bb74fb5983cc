"""Student, optimizer and frozen reference, made ready for the launch without ever being in memory twice on the host.

The network is read in the precision that it is stored in.  From there each weight goes to its device in the precision
that it is kept in, one after the other, and under ZeRO-3 and FSDP2 straight into shards.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from t3d.config import TrainConfig
from t3d.errors import ConfigError
from t3d.sdar.checkpoint import load_model
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.opening import Checkpoint
from t3d.training import fsdp
from t3d.training.launch import TIMEOUT
from t3d.training.reference import frozen_copy, frozen_view


@dataclass(frozen=True)
class Models:
    """What `prepare_models` gives.

    Attributes:
        student: in whatever accelerate wraps it.
        optimizer: likewise.
        reference: None where no term needs it.
    """

    student: Any
    optimizer: Any
    reference: Any


def prepare_models(
    config: TrainConfig, accelerator: Accelerator, source: Checkpoint, needs_reference: bool, peak_rate: float
) -> Models:
    """Loads the student and makes its optimizer and its reference.

    The two networks have the same weights in the same precision, so that their logits are equal.

    Args:
        config: of the run.
        accelerator: of the launch.
        source: the model to train.
        needs_reference: make one.
        peak_rate: learning rate that the optimizer begins with.

    Raises:
        CheckpointError: see `load_model`.
        ConfigError: a sharded reference without ZeRO-3 or FSDP2.
    """
    torch.manual_seed(config.training.seed)
    # Under ZeRO-3 transformers would cut parameters up while loading, in an order of its own.
    unset_hf_deepspeed_config()
    plugin = accelerator.state.deepspeed_plugin
    zero3 = plugin is not None and plugin.zero_stage == 3
    sharded = zero3 or fsdp.is_fsdp(accelerator)
    shard_reference = sharded if config.training.shard_reference is None else config.training.shard_reference
    if shard_reference and not sharded:
        raise ConfigError("training.shard_reference", "null or false without ZeRO-3 or FSDP2", True)
    device: torch.device = accelerator.device
    student = load_model(source.folder, None, config.model.random_init, config=source.config)
    exact: dict[str, Tensor] = {}
    if not fsdp.is_fsdp(accelerator):
        exact = _move(student, torch.device("cpu") if sharded else device, _kept_dtype(plugin))
    reference: Any = None
    if needs_reference:
        reference = frozen_view(student) if shard_reference else frozen_copy(student, device)
    if fsdp.is_fsdp(accelerator):
        fsdp.shard_both(student, reference, shard_reference, accelerator)
    elif sharded:
        if shard_reference and reference is not None:
            _shard(reference, plugin, device)
        _shard(student, plugin, device)
    if config.training.gradient_checkpointing_enable:
        student.recompute_activations()
    prepared, optimizer = accelerator.prepare(student.train(), _optimizer(config, student, peak_rate))
    if plugin is not None:
        _finish_deepspeed(prepared, exact)
    if zero3 and shard_reference and reference is not None:
        reference = _inference_engine(reference, plugin)
    return Models(prepared, optimizer, reference)


def _kept_dtype(plugin: Any) -> torch.dtype:
    """Precision of the network's own weights: DeepSpeed keeps the precise ones apart."""
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}
    asked = [dtype for name, dtype in lower.items() if plugin is not None and plugin.get_value(f"{name}.enabled")]
    return asked[0] if asked else torch.float32


def _move(network: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Moves weight by weight; returns those that `dtype` cannot hold exactly, as they were."""
    exact = {}
    for name, weight in network.named_parameters():
        if torch.promote_types(weight.dtype, dtype) != dtype:
            exact[name] = weight.data
        weight.data = weight.data.to(device, dtype)
    network.to(device)  # buffers, which keep their own precision
    return exact


def _optimizer(config: TrainConfig, student: SDARForCausalLM, peak_rate: float) -> torch.optim.AdamW:
    params = config.optimizer.params
    return torch.optim.AdamW(
        student.parameters(),
        lr=peak_rate,
        betas=(params.beta1, params.beta2),
        eps=params.epsilon,
        weight_decay=params.weight_decay,
    )


def _shard(network: nn.Module, plugin: Any, device: torch.device) -> None:
    """Cuts every weight up among the processes, one after the other, on the device."""
    import deepspeed

    zero = {name: value for name, value in plugin.deepspeed_config["zero_optimization"].items() if value != "auto"}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    dtype = next(network.parameters()).dtype
    deepspeed.zero.Init(module=network, config_dict_or_path=settings, dtype=dtype)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)


def _finish_deepspeed(engine: Any, exact: dict[str, Tensor]) -> None:
    """What DeepSpeed does not do by itself.

    It makes its single-precision weights from the network's, which are rounded where the checkpoint is more precise;
    and the group that it works in waits as long as torch's default, whatever the launch says.
    """
    for name, weight in engine.module.named_parameters():
        if name in exact:
            _set_precise(weight, exact[name])
    _set_pg_timeout(TIMEOUT, engine.seq_data_parallel_group)


def _set_precise(weight: nn.Parameter, exact: Tensor) -> None:
    """Sets the single-precision weights behind `weight`, or this process's part of them."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if "ds_id" not in vars(weight):
        safe_set_full_fp32_param(weight, exact)
        return
    # DeepSpeed's own call for whole weights under ZeRO-3 fails where they do not divide evenly.
    size = vars(weight)["ds_tensor"].numel()
    start = size * torch.distributed.get_rank()
    part = exact.flatten()[start : start + size].to(weight.device, torch.float32)
    safe_set_local_fp32_param(weight, nn.functional.pad(part, (0, size - len(part))))


def _inference_engine(reference: nn.Module, plugin: Any) -> Any:
    """DeepSpeed's engine around a sharded network without an optimizer: it gathers each layer while it computes."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=reference, config=copy.deepcopy(plugin.deepspeed_config))
    engine.eval()
    return engine
