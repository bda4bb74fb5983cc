"""Model folders: finding, loading and saving them, never running code that they carry."""

import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers import __version__ as version
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from t3d.errors import CheckpointError, one_line
from t3d.sdar.adapter import FOLDER as ADAPTER_FOLDER
from t3d.sdar.adapter import Adapter
from t3d.sdar.backend import Heads
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.decoding_layers import compile_layers, pack_layers
from t3d.sdar.mixture import COUNTS, NETWORKS, SDARMoeConfig, build_network
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.weights import HEAD, empty_network, weights_problem
from t3d.storage.folders import atomic_folder
from t3d.storage.paths import model_path, start_of

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf)|.*\.(safetensors|bin)\.index\.json")
CHAT_END, TEXT_END = "<|im_end|>", "<|endoftext|>"
MAX_SHARD_SIZE = "5GB"
CARD = "README.md"


def resolve_checkpoint(name: str, only: str | None = None) -> Path:
    """The folder of a model: `name` itself, or the hub's copy if `name` is an id such as JetLM/SDAR-4B-Chat.

    Args:
        name: a folder or a hub id.
        only: the one file that is wanted of the hub's copy; None wants all.

    Raises:
        CheckpointError: neither a folder nor a model that the hub gives out.
    """
    folder = model_path(name)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(name):
        expected = f"a model folder{start_of(name)} or a hub id (organisation/name)"
        raise CheckpointError(name, expected, "no such folder")
    try:
        return Path(snapshot_download(name, allow_patterns=only))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = one_line(error)
        raise CheckpointError(
            name, f"a model folder{start_of(name)} or a model on the hub", f"neither ({reason})"
        ) from error


def load_model_config(folder: Path) -> SDARConfig:
    """Reads `config.json`, which may leave out block size and mask token (see `t3d.sdar.opening`).

    Raises:
        CheckpointError: no readable `config.json`, or one of another model type, or with impossible values.
    """
    path = folder / "config.json"
    return config_of(path, read_object(path))


def config_of(path: Path, fields: dict[str, Any]) -> SDARConfig:
    """The configuration that the fields of `config.json` make.

    Args:
        path: of the file, for messages.
        fields: what it says.

    Raises:
        CheckpointError: another model type, or impossible values.
    """
    kind = fields.get("model_type", "none")
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise CheckpointError(path, "model_type " + " or ".join(f'"{name}"' for name in NETWORKS), kind)
    for name in ("vocab_size", "block_size", "mask_token_id", *(COUNTS if kind == "sdar_moe" else ())):
        value = fields.get(name)
        if type(value) is not int and (name == "vocab_size" or value is not None):  # a bool is an int to isinstance
            raise CheckpointError(path, f"{name}, an integer", fields.get(name, "none"))
    if type(layers := fields.get("num_hidden_layers", 1)) is not int or layers < 1:
        raise CheckpointError(path, "num_hidden_layers, an integer of at least 1", layers)
    if not isinstance(dense := fields.get("mlp_only_layers") or [], list):
        raise CheckpointError(path, "mlp_only_layers, a list of layers' numbers", dense)
    if fields.get("use_sliding_window"):
        raise CheckpointError(path, "use_sliding_window false: every token sees all earlier blocks", "true")
    if (quantized := fields.get("quantization_config")) is not None:
        method = quantized.get("quant_method", quantized) if isinstance(quantized, dict) else quantized
        raise CheckpointError(path, "no quantization_config: quantized weights are not supported", method)
    try:
        config = NETWORKS[kind][0].from_dict(copy.deepcopy(fields))
        _try_out(config)
    except (StrictDataclassError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        found = f"a value that transformers does not know, {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(path, "an SDAR configuration", found) from error
    return config


def _try_out(config: SDARConfig) -> None:
    """Builds one layer, without memory for it: raises whatever transformers makes of values that are no network's."""
    layer = copy.deepcopy(config)
    layer.num_hidden_layers, layer.layer_types = 1, ["full_attention"]
    if isinstance(layer, SDARMoeConfig):
        layer.decoder_sparse_step, layer.mlp_only_layers = 1, []
    empty_network(layer)
    heads, keys, _ = Heads.of(config)
    if heads % keys:
        raise ValueError(f"num_attention_heads: expected a multiple of num_key_value_heads = {keys}, found {heads}")
    if strange := set(config.layer_types or ()) - {"full_attention"}:
        raise ValueError(f"layer_types: expected full_attention alone, found {min(strange)}")


def read_object(path: Path) -> dict[str, Any]:
    """What a model folder's JSON file says.

    Raises:
        CheckpointError: no such file, or no JSON object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(path, "the model's configuration", "no such file") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(path, "JSON", str(error)) from error
    if not isinstance(fields, dict):
        raise CheckpointError(path, "a JSON object", type(fields).__name__)
    return fields


def load_model(
    folder: Path,
    dtype: torch.dtype | None = None,
    random_init: bool = False,
    num_parts: int = 1,
    config: SDARConfig | None = None,
) -> SDARForCausalLM:
    """Loads the network in eval mode, on the CPU unless it is divided.

    Args:
        folder: holds `config.json` and safetensors weights, sharded or not.
        dtype: of the parameters; None keeps the stored one.
        random_init: ignore the weights and initialise from torch's global random stream.
        num_parts: processes of the launch, each of which loads its part of every layer (transformers' tensor
            parallelism) on its own device.
        config: its configuration, completed (see `t3d.sdar.opening`); None takes the folder's as it is.

    Raises:
        CheckpointError: weights missing, unreadable, or of other names or shapes than the configuration's; or
            heads that cannot be divided into `num_parts`.
    """
    config = config or load_model_config(folder)
    if random_init:
        return build_network(config).to(dtype or torch.float32).eval()  # type: ignore[arg-type]
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(folder, "weights (*.safetensors)", "none")
    if problem := weights_problem(folder, config):  # transformers would tell it in a page
        raise CheckpointError(folder, "the weights that its config.json asks for", problem)
    transformers_logging.disable_progress_bar()
    divided = {} if num_parts == 1 else {"distributed_config": _division(config, num_parts, folder)}
    try:
        loaded: Any = NETWORKS[config.model_type][1].from_pretrained(
            folder, config=config, dtype=dtype or "auto", output_loading_info=True, use_safetensors=True, **divided
        )
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(folder, "readable weights for its config.json", error) from error
    model, report = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if report[problem]:
            names = sorted(map(str, report[problem]))
            raise CheckpointError(folder, f"no {problem.replace('_', ' ')}", f"{len(names)}, such as {names[0]}")
    if num_parts > 1:
        # What the decoder reads of the configuration are the heads of this process.
        model.config.num_attention_heads //= num_parts
        model.config.num_key_value_heads //= num_parts
    return model.eval()


def load_decoder(
    folder: Path, dtype: str, device: torch.device, compiled: bool = False, config: SDARConfig | None = None
) -> SDARForCausalLM:
    """Loads a network that will only decode: on its device, with the fastest products that this has.

    Args:
        folder: see `load_model`.
        dtype: name of a torch type; "auto" keeps the stored one.
        device: where to.
        compiled: see `compile_layers`.
        config: see `load_model`.

    Raises:
        CheckpointError: see `load_model`.
    """
    model = load_model(folder, None if dtype == "auto" else getattr(torch, dtype), config=config)
    model.to(device)  # type: ignore[arg-type]
    if not compiled or model.device.type != "cpu":  # torch.compile cannot read oneDNN's weights
        pack_layers(model)
    if compiled:
        compile_layers(model)
    return model


def _division(config: SDARConfig, num_parts: int, folder: Path) -> Any:
    """How transformers divides the network among the processes of the launch."""
    heads = config.num_key_value_heads
    if heads is None or heads % num_parts:
        raise CheckpointError(folder, f"key/value heads that {num_parts} processes can share", heads)
    make: Any = DistributedConfig
    try:
        return make(tp_size=num_parts, tp_plan="auto")
    except TypeError as error:
        raise CheckpointError(folder, "a transformers release that can divide it (5.x)", version) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer beside a model.

    Raises:
        CheckpointError: none there, or an unreadable one.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise CheckpointError(folder, "a tokenizer (tokenizer_config.json and its files)", reason) from error


def chat_end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a chat turn: <|im_end|>, or the eos token of a tokenizer without it.

    Raises:
        CheckpointError: the tokenizer has neither.
    """
    return _end_id(tokenizer, CHAT_END)


def text_end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a text: <|endoftext|>, or the eos token of a tokenizer without it.

    Raises:
        CheckpointError: the tokenizer has neither.
    """
    return _end_id(tokenizer, TEXT_END)


def _end_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.get_vocab().get(token, tokenizer.eos_token_id)
    if found is None:
        raise CheckpointError(tokenizer.name_or_path, f"a tokenizer with {token} or an eos_token", "neither")
    return found


def default_stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Stop tokens of a model: of its settings, configuration and tokenizer, and <|im_end|>.

    Raises:
        CheckpointError: unreadable settings, or a tokenizer without an end of turn.
    """
    found = {chat_end_id(tokenizer), tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ids = read_object(folder / name).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if strange := [token for token in ids if token is not None and type(token) is not int]:
                raise CheckpointError(folder / name, "eos_token_id, an id or a list of them", strange[0])
            found |= set(ids)
    return tuple(sorted(found - {None}))


def save_model(
    model: SDARForCausalLM,
    state: Mapping[str, Tensor],
    source: Path,
    target: Path,
    card: str | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Writes a model folder that every engine that reads `source` can read; a half-written one is never seen.

    Everything in `source` but its weights is carried over byte for byte (config, tokenizer, generation
    settings, remote-code files, which are copied and never run), so that only the weights differ; and the card,
    where a new one is given.

    Args:
        model: the network, for its parameter layout.
        state: its weights, gathered.
        source: the model folder it was trained from.
        target: the folder to write, replaced if it exists.
        card: text of its model card, which takes the place of the one in `source`.
        adapter: what was merged into the weights, to lie in a folder inside.
    """
    dtype: Any = load_model_config(source).dtype or torch.float32
    with atomic_folder(target) as folder:
        weights = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
        if model.config.tie_word_embeddings:
            weights.pop(HEAD, None)  # DeepSpeed gathers it beside the embeddings that it is
        model.save_pretrained(folder, state_dict=weights, max_shard_size=MAX_SHARD_SIZE)
        for path in folder.iterdir():
            if not WEIGHTS.fullmatch(path.name):
                path.unlink()
        for path in source.iterdir():
            if path.is_file() and not WEIGHTS.fullmatch(path.name):
                shutil.copyfile(path, folder / path.name)
        if card is not None:
            (folder / CARD).write_text(card, encoding="utf-8")
        if adapter is not None:
            adapter.write(folder / ADAPTER_FOLDER)
