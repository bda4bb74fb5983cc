"""How many sequences the device has room for: what decoding needs beside the weights, counted before it starts."""

import logging
from dataclasses import dataclass
from functools import cache

import torch

from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import row_tiles
from t3d.decoding.limits import cache_length, prefill_chunk
from t3d.devices import GIB, free_memory, usable_memory
from t3d.errors import ConfigError
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM

log = logging.getLogger(__name__)

LOGIT_BYTES, SORTED_BYTES = 24, 40
"""Of each logit that is judged: its copies in single precision on the way to a token, without and with top-p."""


@dataclass(frozen=True)
class DecodingMemory:
    """Bytes that decoding takes beside the weights.

    Attributes:
        shared: whatever the number of sequences: a prefilled chunk or, after it, a tile of logits.
        per_slot: of each sequence: keys and values, and its part of a forward.
    """

    shared: int
    per_slot: int

    def slots(self, room: int) -> int:
        """The sequences that fit into `room` bytes, 0 or more."""
        return max(0, room - self.shared) // self.per_slot


def decoding_memory(
    model: SDARConfig,
    dtype: torch.dtype,
    decoding: DecodingConfig,
    longest_prompt: int,
    device: torch.device,
    recorded: bool = False,
) -> DecodingMemory:
    """What decoding takes, counted from shapes: keys and values exactly, the rest at most.

    Args:
        model: the network's shape.
        dtype: of its weights.
        decoding: settings; the length and the block size count.
        longest_prompt: tokens.
        device: that decodes; it need not be there.
        recorded: forwards are padded, and replayed in memory of their own.
    """
    length, size = cache_length(longest_prompt, decoding), decoding.block_size
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads or model.num_attention_heads
    queries = heads * model.head_dim
    # One layer at a time: the residual stream and its norms, and queries, keys and values before and after rotation or
    # else the MLP.  Norms are computed in single precision.
    widest = max(queries + 2 * kv_heads * model.head_dim, model.mlp_width)
    mask = heads // kv_heads * length  # a query's row for each head that shares its keys, made for all layers
    token = dtype.itemsize * (3 * model.hidden_size + 3 * widest + mask) + 4 * 2 * max(model.hidden_size, queries)
    # On the host: ids, steps and records of each position, random numbers of each step.
    position = 16 + 4 * len(decoding.record) + (4 * decoding.denoising_steps if decoding.temperature > 0 else 0)
    judged, tiles = LOGIT_BYTES if decoding.top_p == 1 else SORTED_BYTES, row_tiles(model.vocab_size, dtype, device)
    logits = tiles.judged * judged + (tiles.product - tiles.judged) * dtype.itemsize
    slot, forward = SlotCache.slot_bytes(model, length, dtype), 2 * size * token
    shared = max(prefill_chunk(size) * token, logits * model.vocab_size)
    return DecodingMemory(
        shared=shared + recorded * (shared + slot),  # the slot that padding writes to
        per_slot=slot + forward * (1 + 2 * recorded) + length * position,
    )


def fitting_slots(
    model: SDARForCausalLM,
    decoding: DecodingConfig,
    longest_prompt: int,
    wanted: int,
    sharing: int = 1,
    recorded: bool = False,
) -> int:
    """As many of the `wanted` sequences as the model's device has room for now; fewer are logged, once.

    Args:
        model: which decodes.
        decoding: settings.
        longest_prompt: tokens.
        wanted: sequences.
        sharing: processes that decode on the device, this one among them, each with an equal part of what is free.
        recorded: see `decoding_memory`.

    Raises:
        ConfigError: not even one fits.
    """
    device = model.device
    needed = decoding_memory(model.config, model.dtype, decoding, longest_prompt, device, recorded)
    room = usable_memory(device) // sharing
    fit = min(wanted, needed.slots(room))
    if fit < 1:
        kept = "the rest is kept back" if sharing == 1 else f"for {sharing} processes, and some is kept back"
        raise ConfigError(
            "rollout.max_token" if sharing == 1 else "rollout.num_workers",
            f"a prompt of {longest_prompt} tokens and {decoding.max_new_tokens} new ones to fit into {room / GIB:.2f} "
            f"GiB ({free_memory(device) / GIB:.2f} are free on {device}, {kept})",
            f"{(needed.shared + needed.per_slot) / GIB:.2f} GiB for one sequence",
        )
    if fit < wanted:
        _tell_once(f"decoding {fit} sequences at a time, not {wanted}: as many as {device} has memory for")
    return fit


@cache
def _tell_once(line: str) -> None:
    log.info("%s (results do not depend on it)", line)


def fewer_slots(num_slots: int, device: torch.device, reason: str, agreed: bool) -> int:
    """How many sequences to go on with after memory ran out, which is logged.

    Args:
        num_slots: sequences that were too many.
        device: which is full.
        reason: in the allocator's words.
        agreed: other processes count on this number.

    Raises:
        ConfigError: it cannot be lowered, as it is 1 or agreed.
    """
    if agreed or num_slots == 1:
        where = "rollout.max_active" if num_slots > 1 else "rollout.max_token"
        raise ConfigError(where, f"memory on {device} for {num_slots} sequence(s) at a time", reason)
    half = num_slots // 2
    log.warning(
        "no memory on %s for %d sequences at a time (%s): going on with %d, which changes no result; "
        "rollout.max_active=%d starts there",
        *(device, num_slots, reason, half, half),
    )
    return half
