"""Student, optimizer and frozen reference, made ready for the launch without ever being in memory twice on the host.

The network is read in the precision that it is stored in.  From there each weight goes to its device in the precision
that it is kept in, one after the other, and under ZeRO-3 and FSDP2 straight into shards.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import __version__ as version
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from t3d.config import TrainConfig, TrainingConfig
from t3d.errors import CheckpointError, ConfigError
from t3d.sdar.adapter import FOLDER, merge
from t3d.sdar.checkpoint import load_model, save_model
from t3d.sdar.mixture import STACKED, SDARMoeConfig
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.opening import Checkpoint
from t3d.training import fsdp
from t3d.training.kernel import COMPUTED_IN
from t3d.training.launch import TIMEOUT
from t3d.training.lora import adapter_of, add_adapter
from t3d.training.optimizer import make_optimizer
from t3d.training.reference import frozen_copy, frozen_view, gather, has_adapter


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
        CheckpointError: see `load_model`; or several processes, and experts that no release but 5.x can train so.
        ConfigError: a sharded reference without ZeRO-3 or FSDP2, or a whole one of an adapter with it; a loss of
            routers, or layers to adapt, that are not there; or more layers to recompute than there are.
    """
    torch.manual_seed(config.training.seed)
    # Under ZeRO-3 transformers would cut parameters up while loading, in an order of its own.
    unset_hf_deepspeed_config()
    plugin = accelerator.state.deepspeed_plugin
    sharded = _is_sharded(accelerator)
    shard_reference = _shards_reference(config, sharded)
    _check_experts(config, source, accelerator.num_processes)
    device: torch.device = accelerator.device
    student = load_model(source.folder, None, config.model.random_init, config=source.config)
    if config.model.lora_rank:
        add_adapter(student, config.model)
    exact: dict[str, Tensor] = {}
    if not fsdp.is_fsdp(accelerator):
        computed = COMPUTED_IN[accelerator.mixed_precision]
        exact = _move(student, torch.device("cpu") if sharded else device, _kept_dtype(plugin), computed)
    reference: Any = None
    if needs_reference:
        reference = frozen_view(student) if shard_reference else frozen_copy(student, device)
    if fsdp.is_fsdp(accelerator):
        fsdp.shard_both(student, reference, shard_reference, accelerator)
    elif sharded:
        if shard_reference and reference is not None:
            _shard(reference, plugin, device)
        _shard(student, plugin, device)
    _recompute(student, config.training)
    scaled = accelerator.scaler is not None
    optimizer = make_optimizer(student, config.optimizer.params, peak_rate, device, scaled)
    prepared, optimizer = accelerator.prepare(student.train(), optimizer)
    if plugin is not None:
        _finish_deepspeed(prepared, exact)
    if plugin is not None and sharded and shard_reference and reference is not None:
        reference = _inference_engine(reference, plugin)
    return Models(prepared, optimizer, reference)


def whole_weights(accelerator: Accelerator, student: Any) -> dict[str, Tensor]:
    """The student's weights, or its adapter's if it has one, whole, on the main process; all must call this together.

    A process that holds the weights whole itself makes no copy of them in its host's memory, but for the main one.
    """
    network = accelerator.unwrap_model(student)
    if has_adapter(network):
        return gather(network, accelerator.is_main_process)
    return accelerator.get_state_dict(student) if accelerator.is_main_process or _is_sharded(accelerator) else {}


def save_student(
    student: SDARForCausalLM, weights: dict[str, Tensor], source: Checkpoint, target: Path, card: str
) -> None:
    """Writes a model folder of the student's weights; an adapter is merged, and lies beside them too.

    It is merged into the weights as they are stored, which may be more precise than those that the student has.

    Args:
        student: without what wraps it.
        weights: its `whole_weights`.
        source: the model that it started from.
        target: the folder to write, replaced if it exists.
        card: text of its model card.
    """
    adapter = adapter_of(student, weights)
    if adapter is not None:
        student = merge(load_model(source.folder, config=source.config), adapter, target / FOLDER)
        weights = student.state_dict()
    save_model(student, weights, source.folder, target, card, adapter)


def _is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights (ZeRO-3, FSDP2)."""
    plugin = accelerator.state.deepspeed_plugin
    return (plugin is not None and plugin.zero_stage == 3) or fsdp.is_fsdp(accelerator)


def _shards_reference(config: TrainConfig, sharded: bool) -> bool:
    """Whether the reference is divided, as the student is if it is `sharded`; refuses what cannot be."""
    asked = config.training.shard_reference
    if asked and not sharded:
        raise ConfigError("training.shard_reference", "null or false without ZeRO-3 or FSDP2", asked)
    if sharded and asked is False and config.model.lora_rank:
        raise ConfigError("training.shard_reference", "null or true with model.lora_rank under ZeRO-3", asked)
    return sharded and asked is not False


def _check_experts(config: TrainConfig, source: Checkpoint, num_processes: int) -> None:
    """Refuses what a network without experts, or with experts apart, cannot do."""
    mixture = isinstance(source.config, SDARMoeConfig)
    if config.training.router_aux_weight and not mixture:
        expected = f"0, as {source.folder} is no mixture of experts"
        raise ConfigError("training.router_aux_weight", expected, config.training.router_aux_weight)
    if mixture and num_processes > 1 and not STACKED:
        # An expert that no token of a process goes to would have no gradient there, and the others would wait for it.
        expected = "one process, or a transformers release that stacks experts (5.x)"
        raise CheckpointError(source.folder, expected, f"{num_processes} processes and transformers {version}")


def _kept_dtype(plugin: Any) -> torch.dtype:
    """Precision of the network's own weights: DeepSpeed keeps the precise ones apart."""
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}
    asked = [dtype for name, dtype in lower.items() if plugin is not None and plugin.get_value(f"{name}.enabled")]
    return asked[0] if asked else torch.float32


def _move(network: nn.Module, device: torch.device, dtype: torch.dtype, computed: torch.dtype) -> dict[str, Tensor]:
    """Moves weight by weight; returns those to train that `dtype` cannot hold exactly, as they were.

    Frozen weights that are stored in the precision that is `computed` in stay in it: no small update is lost on them.
    """
    exact = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad and torch.promote_types(weight.dtype, dtype) != dtype:
            exact[name] = weight.data
        stays = not weight.requires_grad and weight.dtype == computed
        weight.data = weight.data.to(device, computed if stays else dtype)
    network.to(device)  # buffers, which keep their own precision
    return exact


def _recompute(student: SDARForCausalLM, training: TrainingConfig) -> None:
    """Has activations recomputed as the configuration says."""
    asked, present = training.checkpoint_layers, student.config.num_hidden_layers
    if asked is not None and asked > present:
        raise ConfigError("training.checkpoint_layers", f"null, or at most {present}, the layers of the model", asked)
    if training.gradient_checkpointing_enable:
        student.recompute_activations(asked)


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

    shares_head = has_adapter(reference)
    inner = reference.get_submodule("model") if shares_head else reference
    engine, *_ = deepspeed.initialize(model=inner, config=copy.deepcopy(plugin.deepspeed_config))
    engine.eval()
    return reference if shares_head else engine
