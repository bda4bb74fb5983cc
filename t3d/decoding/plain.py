"""The decoder at its plainest: one sequence, no cache, a forward over everything at each step.

It is the oracle that the engine must match token for token and step for step; use `t3d.decoding.decode`.
"""

import numpy as np
import torch

from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import Draws, judge
from t3d.decoding.limits import prefill_forwards
from t3d.remasking import RANKED_BY, STRATEGIES, BlockScores, step_quota
from t3d.sampling import response_uniforms
from t3d.sdar.attention import block_causal_mask
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import Trajectory


@torch.inference_mode()
def decode_plain(model: SDARForCausalLM, prompt: list[int], config: DecodingConfig, stream: int = 0) -> Trajectory:
    """Decodes one prompt.  `num_forwards` counts what a cached decoder that fuses commits would need."""
    size, steps = config.block_size, config.denoising_steps
    start = len(prompt) // size * size
    num_blocks = -(-(len(prompt) + config.max_new_tokens - start) // size)
    uniforms = torch.from_numpy(response_uniforms(config.seed, stream, num_blocks, steps, size))
    tokens, step_map = list(prompt), [0] * len(prompt)
    logprobs, entropies = [0.0] * len(prompt), [0.0] * len(prompt)
    num_steps, kept = 0, None
    for block in range(num_blocks):
        end = start + (block + 1) * size
        masked = torch.arange(end - size, end) >= len(tokens)
        for column, fill in ((tokens, config.mask_id), (step_map, 0), (logprobs, 0.0), (entropies, 0.0)):
            column.extend([fill] * (end - len(column)))  # type: ignore[list-item]
        for step in range(steps):
            if not masked.any() or (config.end_early and kept is not None):
                break
            num_steps += 1
            draws = _draw(model, tokens, uniforms[block, step], config)
            if draws.failed[masked].any():
                reason = f"logits that are not finite at denoising step {num_steps}"
                forwards = prefill_forwards(len(prompt), size) + num_steps
                return Trajectory(list(prompt), [], [], "error", forwards, num_steps, reason)
            reveal = _choose(draws, masked, step, config)
            for offset in reveal.nonzero()[:, 0].tolist():
                place = end - size + offset
                tokens[place], step_map[place] = int(draws.tokens[offset]), num_steps
                if draws.logprobs is not None:
                    logprobs[place] = float(draws.logprobs[offset])
                if draws.entropies is not None:
                    entropies[place] = float(draws.entropies[offset])
            masked &= ~reveal
            kept = _decided_length(tokens, step_map, len(prompt), config)
        if kept is not None:
            break
    assert kept is not None, "the last block reaches the limit"
    response = slice(len(prompt), len(prompt) + kept)
    return Trajectory(
        prompt_ids=list(prompt),
        response_ids=tokens[response],
        step_map=step_map[response],
        finish_reason="stop" if tokens[response][-1] in config.stop_ids else "length",
        num_forwards=prefill_forwards(len(prompt), size) + num_steps,
        num_steps=num_steps,
        logprobs=logprobs[response] if "logprob" in config.record else None,
        entropies=entropies[response] if "entropy" in config.record else None,
    )


def _draw(model: SDARForCausalLM, tokens: list[int], uniforms: torch.Tensor, config: DecodingConfig) -> Draws:
    """Draws at every position of the last block, masked or not."""
    ids = torch.tensor([tokens], device=model.device)
    positions = torch.arange(len(tokens), device=model.device)
    mask = block_causal_mask(positions, positions, config.block_size)[None, None]
    logits = model(ids, attention_mask=mask).logits[0, -config.block_size :].cpu()
    return judge(logits, uniforms if config.temperature > 0 else None, RANKED_BY[config.remasking_strategy], config)


def _choose(draws: Draws, masked: torch.Tensor, step: int, config: DecodingConfig) -> torch.Tensor:
    """Which positions of the block are revealed."""
    if step == config.denoising_steps - 1:
        return masked.clone()
    score = draws.score.numpy()[None]
    scores = BlockScores(
        masked=masked.numpy()[None],
        confidence=score,
        entropy=score,
        quota=step_quota(np.array([step]), config.block_size, config.denoising_steps),
        dynamic_threshold=config.dynamic_threshold,
        eb_threshold=config.eb_threshold,
    )
    return torch.from_numpy(STRATEGIES[config.remasking_strategy](scores)[0])


def _decided_length(tokens: list[int], step_map: list[int], prompt_length: int, config: DecodingConfig) -> int | None:
    """Length of the response if every position up to its end is revealed, else None."""
    for length, place in enumerate(range(prompt_length, len(tokens)), start=1):
        if step_map[place] == 0:
            return None
        if tokens[place] in config.stop_ids or length == config.max_new_tokens:
            return length
    return None
