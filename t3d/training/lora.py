"""Training an adapter in place of the whole network (`model.lora_rank`).

The network's own weights are frozen, and the student and DDO's reference are two views on the one set of them, each
with an adapter of its own: see `t3d.training.reference`.
"""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from t3d.config.schema import LINEAR_LAYERS, ModelConfig
from t3d.errors import ConfigError
from t3d.sdar.adapter import ROOT, Adapter
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.weights import empty_network
from t3d.training.reference import gathered, refresh, trained

NAME = "default"
"""peft's name of a network's adapter, where nobody chooses another; it stands in names of parameters."""


def add_adapter(network: SDARForCausalLM, model: ModelConfig) -> None:
    """Puts an adapter into `network` and freezes everything else.

    It starts at B = 0, so that nothing changes, with A drawn from torch's global random stream.

    Raises:
        ConfigError: a layer to adapt that the network has not.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    linear = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    if missing := [name for name in model.lora_targets if name not in linear]:
        there = ", ".join(sorted(linear.intersection(LINEAR_LAYERS)))
        raise ConfigError("model.lora_targets", f"linear layers of this network (of {there})", ", ".join(missing))
    config = LoraConfig(
        r=model.lora_rank,
        lora_alpha=model.adapter_alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=model.lora_dropout,
        target_modules=list(model.lora_targets),
        base_model_name_or_path=model.pretrained_model,
    )
    inject_adapter_in_model(config, network, NAME)
    for module in network.modules():
        if isinstance(module, LoraLayer):
            # Autocast makes the products' precision one; a copy of each input in the adapter's own would be kept.
            module.cast_input_dtype_enabled = False


def adapter_of(network: nn.Module, weights: dict[str, Tensor]) -> Adapter | None:
    """The adapter of a network that `add_adapter` made, as it is written; None if it has none.

    Args:
        network: in which it is.
        weights: its values, gathered, by their names in the network.
    """
    configs = vars(network).get("peft_config")
    if configs is None:
        return None
    named = {f"{ROOT}{name.replace(f'.{NAME}.', '.')}": weight.contiguous() for name, weight in weights.items()}
    return Adapter(configs[NAME], named)


def num_adapter_parameters(shape: SDARConfig, model: ModelConfig) -> int:
    """Parameters of the adapter of a network of this shape; 0 if all weights are trained.

    Raises:
        ConfigError: see `add_adapter`.
    """
    if not model.lora_rank:
        return 0
    network = empty_network(shape)
    add_adapter(network, model)
    return sum(weight.numel() for weight in trained(network).values())


@torch.no_grad()
def copy_weights(network: SDARForCausalLM, student: nn.Module) -> None:
    """Sets `network` to the student's weights, where it has an adapter with that merged, as `save_student` would.

    Args:
        network: of the same shape, without an adapter.
        student: what is trained; where it is divided, all processes must call this together.
    """
    if "peft_config" not in vars(student):
        refresh(network, student)
        return
    for name, ours in network.named_parameters():
        layer = student.get_submodule(name.rpartition(".")[0])
        weights, scaling = dict(layer.named_parameters()), vars(layer).get("scaling")
        with ExitStack() as whole:
            for weight in weights.values():
                whole.enter_context(gathered(weight))
            if scaling is None:
                ours.copy_(weights["weight"])
                continue
            down, up = weights[f"lora_A.{NAME}.weight"].float(), weights[f"lora_B.{NAME}.weight"].float()
            ours.copy_(weights["base_layer.weight"].float() + up @ down * scaling[NAME])
