"""A model before its weights are loaded: folder, tokenizer, and a configuration with nothing missing.

Published `config.json` files do not all say the same.  Every stage (decoding, training, evaluation, the harness)
takes what they leave out from here.
"""

import copy
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from t3d.errors import CheckpointError
from t3d.sdar.checkpoint import load_model_config, load_tokenizer, resolve_checkpoint
from t3d.sdar.configuration import SDARConfig

log = logging.getLogger(__name__)

MASK = "<|MASK|>"


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, read and checked.

    Attributes:
        folder: where it lies.
        config: its configuration; `block_size` and `mask_token_id` are there.
        tokenizer: its tokenizer.
        assumed: a line for each value that its `config.json` leaves out.
    """

    folder: Path
    config: SDARConfig
    tokenizer: PreTrainedTokenizerBase
    assumed: tuple[str, ...] = ()

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        assert self.config.mask_token_id is not None  # `open_checkpoint` sees to it
        return self.config.mask_token_id


def open_checkpoint(name: str, block_size: int) -> Checkpoint:
    """Finds a model, checks its configuration against its tokenizer and completes it; says once what was missing.

    Args:
        name: a folder or a hub id.
        block_size: positions per block of the run, for a model whose configuration has none of its own.

    Raises:
        CheckpointError: no such model; one of another kind; or one whose configuration and tokenizer contradict each
            other about the mask token or the size of the vocabulary.
    """
    folder = resolve_checkpoint(name)
    config, tokenizer = load_model_config(folder), load_tokenizer(folder)
    path = folder / "config.json"
    _check_vocabulary(path, config, tokenizer)
    missing = {
        "mask_token_id": (_mask_id(path, config, tokenizer), f"the tokenizer's {MASK}"),
        "block_size": (block_size, "this run's"),
    }
    config, assumed = copy.deepcopy(config), []
    for field, (value, source) in missing.items():
        if vars(config)[field] is None:
            vars(config)[field] = value
            assumed.append(f"{path} has no {field}: {value} is used, {source}")
            _say(assumed[-1])
    return Checkpoint(folder, config, tokenizer, tuple(assumed))


def _mask_id(path: Path, config: SDARConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The mask token, on which configuration and tokenizer agree as far as they know one."""
    known = tokenizer.get_vocab().get(MASK, tokenizer.mask_token_id)
    found = config.mask_token_id
    if known is None and found is None:
        raise CheckpointError(f"{path}, mask_token_id", f"an id, or a tokenizer that has {MASK}", "neither")
    if known is not None and found is not None and known != found:
        raise CheckpointError(f"{path}, mask_token_id", f"{known}, the tokenizer's {MASK}", found)
    return int(known if found is None else found)


def _check_vocabulary(path: Path, config: SDARConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    needed = max(tokenizer.get_vocab().values()) + 1
    if config.vocab_size < needed:
        raise CheckpointError(f"{path}, vocab_size", f"at least {needed}, as the tokenizer has ids", config.vocab_size)


@cache
def _say(line: str) -> None:
    """Logs a line once per command: in the first process of a launch, the first time."""
    if os.environ.get("RANK", "0") == "0":
        log.info("%s", line)
