"""The toy world's tokenizer: byte-level BPE, one token per digit, with SDAR's special tokens and chat template."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from t3d.prompts import user_message
from t3d.storage.files import write_json_atomic
from t3d.toy.problems import generate

VOCAB_SIZE = 2048  # at most; more with invented names, each of which becomes a word
END_OF_TEXT, TURN_START, TURN_END, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
WORD_OR_DIGIT = r" ?[A-Za-z]+| ?[0-9]|\n| ?[^\sA-Za-z0-9]+|\s"


def build_tokenizer(num_problems: int = 20_000, extra_names: int = 0) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on TinyMath's train split (with `extra_names`: see `generate`); the same each time."""
    return train_tokenizer(generate("train", extra_names=extra_names), num_problems, VOCAB_SIZE + 2 * extra_names)


def train_tokenizer(
    problems: Iterator[dict[str, Any]], num_problems: int = 20_000, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of at most `vocab_size` tokens on the first problems of a world's stream, and its prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_OR_DIGIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in (END_OF_TEXT, TURN_START, TURN_END, MASK)],
    )
    first = itertools.islice(problems, num_problems)
    texts = (f"{user_message(item, 'math')}\nuser\nassistant\n{item['answer']}" for item in first)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        mask_token=MASK,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the tokenizer's files, which transformers 4.57 and 5 read alike.

    What 5 writes by itself names a class that 4.57 does not have, and lists the chat's tokens under a key that 4.57
    takes for a mapping.
    """
    tokenizer.save_pretrained(folder)
    fields = {
        "additional_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "mask_token": MASK,
        "model_max_length": tokenizer.model_max_length,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json_atomic(folder / "tokenizer_config.json", fields)
