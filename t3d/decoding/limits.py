"""What can be decoded at all: prompts that fit the model, and a cache that fits the memory."""

import psutil
import torch

from t3d.decoding.config import DecodingConfig
from t3d.errors import ConfigError
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


def prompt_error(model: SDARConfig, prompt: list[int], config: DecodingConfig) -> str | None:
    """Why a prompt cannot be decoded; None if it can (the empty prompt can, too)."""
    strange = next((token for token in prompt if not 0 <= token < model.vocab_size), None)
    if strange is not None:
        return f"token id {strange} in the prompt, outside the model's vocabulary of {model.vocab_size}"
    if full_length(len(prompt), config) > model.max_position_embeddings:
        response = f"up to {config.max_new_tokens} new ones in blocks of {config.block_size}"
        return f"{len(prompt)} prompt tokens + {response}, beyond the model's {model.max_position_embeddings} positions"
    return None


def check_memory(slot_bytes: int, num_slots: int, device: torch.device) -> None:
    """Checks that the key/value cache fits into the memory that is free now.

    Args:
        slot_bytes: bytes of one sequence of the greatest length that can occur.
        num_slots: sequences decoded together.
        device: where the cache will be.

    Raises:
        ConfigError: it does not; the settings to lower are named.
    """
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if slot_bytes * num_slots > free:
        raise ConfigError(
            "rollout.max_active and rollout.max_token",
            f"a key/value cache within the {free / 2**30:.2f} GiB that are free on {device}",
            f"{slot_bytes * num_slots / 2**30:.2f} GiB for {num_slots} sequences of {slot_bytes / 2**20:.1f} MiB "
            f"(at most {free // slot_bytes} fit)",
        )
