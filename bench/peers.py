"""The decoders that ours is compared with, written as their users run them.

Both commit a finished block by a forward of its own (S + 1 forwards per block of S steps), keep keys and values in
transformers' own cache and run everybody in lockstep until the last one ends.  They share the model, the drawing and
the strategies with the engine, so that only the decoding differs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from t3d.decoding import DecodingConfig
from t3d.decoding.draws import judge
from t3d.decoding.reveal import choose
from t3d.remasking import RANKED_BY
from t3d.sdar import SDARForCausalLM


@dataclass
class Outcome:
    """What a peer decoded: responses cut at their end, the forwards it took (prefill left out), and its blocks."""

    responses: list[list[int]]
    forwards: int
    blocks: int


def decode_alone(model: SDARForCausalLM, prompts: list[list[int]], config: DecodingConfig) -> Outcome:
    """One prompt after another, logits at every position of every forward: what SDAR's own generator does."""
    outcomes = [decode_together(model, [prompt], config, commit_logits=None) for prompt in prompts]
    return Outcome(
        [outcome.responses[0] for outcome in outcomes],
        sum(outcome.forwards for outcome in outcomes),
        sum(outcome.blocks for outcome in outcomes),
    )


@torch.inference_mode()
def decode_together(
    model: SDARForCausalLM, prompts: list[list[int]], config: DecodingConfig, commit_logits: int | None = 0
) -> Outcome:
    """A static batch, prompts padded on the left to the longest, until every response has ended.

    Args:
        model: the network.
        prompts: token ids of each prompt.
        config: greedy decoding settings.
        commit_logits: rows of logits that a commit computes: 0, none of them being read, or None for all.
    """
    size, steps = config.block_size, config.denoising_steps
    starts = torch.tensor([len(prompt) // size * size for prompt in prompts])
    width = int(starts.max())
    offsets = torch.arange(size)
    cache = DynamicCache()
    seen = torch.arange(width) >= (width - starts)[:, None]
    if width:
        positions = torch.arange(width) - (width - starts)[:, None]
        padded = [
            [0] * (width - int(start)) + prompt[: int(start)] for prompt, start in zip(prompts, starts, strict=True)
        ]
        block = torch.div(positions, size, rounding_mode="floor")
        mask = (block[:, :, None] >= block[:, None, :]) & seen[:, None, :] | torch.eye(width, dtype=torch.bool)
        _forward(model, torch.tensor(padded), mask, positions.clamp(min=0), cache, commit_logits)
    tails = [prompt[int(start) :] for prompt, start in zip(prompts, starts, strict=True)]
    ids = torch.tensor([tail + [config.mask_id] * (size - len(tail)) for tail in tails])
    masked = offsets >= torch.tensor([len(tail) for tail in tails])[:, None]
    responses: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    forwards = blocks = 0
    while not all(ended):
        fresh = masked.clone()
        positions = (starts + blocks * size)[:, None] + offsets
        seen = torch.cat([seen, torch.ones_like(fresh)], dim=1)
        mask = seen[:, None, :].expand(-1, size, -1)
        for step in range(steps):
            if not masked.any():
                break
            logits = _forward(model, ids, mask, positions, cache, None)
            cache.crop(-size)
            forwards += 1
            reveal, drawn = _choose(logits, masked, step, config)
            ids = torch.where(reveal, drawn, ids)
            masked = masked & ~reveal
        blocks += 1
        for row, tokens in enumerate(ids.tolist()):
            if not ended[row]:
                responses[row] += [token for token, new in zip(tokens, fresh[row].tolist(), strict=True) if new]
                ended[row] = _cut(responses[row], config)
        if not all(ended):
            _forward(model, ids, mask, positions, cache, commit_logits)
            forwards += 1
            ids = torch.full_like(ids, config.mask_id)
            masked = torch.ones_like(masked)
    return Outcome(responses, forwards, blocks)


def _forward(
    model: SDARForCausalLM, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, num_logits: int | None
) -> Tensor:
    rows = None if num_logits is None else torch.arange(num_logits)
    return model(
        ids, attention_mask=mask[:, None], position_ids=positions, past_key_values=cache, logit_rows=rows
    ).logits


def _choose(logits: Tensor, masked: Tensor, step: int, config: DecodingConfig) -> tuple[Tensor, Tensor]:
    draws = judge(logits.flatten(0, 1), None, RANKED_BY[config.remasking_strategy], config)
    score = draws.score.view_as(masked).numpy()
    revealed = choose(masked.numpy(), np.full(len(masked), step), score, config)
    return torch.from_numpy(revealed), draws.tokens.view_as(masked)


def _cut(response: list[int], config: DecodingConfig) -> bool:
    """Cuts a response at its end; False if it has none yet."""
    stops = [place + 1 for place, token in enumerate(response) if token in config.stop_ids]
    length = min([*stops[:1], config.max_new_tokens])
    ended = bool(stops) or len(response) >= config.max_new_tokens
    del response[length:]
    return ended
