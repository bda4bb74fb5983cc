"""The accelerator of a run: as many processes as were asked for, on whatever device there is."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, is_deepspeed_available

from t3d.config import TrainConfig
from t3d.devices import leave_group_at_exit, reuse_freed_memory
from t3d.errors import ConfigError
from t3d.training import fsdp
from t3d.training.schedule import accumulation_steps

TRUE = ("1", "true", "yes", "on", "y", "t")
"""What a launcher's variable says when it asks for something."""

TIMEOUT = timedelta(hours=4)
"""How long a process waits for the others: while the first one writes a large state to slow storage, or reads the data
for all of them, nothing is wrong.  NCCL's own is ten minutes.  A process that dies still ends the launch at once."""


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Builds the accelerator, with gloo between CPU processes.

    Raises:
        ConfigError: the launch made other numbers of machines or processes than `experiment.num_node` and
            `experiment.num_processes`, a launcher that was asked for several processes started one, DeepSpeed was
            asked for and is not what runs, FSDP is not as it trains here (`fsdp.check_launch`), see `check_group`, or
            `training.grad_accum_dtype` or `training.global_batch_size` is not for this launch.
    """
    training = config.training
    _check_launch(config.experiment.num_node, config.experiment.num_processes)
    check_group(os.environ, torch.cuda.is_available())
    # torchrun and accelerate launch set WORLD_SIZE; without CUDA accelerate would not find its backend by itself.
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    deepspeed_asked = is_asked(os.environ, "ACCELERATE_USE_DEEPSPEED")
    if deepspeed_asked and not is_deepspeed_available():
        raise ConfigError("ACCELERATE_USE_DEEPSPEED", "false, or DeepSpeed installed (pip install deepspeed)", "none")
    fsdp_asked = is_asked(os.environ, fsdp.ASKED)
    fsdp_plugin = fsdp.plugin_of(config) if fsdp_asked else None
    backend = {"backend": "gloo"} if several_on_cpu else {}
    if deepspeed_asked and not torch.cuda.is_available():
        import deepspeed.ops

        # Its shared-memory collectives are compiled on first use, for a minute, and compute what gloo computes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        fsdp_plugin=fsdp_plugin,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT, **backend)],
    )
    if fsdp_plugin is not None:
        fsdp.begin_on_cpu(accelerator, fsdp_plugin)
    leave_group_at_exit()
    if accelerator.device.type == "cpu":
        reuse_freed_memory()
    accelerator.gradient_accumulation_steps = accumulation = accumulation_steps(training, accelerator.num_processes)
    if plugin := accelerator.state.deepspeed_plugin:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = training.batch_size_lm
        plugin.deepspeed_config["gradient_accumulation_steps"] = accumulation
        plugin.deepspeed_config["gradient_clipping"] = config.gradient_limit or 0.0  # 0 is never, as it is here
        # It would wait for the GPU before every forward, for a report that accelerate turns off.
        plugin.deepspeed_config["timers"] = {"throughput": {"enabled": False}}
        _set_accumulation(plugin, training.grad_accum_dtype)
    elif training.grad_accum_dtype == "bfloat16":
        raise ConfigError("training.grad_accum_dtype", "auto or float32 without DeepSpeed", training.grad_accum_dtype)
    if deepspeed_asked and accelerator.distributed_type != DistributedType.DEEPSPEED:
        expected = "false, or a launch that DeepSpeed can run (ACCELERATE_USE_DEEPSPEED=true, no ACCELERATE_USE_CPU)"
        found = f"a launch of type {accelerator.distributed_type.value}"
        raise ConfigError("ACCELERATE_USE_DEEPSPEED", expected, found)
    asked = config.experiment.num_processes
    if asked is not None and asked != accelerator.num_processes:
        raise ConfigError("experiment.num_processes", f"a launch of {asked} processes", accelerator.num_processes)
    torch.backends.cuda.matmul.allow_tf32 = training.enable_tf32
    return accelerator


def is_asked(environment: Mapping[str, str], name: str) -> bool:
    """Whether a launcher's variable asks for what it is about."""
    return environment.get(name, "").lower() in TRUE


def check_group(environment: Mapping[str, str], has_gpu: bool) -> None:
    """Checks that several processes will know of each other.

    Args:
        environment: of a process of the launch.
        has_gpu: its machine has one.

    Raises:
        ConfigError: accelerate would let each train by itself: without a GPU it makes a group where it is told so.
    """
    is_told = is_asked(environment, "ACCELERATE_USE_CPU") or is_asked(environment, "ACCELERATE_USE_DEEPSPEED")
    if int(environment.get("WORLD_SIZE", "1")) > 1 and not has_gpu and not is_told:
        expected = "true in the environment of several processes without GPUs (use_cpu in a file does not set it)"
        raise ConfigError("ACCELERATE_USE_CPU", expected, environment.get("ACCELERATE_USE_CPU", "nothing"))


def _set_accumulation(plugin: Any, dtype: str) -> None:
    """Tells DeepSpeed in which precision to sum micro-batches.

    Where gradients are sharded (ZeRO-2 and 3) single precision costs little memory.  ZeRO-1 would keep a whole set of
    such gradients on every GPU: there it must be asked for.
    """
    types = plugin.deepspeed_config.setdefault("data_types", {})
    if dtype != "auto":
        types["grad_accum_dtype"] = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    elif plugin.zero_stage >= 2:
        types.setdefault("grad_accum_dtype", "fp32")


def _check_launch(num_node: int, num_processes: int | None) -> None:
    """Checks what the launchers leave in the environment, before anything else is put there."""
    told = set(os.environ)
    # torchrun, which accelerate starts for several processes, counts machines; other launchers may not.
    if "GROUP_WORLD_SIZE" in told or "WORLD_SIZE" not in told:
        found = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        if num_node != found:
            raise ConfigError("experiment.num_node", f"a launch on {num_node} machine(s)", found)
    # `accelerate launch --cpu --num_processes 2` says where to meet, and starts one process.
    if {"ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT"} <= told and "WORLD_SIZE" not in told and not num_processes:
        expected = "1 if one process is meant (several on CPUs: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N)"
        found_text = "null, and a launcher that was asked for several processes and started one"
        raise ConfigError("experiment.num_processes", expected, found_text)
