"""The accelerator of a run: as many processes as were asked for, on whatever device there is."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from t3d.config import TrainConfig
from t3d.errors import ConfigError


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Builds the accelerator, with gloo between CPU processes.

    Raises:
        ConfigError: the launch made another number of processes than `experiment.num_processes`.
    """
    training = config.training
    # torchrun and accelerate launch set WORLD_SIZE; without CUDA accelerate would not find its backend by itself.
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    handlers = [InitProcessGroupKwargs(backend="gloo")] if several_on_cpu else []
    if several_on_cpu and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed.ops

        # Its shared-memory collectives are compiled on first use, for a minute, and compute what gloo computes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = Accelerator(
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        mixed_precision=training.mixed_precision,
        kwargs_handlers=handlers,
    )
    if plugin := accelerator.state.deepspeed_plugin:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = training.batch_size_lm
        plugin.deepspeed_config["gradient_accumulation_steps"] = training.gradient_accumulation_steps
        if config.experiment.gradient_clipping:
            plugin.deepspeed_config["gradient_clipping"] = training.max_grad_norm
    asked = config.experiment.num_processes
    if asked is not None and asked != accelerator.num_processes:
        found = f"{accelerator.num_processes} (a launcher that started one process alone looks like this)"
        raise ConfigError("experiment.num_processes", f"a launch of {asked} processes", found)
    torch.backends.cuda.matmul.allow_tf32 = training.enable_tf32
    return accelerator
