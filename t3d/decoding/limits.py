"""What can be decoded at all: prompts that fit the model, in portions that stall nobody."""

from t3d.decoding.cache import padded_keys
from t3d.decoding.config import DecodingConfig
from t3d.sdar.configuration import SDARConfig

PREFILL_TOKENS = 512
"""Most prompt tokens per forward, so that long prompts do not stall the sequences that run beside them."""


def prefill_chunk(block_size: int) -> int:
    """Prompt tokens that one sequence prefills per forward: whole blocks.

    It depends on nothing else that runs, so that `num_forwards` does not either.
    """
    return max(1, PREFILL_TOKENS // block_size) * block_size


def prefill_forwards(prompt_length: int, block_size: int) -> int:
    """Forwards that prefill the whole blocks of a prompt."""
    whole = prompt_length // block_size * block_size
    return -(-whole // prefill_chunk(block_size))


def full_length(prompt_length: int, config: DecodingConfig) -> int:
    """Positions of the prompt and the longest response, in whole blocks."""
    return -(-(prompt_length + config.max_new_tokens) // config.block_size) * config.block_size


def cache_length(longest_prompt: int, config: DecodingConfig) -> int:
    """Positions of a slot that holds any prompt up to the longest, and its response."""
    return padded_keys(full_length(longest_prompt, config))


def prompt_error(model: SDARConfig, prompt: list[int], config: DecodingConfig) -> str | None:
    """Why a prompt cannot be decoded; None if it can (the empty prompt can, too)."""
    vocab_size = model.vocab_size  # transformers' configurations are slow to ask
    strange = next((token for token in prompt if not 0 <= token < vocab_size), None)
    if strange is not None:
        return f"token id {strange} in the prompt, outside the model's vocabulary of {vocab_size}"
    if full_length(len(prompt), config) > model.max_position_embeddings:
        response = f"up to {config.max_new_tokens} new ones in blocks of {config.block_size}"
        return f"{len(prompt)} prompt tokens + {response}, beyond the model's {model.max_position_embeddings} positions"
    return None
