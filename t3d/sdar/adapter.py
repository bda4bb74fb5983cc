"""LoRA adapters (Hu et al., arXiv:2106.09685) in peft's format: reading, writing, and merging into a network's weights.

An adapter adds `scale * B @ A` to the weight W of each linear layer that it is for; merged, W + scale * B @ A is the
weight, and nothing tells that there was an adapter.  peft is imported where it is used: what trains no adapter does not
wait for it.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t3d.errors import CheckpointError, named, one_line
from t3d.sdar.modeling import SDARForCausalLM

if TYPE_CHECKING:
    from peft import LoraConfig

FOLDER = "adapter"
"""Folder, inside that of a merged model, of the adapter."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""peft's names of an adapter's files."""
ROOT = "base_model.model."
"""What peft puts before the names of a network's weights."""


@dataclass(frozen=True)
class Adapter:
    """An adapter apart from its network.

    Attributes:
        config: peft's description of it.
        weights: its matrices, by peft's names.
    """

    config: "LoraConfig"
    weights: Mapping[str, Tensor]

    def write(self, folder: Path) -> None:
        """Writes what `peft.PeftModel.from_pretrained` reads."""
        self.config.save_pretrained(str(folder))
        save_file(dict(self.weights), folder / WEIGHTS, metadata={"format": "pt"})


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter that peft wrote.

    Raises:
        CheckpointError: a file missing or unreadable, or an adapter of another kind than LoRA.
    """
    from peft import LoraConfig, PeftConfig

    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise CheckpointError(folder, f"an adapter of peft's ({CONFIG} and {WEIGHTS})", f"no {missing[0]}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(folder / CONFIG, "a configuration that peft reads", named(error)) from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{folder / CONFIG}, peft_type", "LORA", str(config.peft_type).rpartition(".")[2])
    written = json.loads((folder / CONFIG).read_text())
    for name in ("r", "lora_alpha"):  # peft would take its own default, and the weights would be scaled otherwise
        if not isinstance(written.get(name), int | float) or written[name] <= 0:
            raise CheckpointError(f"{folder / CONFIG}, {name}", "a number above 0", written.get(name))
    try:
        return Adapter(config, load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(folder / WEIGHTS, "an adapter's weights", error) from error


def merge(network: SDARForCausalLM, adapter: Adapter, place: Path) -> SDARForCausalLM:
    """Adds an adapter to a network's weights: each in single precision, rounded once to the weight's own.

    Args:
        network: the one that the adapter was trained on; its weights are changed in place.
        adapter: what to add.
        place: where the adapter lies, for errors.

    Returns:
        The network, without any layer of peft's.

    Raises:
        CheckpointError: the adapter is for other layers, for layers of other shapes, or for a matrix that the network
            uses twice; or its weights are no numbers.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    if network.config.tie_word_embeddings and (tied := [name for name in adapter.weights if _is_vocabulary(name)]):
        expected = "no weights for the output head or the embeddings, which are one matrix in this model"
        raise CheckpointError(place, expected, tied[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by older names
            tuned = PeftModel(network, adapter.config)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        expected = "an adapter for layers of this model"
        raise CheckpointError(place, expected, one_line(error)) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not find a config file")  # of the base, by the name in peft's file
        shapes = {name: list(weight.shape) for name, weight in get_peft_model_state_dict(tuned).items()}
    _check_weights(shapes, adapter.weights, place)
    set_peft_model_state_dict(tuned, dict(adapter.weights))
    for layer, weight in _adapted(tuned):
        dtype, weight.data = weight.dtype, weight.data.float()
        try:
            layer.merge(safe_merge=True)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(place, "weights that can be merged", one_line(error)) from error
        weight.data = weight.data.to(dtype)
    return tuned.unload()


def _adapted(network: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Layers that have an adapter, and the weights that it is added to."""
    from peft.tuners.lora import LoraLayer

    for module in network.modules():
        if isinstance(module, LoraLayer):
            yield module, module.get_base_layer().weight


def _is_vocabulary(name: str) -> bool:
    return ".lm_head." in name or ".embed_tokens." in name


def _check_weights(expected: Mapping[str, list[int]], found: Mapping[str, Tensor], place: Path) -> None:
    """Compares names and shapes with those that the network and the adapter's configuration make."""
    for name in sorted({*expected, *found}):
        shape = list(found[name].shape) if name in found else "nothing"
        if shape != expected.get(name, "nothing"):
            where = name.removeprefix(ROOT)
            raise CheckpointError(f"{place}, {where}", f"{expected.get(name, 'nothing')} on this model", shape)
