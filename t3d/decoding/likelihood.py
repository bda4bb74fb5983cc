"""Log-likelihood of a given response: the probability that the sequential decoder writes exactly it.

A block-diffusion model has no single p(x | prompt): it depends on the order in which tokens are revealed.  Scored
here is the order that makes it a chain rule, one token per step from left to right (`sequential` with as many
steps as a block has positions, temperature 1):

    log p(x_1..x_n | c) = sum_i log p_theta(x_i | c, x_1..x_{i-1}, masks up to the end of x_i's block)

Blocks are counted from position 0 of c + x, so the prompt's tail shares the first one, and the last one is filled
up with masks, both as in decoding.  For that decoder this is exact: over all x of one length the probabilities sum
to 1 (the mask token, which is never drawn, has probability 0).  A decoder in another order writes x with another
probability, and so does one that takes fewer steps: with those, asked for by their number, x_i is seen beside the
tokens of earlier steps alone, and the tokens of a step are drawn each by itself.
"""

import gc
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t3d.decoding.memory import fewer_slots
from t3d.devices import exhaustion, give_back
from t3d.errors import DataError
from t3d.remasking import step_quota
from t3d.sampling import best_tokens
from t3d.sdar.attention import TrainingTokens, block_index, may_see
from t3d.sdar.modeling import SDARForCausalLM

LOGIT_BYTES = 128 * 2**20
"""Size of the single-precision logits computed at a time; about four such tensors live."""


class Likelihood(NamedTuple):
    """How likely one response is.

    Attributes:
        log_prob: its log-probability, in nats; 0 for an empty response.
        is_greedy: whether the sequential decoder writes it at temperature 0.
    """

    log_prob: float
    is_greedy: bool


class _Batch(NamedTuple):
    """Rows in the training layout: the clean tokens of every block but the last, a noisy copy of the scored blocks.

    `steps` are the denoising steps, from 0 within their blocks, that reveal the noisy tokens; -1: the prompt's.
    """

    ids: Int[Tensor, "row seq"]
    positions: Int[Tensor, "row seq"]
    noisy: Bool[Tensor, "row seq"]
    scored: Bool[Tensor, "row seq"]
    steps: Int[Tensor, "row seq"]
    documents: Int[Tensor, "row seq"]


def iter_likelihoods(
    model: SDARForCausalLM,
    pairs: Sequence[tuple[list[int], list[int]]],
    mask_id: int,
    block_size: int,
    max_active: int = 32,
    denoising_steps: int | None = None,
) -> Iterator[tuple[int, Likelihood]]:
    """Yields (index of the pair, its likelihood), at most a forward per step of a block and `max_active` pairs.

    Args:
        model: the network, in eval mode, on any device.
        pairs: token ids of each prompt and of the response to score; either may be empty.
        mask_id: id of the mask token.
        block_size: positions per block.
        max_active: most pairs in one forward; results do not depend on it.  Where memory runs out, half of them are
            tried from there on.
        denoising_steps: of the sequential decoder per block, at most `block_size`; None: one for each position.

    Raises:
        DataError: a pair that is longer than the model's context, named by its number.
        ConfigError: no memory for a single pair.
    """
    context, steps = model.config.max_position_embeddings, _reveal_steps(block_size, denoising_steps or block_size)
    for index, (prompt, response) in enumerate(pairs):
        if _padded(len(prompt) + len(response), block_size) > context:
            found = f"{len(prompt)} + {len(response)} tokens in blocks of {block_size}"
            raise DataError(f"pair {index}", f"prompt and response within the model's {context} positions", found)
        if not response:
            yield index, Likelihood(0.0, True)
    # Neighbours in length share a batch, so that little of it is padding.
    order = sorted((index for index, pair in enumerate(pairs) if pair[1]), key=lambda i: sum(map(len, pairs[i])))
    done = 0
    while done < len(order):
        indices, full = order[done : done + max_active], None
        try:
            batch = _lay_out([pairs[index] for index in indices], mask_id, steps, model.device)
            scores = _score(model, batch, mask_id, block_size)
        except (RuntimeError, MemoryError) as error:
            full = exhaustion(error)
            if full is None:
                raise
        if full is not None:
            max_active = fewer_slots(len(indices), model.device, full, agreed=False)
            gc.collect()
            give_back(model.device)
            continue
        done += len(indices)
        yield from zip(indices, scores, strict=True)
    give_back(model.device)


def _padded(length: int, block_size: int) -> int:
    """`length` filled up to whole blocks."""
    return -(-length // block_size) * block_size


def _reveal_steps(block_size: int, denoising_steps: int) -> list[int]:
    """The step, from 0, that reveals each of a block's masked positions, counted from its first one."""
    quotas = step_quota(np.arange(denoising_steps), block_size, denoising_steps).tolist()
    return [step for step, quota in enumerate(quotas) for _ in range(quota)]


def _lay_out(
    pairs: Sequence[tuple[list[int], list[int]]], mask_id: int, steps: list[int], device: torch.device
) -> _Batch:
    """One row per pair; padding is a document of its own.

    Args:
        pairs: prompts and responses.
        mask_id: id of the mask token.
        steps: see `_reveal_steps`; one for each position of a block.
        device: where to.
    """
    rows, block_size = [], len(steps)
    for prompt, response in pairs:
        tokens = prompt + response
        first, end = len(prompt) // block_size * block_size, _padded(len(tokens), block_size)
        clean, noisy = list(range(end - block_size)), list(range(first, end))
        filled = tokens + [mask_id] * (end - len(tokens))
        rows.append(
            [
                [filled[position] for position in clean + noisy],
                clean + noisy,
                [0] * len(clean) + [1] * len(noisy),
                [0] * len(clean) + [int(len(prompt) <= position < len(tokens)) for position in noisy],
                [-1] * len(clean) + [_step_at(position, len(prompt), steps) for position in noisy],
                [0] * (len(clean) + len(noisy)),
            ]
        )
    width = max(len(row[0]) for row in rows)
    fill = (mask_id, 0, 0, 0, -1, 1)
    padded = [[row[field] + [fill[field]] * (width - len(row[field])) for row in rows] for field in range(len(fill))]
    ids, positions, noisy_rows, scored, revealed, documents = torch.tensor(padded, device=device)
    return _Batch(ids, positions, noisy_rows.bool(), scored.bool(), revealed, documents)


def _step_at(position: int, prompt_length: int, steps: list[int]) -> int:
    """The step that reveals a position: in the block that the prompt ends in, the first masked one begins them."""
    if position < prompt_length:
        return -1
    return steps[position - max(prompt_length, position // len(steps) * len(steps))]


@torch.inference_mode()
def _score(model: SDARForCausalLM, batch: _Batch, mask_id: int, block_size: int) -> list[Likelihood]:
    """Evaluates all blocks at once, one step inside the block per forward."""
    tokens = TrainingTokens(block_index(batch.positions, block_size), batch.noisy, batch.documents)
    mask = may_see(tokens.at((..., None)), tokens.at((slice(None), None)))[:, None]
    log_probs = torch.zeros(len(batch.ids), dtype=torch.float64)
    greedy = torch.ones(len(batch.ids), dtype=torch.bool)
    for step in range(int(batch.steps.max()) + 1):
        asked = batch.scored & (batch.steps == step)
        if not asked.any():
            continue
        values, hits = model(
            batch.ids.masked_fill(batch.noisy & (batch.steps >= step), mask_id),
            attention_mask=mask,
            position_ids=batch.positions,
            logit_rows=asked.flatten().nonzero()[:, 0],
            head=partial(_judge, targets=batch.ids[asked], mask_id=mask_id),
        )
        rows = asked.nonzero()[:, 0].cpu()
        log_probs.index_add_(0, rows, values.cpu().double())
        greedy[rows[~hits.cpu()]] = False
    return list(map(Likelihood, log_probs.tolist(), greedy.tolist()))


def _judge(
    head: torch.nn.Module, hidden: Float[Tensor, "asked hidden"], targets: Int[Tensor, " asked"], mask_id: int
) -> tuple[Float[Tensor, " asked"], Bool[Tensor, " asked"]]:
    """Log-probability of each target, and whether it is the most probable token; of so many rows at a time."""
    values, hits = [], []
    size = max(1, LOGIT_BYTES // (4 * head.out_features))  # type: ignore[operator]
    for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        logits: Float[Tensor, "part vocab"] = head(rows).float()
        logits[:, mask_id] = -torch.inf
        values.append(logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0])
        hits.append(best_tokens(logits)[1] == wanted)
    return torch.cat(values), torch.cat(hits)
