"""Training an adapter in place of the whole network (`model.lora_rank`).

The network's own weights are frozen, and the student and DDO's reference are two views on the one set of them, each
with an adapter of its own: see `t3d.training.reference`.
"""

from torch import Tensor, nn

from t3d.config.schema import ModelConfig
from t3d.sdar.adapter import ROOT, Adapter
from t3d.sdar.modeling import SDARForCausalLM

NAME = "default"
"""peft's name of a network's adapter, where nobody chooses another; it stands in names of parameters."""


def add_adapter(network: SDARForCausalLM, model: ModelConfig) -> None:
    """Puts an adapter into `network` and freezes everything else.

    It starts at B = 0, so that nothing changes, with A drawn from torch's global random stream.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

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
