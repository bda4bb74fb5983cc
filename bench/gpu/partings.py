"""Where two trajectories of one prompt part, and how nearly the choice was a tie there.

Up to the first step at which they differ both decoders were in one state.  The plain decoder's logits in that state
tell what the two choices were worth; rounding can only turn choices that are worth nearly the same.
"""

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from t3d.decoding import DecodingConfig
from t3d.decoding.limits import full_length
from t3d.decoding.plain import decode_plain
from t3d.sampling import draw_tokens, response_uniforms, token_probabilities
from t3d.sdar import SDARForCausalLM
from t3d.trajectory import Trajectory

NUDGES = (1e-6, 1e-5, 1e-4)
"""How far a random number is moved to see whether it would have drawn the other token."""


@dataclass(frozen=True)
class _Step:
    """What one step of the plain decoder saw: logits [block, vocab] and random numbers [block]."""

    logits: Tensor
    uniforms: Tensor


def parting_margin(
    model: SDARForCausalLM, config: DecodingConfig, ours: Trajectory, plain: Trajectory, stream: int
) -> float:
    """Distance of the choices at which two different trajectories part, in nats; infinite where none is found.

    Of drawn tokens it is how far the random number is from where it draws the other one.
    """
    places = [
        (min(steps), place)
        for place, (*steps, token, other) in enumerate(
            zip(ours.step_map, plain.step_map, ours.response_ids, plain.response_ids, strict=False)
        )
        if steps[0] != steps[1] or token != other
    ]
    if not places or ours.error or plain.error:
        return float("inf")
    number = min(places)[0]
    parted = [place for step, place in places if step == number]
    size, prompt = config.block_size, len(plain.prompt_ids)
    seen = _step(model, config, plain, stream, number, (prompt + parted[0]) // size)
    rows: dict[str, list[int]] = {"ours": [], "plain": []}
    margins = []
    for place in parted:
        row = (prompt + place) % size
        if ours.step_map[place] == plain.step_map[place]:
            margins.append(_token_margin(seen, row, plain.response_ids[place], ours.response_ids[place], config))
        else:
            rows["ours" if ours.step_map[place] == number else "plain"].append(row)
    if rows["ours"] or rows["plain"]:
        margins.append(_order_margin(_certainties(seen, config), rows["ours"], rows["plain"]))
    return max(margins)


def _step(
    model: SDARForCausalLM, config: DecodingConfig, plain: Trajectory, stream: int, number: int, block: int
) -> _Step:
    """Decodes plainly once more and keeps what step `number`, in `block`, saw."""
    kept: list[Tensor] = []
    forward, size = model.forward, config.block_size

    def keeping(*inputs: Any, **layout: Any) -> Any:
        out = forward(*inputs, **layout)
        kept.append(out.logits[0, -size:].float().cpu())
        return out

    with mock.patch.object(model, "forward", keeping):
        decode_plain(model, plain.prompt_ids, config, stream)
    prompt = len(plain.prompt_ids)
    num_blocks = full_length(prompt, config) // size - prompt // size
    uniforms = torch.from_numpy(response_uniforms(config.seed, stream, num_blocks, config.denoising_steps, size))
    before = [step for place, step in enumerate(plain.step_map) if (prompt + place) // size < block]
    return _Step(kept[number - 1], uniforms[block - prompt // size, number - 1 - max(before, default=0)])


def _allowed(logits: Tensor, config: DecodingConfig) -> Tensor:
    return logits.index_fill(-1, torch.tensor([config.mask_id]), -torch.inf)


def _token_margin(seen: _Step, row: int, plain: int, ours: int, config: DecodingConfig) -> float:
    """Distance of two tokens of one row."""
    logits = _allowed(seen.logits[row : row + 1], config)
    if config.temperature == 0:
        return float((logits[0, plain] - logits[0, ours]).abs())
    probabilities = token_probabilities(logits, config.temperature, config.top_k, config.top_p)
    for distance in NUDGES:
        nudged = (seen.uniforms[row] + torch.tensor([-distance, distance])).clamp(0, 1)
        if ours in draw_tokens(probabilities.expand(2, -1).contiguous(), nudged).tolist():
            return distance
    return float("inf")


def _certainties(seen: _Step, config: DecodingConfig) -> Tensor:
    """Log-confidence [block] of each position's token."""
    probabilities = token_probabilities(_allowed(seen.logits, config), config.temperature, config.top_k, config.top_p)
    if config.temperature == 0:
        return probabilities.amax(-1).log()
    return probabilities.gather(-1, draw_tokens(probabilities, seen.uniforms)[:, None])[:, 0].log()


def _order_margin(certain: Tensor, ours: list[int], plain: list[int]) -> float:
    """How near a row that one decoder revealed is to one that the other revealed instead.

    Such a row can lie behind the response's end, where no trajectory names it: then every other row is tried.
    """
    rows = range(len(certain))
    left = ours or [row for row in rows if row not in plain]
    right = plain or [row for row in rows if row not in ours]
    return min(float((certain[a] - certain[b]).abs()) for a in left for b in right)
