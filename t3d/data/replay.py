"""Replays a recorded response: what the model, led along the recorded order, would have written and revealed.

Every state that the record passed through is shown to the model as the decoder shows it, one step of all blocks per
forward.  Two questions are asked of each: is the token that was written the most probable one, and are the
positions that were revealed those that the strategy ranks first?  Both are answered with a margin, so that a
rounding error (a margin near 0) is told from a wrong map (a large one).
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t3d.remasking import BlockScores, low_confidence_static
from t3d.sampling import best_tokens, entropy, tempered, token_probabilities
from t3d.sdar.attention import TrainingTokens, block_index, may_see
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import Trajectory

RANKINGS = ("confidence", "entropy", "position")
"""What strategies rank masked positions by: the low_confidence ones, entropy_bounded, and sequential."""

ROW_TILE = 64
"""Rows of logits judged at a time, which bounds the memory."""


class TokenDifference(NamedTuple):
    """A token that is not the most probable one at its step.

    Attributes:
        position: in the response, from 0.
        step: that revealed it.
        recorded: the token.
        best: the model's most probable one.
        margin: log-probability of `best` minus that of `recorded`, in nats.
    """

    position: int
    step: int
    recorded: int
    best: int
    margin: float


class StepDifference(NamedTuple):
    """A step that revealed other positions than the ranking has first.

    Attributes:
        position: the first revealed one that the ranking does not have first.
        step: the step.
        expected: the first of those that it has instead.
        margin: how far the best of those left out is ahead of the worst of those taken, in nats of log-confidence
            or entropy; in positions where ranked by position.
    """

    position: int
    step: int
    expected: int
    margin: float


@dataclass(frozen=True)
class Replay:
    """What the replay of one response found.

    Attributes:
        tokens: compared.
        choices: steps that revealed some of a block's masked positions and left others.
        left_out: tokens of the last block, if the response ends inside it: what stood behind them is not recorded.
        token_differences: see `TokenDifference`.
        step_differences: see `StepDifference`.
        logprobs: of the recorded tokens by the model, in nats, at the temperature asked for; by position.
    """

    tokens: int
    choices: int
    left_out: int
    token_differences: list[TokenDifference]
    step_differences: list[StepDifference]
    logprobs: dict[int, float]


class _Layout(NamedTuple):
    """A response in the training layout: clean tokens of whole blocks, and a noisy copy of those that are replayed."""

    ids: Int[Tensor, "1 seq"]
    positions: Int[Tensor, "1 seq"]
    mask: Bool[Tensor, "1 1 seq seq"]
    first: int
    """Where the noisy copy begins."""
    ranks: Int[Tensor, "blocks block"]
    """For each place of the noisy copy, which of its block's steps revealed it, from 0; -1 in the prompt."""


@torch.inference_mode()
def replay(
    model: SDARForCausalLM,
    trajectory: Trajectory,
    mask_id: int,
    block_size: int,
    rank_by: str = "confidence",
    temperature: float = 1.0,
) -> Replay:
    """Replays one response, at most `block_size` forwards.

    Args:
        model: the network, in eval mode.
        trajectory: a valid one.
        mask_id: id of the mask token.
        block_size: positions per block, counted from position 0 of prompt + response.
        rank_by: one of `RANKINGS`.
        temperature: of the distribution that confidences and entropies are taken from; 0 means 1, as in decoding.
            Give the decoding's.  Of a position that was not revealed at a step, the most probable token's
            confidence counts, although another one may have been drawn there.
    """
    steps = trajectory.step_map
    end = (len(trajectory.prompt_ids) + len(steps)) // block_size * block_size
    kept = max(0, end - len(trajectory.prompt_ids))
    if not kept:
        return Replay(0, 0, len(steps), [], [], {})
    layout = _lay_out(trajectory, end, block_size, model.device)
    ranks, start = layout.ranks.cpu(), layout.ranks.numel() - kept
    tokens, reveals, logprobs, choices = [], [], {}, 0
    for rank in range(int(ranks.max()) + 1):
        judged = _judge(model, layout, rank, mask_id, temperature)
        masked, taken = ranks >= rank, ranks == rank
        for place in taken.flatten().nonzero()[:, 0].tolist():
            position, best = place - start, int(judged.best[place])
            logprobs[position] = float(judged.logprob[place])
            if best != (recorded := trajectory.response_ids[position]):
                margin = float(judged.margin[place])
                tokens.append(TokenDifference(position, steps[position], recorded, best, margin))
        score = _score(judged, rank_by).unflatten(0, (-1, block_size))
        choosing = (taken.any(-1) & (masked & ~taken).any(-1)).nonzero()[:, 0].tolist()
        choices += len(choosing)
        for block in choosing:
            if difference := _step_difference(score[block], masked[block], taken[block], rank_by):
                wrong, missed = (place + block * block_size - start for place in difference[:2])
                reveals.append(StepDifference(wrong, steps[wrong], missed, difference[2]))
    return Replay(kept, choices, len(steps) - kept, sorted(tokens), sorted(reveals), logprobs)


def _lay_out(trajectory: Trajectory, end: int, block_size: int, device: torch.device) -> _Layout:
    """The clean tokens up to the last replayed block, and a noisy copy of every replayed block."""
    tokens = (trajectory.prompt_ids + trajectory.response_ids)[:end]
    first = len(trajectory.prompt_ids) // block_size * block_size
    positions = torch.tensor([*range(end - block_size), *range(first, end)], device=device)
    noisy = torch.arange(len(positions), device=device) >= end - block_size
    layout = TrainingTokens(block_index(positions, block_size), noisy, torch.zeros_like(positions))
    mask = may_see(layout.at((..., None)), layout.at((None, slice(None))))
    ids = torch.tensor(tokens, device=device)[positions]
    known = [0] * (len(trajectory.prompt_ids) - first) + trajectory.step_map
    steps = torch.tensor(known[: end - first]).unflatten(0, (-1, block_size))
    ranks = torch.stack([row.unique(return_inverse=True)[1] - int((row == 0).any()) for row in steps])
    return _Layout(ids[None], positions[None], mask[None, None], end - block_size, ranks.to(device))


class _Judged(NamedTuple):
    """Of each place of the noisy copy that is masked: its best token and its scores; 0 elsewhere.

    The margin, in nats, is of the model's own distribution; all other scores are at the temperature asked for.
    Confidences are probabilities, as decoders compare them: several may be 1 in single precision, and tie.
    """

    best: Int[Tensor, " places"]
    margin: Float[Tensor, " places"]
    logprob: Float[Tensor, " places"]
    confidence: Float[Tensor, " places"]
    entropy: Float[Tensor, " places"]


def _judge(model: SDARForCausalLM, layout: _Layout, rank: int, mask_id: int, temperature: float) -> _Judged:
    """Shows the model the state before each block's step `rank`, and scores what is masked in it."""
    ranks = layout.ranks.flatten()
    asked = (ranks >= rank).nonzero()[:, 0]
    rows = asked + layout.first
    ids = layout.ids.index_fill(1, rows, mask_id)
    columns = model(
        ids,
        attention_mask=layout.mask,
        position_ids=layout.positions,
        logit_rows=rows,
        head=partial(
            _columns, recorded=layout.ids[0, rows], now=ranks[asked] == rank, mask_id=mask_id, temperature=temperature
        ),
    )
    return _Judged(*(one.new_zeros(len(ranks)).index_copy(0, asked, one).cpu() for one in columns))


def _columns(
    head: torch.nn.Module,
    hidden: Float[Tensor, "rows hidden"],
    recorded: Int[Tensor, " rows"],
    now: Bool[Tensor, " rows"],
    mask_id: int,
    temperature: float,
) -> list[Tensor]:
    """The columns of `_Judged`, for so many rows at a time that their logits fit."""
    tiles = []
    parts = (one.split(ROW_TILE) for one in (hidden, recorded, now))
    for part, tokens, reveals in zip(*parts, strict=True):
        scores = head(part).float()
        scores[:, mask_id] = -torch.inf
        best, own = best_tokens(scores)[1], scores.log_softmax(-1)
        drawn = tempered(scores, temperature).log_softmax(-1) if temperature > 0 else own
        probabilities = token_probabilities(scores, temperature, 0, 1.0)
        confidence = _of(probabilities, torch.where(reveals, tokens, best))
        tiles.append((best, _of(own, best) - _of(own, tokens), _of(drawn, tokens), confidence, entropy(probabilities)))
    return [torch.cat(column) for column in zip(*tiles, strict=True)]


def _of(values: Float[Tensor, "rows vocab"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    return values.gather(-1, tokens[:, None])[:, 0]


def _score(judged: _Judged, rank_by: str) -> Float[Tensor, " places"]:
    """What is revealed first where it is highest."""
    if rank_by == "confidence":
        return judged.confidence
    if rank_by == "entropy":
        return -judged.entropy
    return -torch.arange(len(judged.confidence), dtype=torch.float)


def _step_difference(
    score: Float[Tensor, " block"], masked: Bool[Tensor, " block"], taken: Bool[Tensor, " block"], rank_by: str
) -> tuple[int, int, float] | None:
    """(first place wrongly taken, first wrongly left, margin) of one block at one step; None: as the ranking says."""
    row, quota = score.numpy()[None], taken.sum()[None].numpy()
    scores = BlockScores(masked.numpy()[None], row, row, quota, dynamic_threshold=1, eb_threshold=0)
    expected = torch.from_numpy(low_confidence_static(scores)[0])
    wrong, missed = taken & ~expected, expected & ~taken
    if not wrong.any():
        return None
    if rank_by == "confidence":
        score = score.clamp_min(torch.finfo(score.dtype).tiny).log()
    margin = float(score[missed].max() - score[wrong].min())
    return int(wrong.nonzero()[0, 0]), int(missed.nonzero()[0, 0]), margin
