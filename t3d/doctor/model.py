"""The checkpoint: where it is, its weights, its tokenizer, and a decode with a small copy of it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.speculative import iter_speculative
from t3d.doctor.finding import Finding, counted
from t3d.doctor.machine import short_name, size_of
from t3d.errors import CheckpointError
from t3d.sdar.backend import Heads
from t3d.sdar.checkpoint import HUB_ID, load_model_config, resolve_checkpoint
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.decoding_layers import pack_layers
from t3d.sdar.mixture import SDARMoeConfig, build_network
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.opening import open_checkpoint
from t3d.sdar.weights import weights_problem
from t3d.storage.paths import existing_path
from t3d.training.memory import SHAPES, num_parameters

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "layer_types": None}
"""What is shrunk; heads keep their width, which kernels are chosen by."""

SMALL_EXPERTS = {"moe_intermediate_size": 64, "mlp_only_layers": [], "decoder_sparse_step": 1}
"""Of a mixture's experts, whose number stays."""

PAPERS_MASK = 151_669
"""Id of the mask token of the paper's models, where their files are still on the hub."""


@dataclass(frozen=True)
class Patient:
    """The model that a command names.

    Attributes:
        name: as the configuration names it.
        folder: where it lies; None if it is still on the hub.
        config: its configuration; of a model on the hub, if it is one of the paper's.
        tokenizer: None if it is still on the hub.
        assumed: what its `config.json` leaves out, a line each.
    """

    name: str
    folder: Path | None
    config: SDARConfig
    tokenizer: PreTrainedTokenizerBase | None
    assumed: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights are stored in."""
        stored = self.config.dtype
        if isinstance(stored, torch.dtype):
            return stored
        return torch.float32 if self.folder is not None else torch.bfloat16


def find_patient(name: str | None, key: str, block_size: int) -> Patient:
    """Finds the model on this machine; nothing is downloaded.

    Args:
        name: a folder or a hub id.
        key: that names it.
        block_size: of the run.

    Raises:
        CheckpointError: none given, or see `open_checkpoint`.
    """
    if not name:
        raise CheckpointError(key, "a model folder or hub id", "none")
    folder = local_folder(name)
    if folder is None:
        shape = SHAPES.get(Path(name).name)
        if shape is None:
            expected = "a model on this machine, to look at"
            raise CheckpointError(name, f"{expected} (`hf download {name}` fetches it)", "a hub id, not downloaded yet")
        config = SDARConfig(**shape, block_size=block_size, mask_token_id=PAPERS_MASK)
        return Patient(name, None, config, None)
    found = open_checkpoint(str(folder), block_size)
    return Patient(name, folder, found.config, found.tokenizer, found.assumed)


def local_folder(name: str) -> Path | None:
    """The folder of a model, or the hub's copy on this machine; None for an id that is not downloaded.

    Raises:
        CheckpointError: neither a folder nor an id.
    """
    if existing_path(name).is_dir() or not HUB_ID.fullmatch(name):
        return resolve_checkpoint(name)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None


def checkpoint(patient: Patient, needs_weights: bool) -> Iterator[Finding]:
    """The model's size and, on this machine, whether its weights are the configuration's."""
    config = patient.config
    size = f"{num_parameters(config):,} parameters, {counted(config.num_hidden_layers, 'layer')}"
    if patient.folder is None:
        text = f"{patient.name}: {size}; not on this machine, the command downloads it"
        yield Finding("warning", "checkpoint", text, f"hf download {patient.name}, to be sure of it")
        return
    if not needs_weights:
        yield Finding("ok", "checkpoint", f"{patient.folder}: {size}, random weights")
        return
    files = sorted(patient.folder.glob("*.safetensors"))
    stored = size_of(sum(path.stat().st_size for path in files))
    problem = weights_problem(patient.folder, config)
    if problem is None:
        short = short_name(patient.dtype)
        yield Finding(
            "ok", "checkpoint", f"{patient.folder}: {size}, {stored} in {counted(len(files), 'file')}, {short}"
        )
    else:
        yield Finding("error", "checkpoint", f"{patient.folder}: {problem}", "download or copy the model's files again")


def tokenizer(patient: Patient) -> Iterator[Finding]:
    """The tokenizer, its mask token and its chat template."""
    known = patient.tokenizer
    if known is None:
        return
    mask = patient.config.mask_token_id
    assert mask is not None  # the checkpoint is opened
    text = f"{len(known)} tokens, mask {known.convert_ids_to_tokens(mask)} = {mask}"
    if known.chat_template:
        yield Finding("ok", "tokenizer", "; ".join([text, *patient.assumed]))
    else:
        yield Finding("error", "tokenizer", f"{text}, no chat template", "chat_template.jinja beside the tokenizer")


def shrunk(config: SDARConfig) -> SDARConfig:
    """The same kind of network, small enough to run at once: vocabulary and shape of the heads stay."""
    fields = json.loads(config.to_json_string(use_diff=False))
    fields.pop("torch_dtype", None)  # the old name of a field that is there, too
    queries, keys, _ = Heads.of(config)
    heads = {"num_attention_heads": queries // keys, "num_key_value_heads": 1}
    small = SMALL | SMALL_EXPERTS if isinstance(config, SDARMoeConfig) else SMALL
    return type(config)(**{**fields, **small, **heads, "head_dim": config.head_dim})


def small_network(config: SDARConfig, device: torch.device, dtype: torch.dtype) -> SDARForCausalLM:
    """A shrunk network with random weights; the random stream of others is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(shrunk(config)).to(device, dtype).eval()  # type: ignore[arg-type]


def decoding_rehearsal(
    config: SDARConfig, decoding: DecodingConfig, device: torch.device, dtype: torch.dtype, drafted: bool = False
) -> Iterator[Finding]:
    """Decodes two blocks with a shrunk network, by the command's settings, if so through drafts of its own."""
    started = time.perf_counter()
    network = small_network(config, device, dtype)
    pack_layers(network)
    decoding = replace(decoding, max_new_tokens=2 * decoding.block_size)
    prompts = [[1, 2, 3, 4, 5]]
    if drafted:
        ((_, found),) = iter_speculative(network, prompts, decoding)
        ended = found.trajectory
    else:
        (ended,) = decode(network, prompts, decoding, max_active=1)
    where = f"a shrunk copy on {device} in {short_name(dtype)}"
    if ended.error is not None:
        yield Finding("error", "rehearsal", f"{where}: {ended.error}", "another rollout.dtype or rollout.device")
        return
    seconds = time.perf_counter() - started
    yield Finding("ok", "rehearsal", f"{where} decodes {counted(len(ended.response_ids), 'token')} ({seconds:.1f} s)")


def check_config(name: str) -> None:
    """Looks at no more than whether a model is there and of the right kind.

    Raises:
        CheckpointError: it is not.
    """
    folder = local_folder(name)
    if folder is not None:
        load_model_config(folder)
