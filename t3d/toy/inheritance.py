"""A toy model for new words that starts from another one's weights, so that it need not learn everything again."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t3d.sdar.checkpoint import load_model, load_model_config, load_tokenizer, save_model
from t3d.sdar.mixture import build_network

EMBEDDINGS = "model.embed_tokens.weight"


def inherit(source: Path, folder: Path) -> None:
    """Gives a model folder without weights those of another model, which differs in its tokenizer only.

    Args:
        source: the other model; its head is its embeddings.
        folder: `config.json` and the new tokenizer; the weights are added.

    Raises:
        CheckpointError: either folder's files.
    """
    state = load_model(source).state_dict()
    state[EMBEDDINGS] = _embeddings(state[EMBEDDINGS], load_tokenizer(source), load_tokenizer(folder))
    save_model(build_network(load_model_config(folder)), state, folder, folder)


def _embeddings(known: Tensor, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> Tensor:
    """Rows for the new tokens: a known token's own, or the mean of those that its text was read as (V_new, D)."""
    ids = old.get_vocab()
    rows = []
    for token, number in sorted(new.get_vocab().items(), key=lambda entry: entry[1]):
        pieces = [ids[token]] if token in ids else old(new.decode([number]), add_special_tokens=False)["input_ids"]
        rows.append(known[pieces].mean(dim=0))
    return torch.stack(rows)
