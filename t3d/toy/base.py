"""The toy model's folder before training: configuration, tokenizer and generation settings.

    python -m t3d.toy.base --out build/toy/base

Without weights, or with those of another toy model: `--weights t3d/toy/teacher`.
"""

from t3d.entry import run_entry

import logging
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerFast

from t3d.arguments import ArgumentParser
from t3d.errors import UserError
from t3d.sdar.configuration import SDARConfig
from t3d.storage.folders import make_folder
from t3d.storage.paths import existing_path, user_path
from t3d.toy import gsm_symbolic
from t3d.toy.inheritance import inherit
from t3d.toy.problems import check_names
from t3d.toy.tokenizer import TURN_END, build_tokenizer, save_tokenizer, train_tokenizer

WORLDS = ("TinyMath", "GSMSymbolic")


def save_base(folder: Path, extra_names: int = 0) -> None:
    """Writes the folder for TinyMath, its tokenizer with `extra_names`."""
    save_shape(folder, build_tokenizer(extra_names=extra_names))


def save_shape(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes the folder: a small Qwen3 shape with SDAR's fields, and the tokenizer."""
    config = SDARConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        block_size=4,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["SDARForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)


def main(arguments: list[str]) -> None:
    """Writes the folder named on the command line."""
    parser = ArgumentParser(
        "Write a toy model's folder before training.", "python -m t3d.toy.base --out build/toy/base"
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder to write")
    parser.add_argument("--world", choices=WORLDS, default="TinyMath", help="whose problems it is for")
    parser.add_argument("--names", type=int, default=0, help="TinyMath's invented names beside the usual: more words")
    words = "a toy model whose weights it starts from; omitted: none"
    parser.add_argument("--weights", type=existing_path, default=None, help=words)
    options = parser.parse_args(arguments)
    check_names(options.names)
    if options.names and options.world != "TinyMath":
        raise UserError("--names", "0 in a world other than TinyMath", options.names)
    if options.world == "TinyMath":
        save_base(make_folder(options.out), options.names)
    else:
        tokenizer = train_tokenizer(gsm_symbolic.generate("train"))
        save_shape(make_folder(options.out), tokenizer)
    if options.weights:
        inherit(options.weights, options.out)
    logging.getLogger(__name__).info("%s", options.out)


if __name__ == "__main__":
    run_entry(main)
