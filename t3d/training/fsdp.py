"""FSDP2: weights, gradients and optimizer cut up among the processes by torch's `fully_shard`, as under ZeRO-3.

accelerate reads the launch and saves the states.  The cutting is done here, layer by layer: each layer's weights go to
their device in the precision that they are kept in and are cut up before the next layer's do.

Embeddings, final norm and output head are the root's.  Nothing takes a root's weights away between its forward and its
backward pass, so that the loss may use the head as often as it likes, on any process: none waits for another.
"""

import os
import warnings
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from t3d.config import TrainConfig
from t3d.errors import ConfigError
from t3d.sdar.modeling import SDARForCausalLM
from t3d.training.kernel import COMPUTED_IN

ASKED = "ACCELERATE_USE_FSDP"
STATES = "pytorch_model_fsdp_0"
"""Folder of the weights in a training state."""

REQUIRED = {
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
}
"""What a launch with FSDP must say, by the variables that `accelerate launch` makes of its file.

Every process reads the checkpoint by itself, as a memory map that they share: loading on one process alone would leave
the others with random weights.  Recomputation is `training.gradient_checkpointing_enable`.
"""


def check_launch(config: TrainConfig) -> None:
    """Looks at a launch with FSDP, by its variables, and at what it is to train.

    Raises:
        ConfigError: it trains otherwise than here, or one process alone; or the configuration asks for fp16, whose
            losses would need a scaler, or for an adapter, whose reference shares weights with the student.
    """
    for name, expected in REQUIRED.items():
        found = os.environ.get(name, "1" if name == "FSDP_VERSION" else expected)
        if found.lower() != expected.lower():
            raise ConfigError(name, f"{expected} (accelerate_configs/1_node_8_gpus_fsdp2.yaml)", found)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise ConfigError(ASKED, "false, or a launch of several processes", "a launch of one process")
    if config.training.mixed_precision == "fp16":
        raise ConfigError("training.mixed_precision", "bf16 or no with FSDP2", config.training.mixed_precision)
    if config.model.lora_rank:
        raise ConfigError("model.lora_rank", "0 with FSDP2 (adapters: DDP or DeepSpeed)", config.model.lora_rank)


def plugin_of(config: TrainConfig) -> FullyShardedDataParallelPlugin:
    """Settings of FSDP2 for accelerate.

    Gradients are summed over processes in single precision, and nothing is cast on its way into or out of a layer:
    rotary angles and losses keep their own precision.

    Raises:
        ConfigError: see `check_launch`.
    """
    check_launch(config)
    dtype = COMPUTED_IN[config.training.mixed_precision]
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, mixed_precision_policy=policy, auto_wrap_policy="NO_WRAP", cpu_ram_efficient_loading=False
    )


def begin_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Does between CPU processes what accelerate does between devices of any other kind, and not there."""
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Every look at the one state takes over what the other says.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def is_fsdp(accelerator: Accelerator) -> bool:
    """Whether this launch shards by FSDP2."""
    return accelerator.distributed_type == DistributedType.FSDP


def shard_both(
    student: SDARForCausalLM, reference: SDARForCausalLM | None, shard_reference: bool, accelerator: Accelerator
) -> None:
    """Cuts up the student, and the reference unless each process is to hold all of it.

    The student's parts are in single precision.  The reference's are in the precision that both compute in, which
    rounds each weight as the student's layers do when they gather it: equal weights give equal logits.

    Args:
        student: as it was loaded, on the host.
        reference: with the same weights, if the terms need one.
        shard_reference: or move it to the device as it is.
        accelerator: of the launch.
    """
    # torch warns of layers that return views, because it would not see one that is changed in place: none is here.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    plugin, device = accelerator.state.fsdp_plugin, accelerator.device
    computed = plugin.mixed_precision_policy.param_dtype
    if reference is not None and shard_reference:
        shard(reference, plugin, device, computed)
    elif reference is not None:
        reference.to(device, computed)
    shard(student, plugin, device, torch.float32)


def shard(network: SDARForCausalLM, plugin: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Cuts every weight up among the processes.

    Args:
        network: as it was loaded, on the host.
        plugin: of the launch.
        device: where the parts lie.
        dtype: precision of the parts.
    """
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*network.model.layers, network):
        for weight in module.parameters():
            if not isinstance(weight, DTensor):
                weight.data = weight.data.to(device, dtype)
        root = module is network
        reshard = None if root else plugin.reshard_after_forward
        fully_shard(module, mesh=mesh, mp_policy=plugin.mixed_precision_policy, reshard_after_forward=reshard)
        # torch 2.8's gloo takes a mean for a sum: it is asked for the sum, which is then divided.
        cast(FSDPModule, module).set_force_sum_reduction_for_comms(device.type == "cpu")
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)
