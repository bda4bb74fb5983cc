"""Makes an SDAR checkpoint of a Qwen3 one, dense or a mixture of experts, to be trained on with objective=sft.

Its weights stay. What is new: the mask token <|MASK|>, unless the tokenizer has it, and the block size. The mask's
embedding begins as the mean of all tokens' embeddings; it takes one of the rows that Qwen3 has to spare, and more are
made only where there are none.
"""

from t3d.entry import run_entry

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from t3d.arguments import ArgumentParser, count
from t3d.errors import CheckpointError
from t3d.sdar.checkpoint import MAX_SHARD_SIZE, config_of, load_model, load_tokenizer, read_object, resolve_checkpoint
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.opening import MASK
from t3d.storage.folders import atomic_folder, saving

log = logging.getLogger(__name__)

EXAMPLE = "t3d convert Qwen/Qwen3-1.7B-Base SDAR-1.7B-start --block-size 4"
KINDS = {"qwen3": ("sdar", "SDARForCausalLM"), "qwen3_moe": ("sdar_moe", "SDARMoeForCausalLM")}
"""`model_type` before, and `model_type` and class after."""
VOCABULARIES = ("tokenizer.json", "vocab.json")
ROW_MULTIPLE = 64
"""Embeddings that are enlarged get a multiple of so many rows, as kernels like it."""
CARRIED = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*")
"""Files that stay what they are; those of the tokenizer are written anew, and a model card would tell of Qwen3."""


def main(arguments: list[str]) -> None:
    """Parses the command line and converts.

    Raises:
        UserError: wrong arguments, or see `convert`.
    """
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("source", metavar="QWEN3", help="model folder or hub id")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to write, which must not exist")
    parser.add_argument("--block-size", type=count, default=4, help="positions per block that config.json names")
    options = parser.parse_args(arguments)
    convert(resolve_checkpoint(options.source), options.target, options.block_size)


def convert(source: Path, target: Path, block_size: int) -> None:
    """Writes the SDAR checkpoint `target`, whole or not at all.

    Args:
        source: a Qwen3 model folder.
        target: folder to write.
        block_size: positions per block.

    Raises:
        CheckpointError: `source` is no Qwen3 that can be loaded, or `target` exists.
    """
    if target.exists() or target.is_symlink():
        raise CheckpointError(target, "a folder that does not exist yet", "one that does")
    path = source / "config.json"
    fields = read_object(path)
    kind = fields.get("model_type", "none")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(path, "model_type " + " or ".join(f'"{name}"' for name in KINDS), kind)
    model_type, network = KINDS[kind]
    known = {name: value for name, value in fields.items() if name not in ("auto_map", "mask_token_id")}
    fields = known | {"model_type": model_type, "architectures": [network], "block_size": block_size}
    if "num_local_experts" in fields:  # as transformers 5 writes what every engine reads as
        fields["num_experts"] = fields.pop("num_local_experts")
    config = config_of(path, fields)
    if not any((source / name).is_file() for name in VOCABULARIES):  # transformers would make up an empty one
        raise CheckpointError(source, f"a tokenizer ({' or '.join(VOCABULARIES)})", "none")
    tokenizer = load_tokenizer(source)
    model = load_model(source, config=config)
    mask_id, is_new = add_mask(tokenizer)
    if is_new:
        give_row(model, mask_id, [token for token in tokenizer.get_vocab().values() if token != mask_id])
    fields |= {"vocab_size": model.config.vocab_size, "mask_token_id": mask_id, "rope_theta": config.rotary_base}
    _write(model, tokenizer, fields, source, target)
    rows = f"{model.config.vocab_size} rows, {model.config.vocab_size - known['vocab_size']} of them new"
    how = "the mean of all tokens" if is_new else "as it was"
    log.info("%s: %s, block size %d, mask token %d (%s), %s", target, model_type, block_size, mask_id, how, rows)


def add_mask(tokenizer: PreTrainedTokenizerBase) -> tuple[int, bool]:
    """Id of the mask token, and whether it had to be added."""
    known = tokenizer.get_vocab().get(MASK)
    if known is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer.get_vocab()[MASK], known is None


@torch.no_grad()
def give_row(model: SDARForCausalLM, mask_id: int, tokens: list[int]) -> None:
    """Makes the embedding of the mask token the mean of others, and its row of the output head likewise.

    Args:
        model: its embeddings are enlarged if they lack the row.
        mask_id: of the new token.
        tokens: ids of the tokens to average.
    """
    used = torch.tensor(sorted(tokens))
    if mask_id >= model.config.vocab_size:
        needed = -(-(mask_id + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        model.resize_token_embeddings(needed, mean_resizing=False)
    for rows in (model.model.embed_tokens.weight, model.lm_head.weight):
        rows[mask_id] = rows[used].float().mean(0).to(rows.dtype)


def _write(
    model: SDARForCausalLM, tokenizer: PreTrainedTokenizerBase, fields: dict[str, Any], source: Path, target: Path
) -> None:
    with saving(target), atomic_folder(target) as folder:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        for pattern in CARRIED:
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)


if __name__ == "__main__":
    run_entry(main)
