"""The decoder at its plainest: one sequence, no cache, a forward over everything at each step.

It is the oracle that the engine must match token for token and step for step; use `t3d.decoding.decode`.
"""

import torch

from t3d.decoding.config import DecodingConfig
from t3d.remasking import STRATEGIES, BlockScores, step_quota
from t3d.sampling import draw_tokens, entropy, response_uniforms, token_probabilities
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
    num_steps = 0
    for block in range(num_blocks):
        end = start + (block + 1) * size
        revealed_before = len(tokens)
        tokens += [config.mask_id] * (end - len(tokens))
        step_map += [0] * (end - len(step_map))
        masked = torch.arange(end - size, end) >= revealed_before
        for step in range(steps):
            if not masked.any():
                break
            num_steps += 1
            reveal, drawn = _denoise(model, tokens, masked, step, uniforms[block, step], config)
            for offset in reveal.nonzero()[:, 0].tolist():
                tokens[end - size + offset] = int(drawn[offset])
                step_map[end - size + offset] = num_steps
            masked &= ~reveal
        generated = tokens[len(prompt) :]
        stops = [index for index, token in enumerate(generated) if token in config.stop_ids]
        length = min([*(index + 1 for index in stops[:1]), config.max_new_tokens, len(generated)])
        if stops or len(generated) >= config.max_new_tokens:
            break
    return Trajectory(
        prompt_ids=list(prompt),
        response_ids=generated[:length],
        step_map=step_map[len(prompt) :][:length],
        finish_reason="stop" if generated[length - 1] in config.stop_ids else "length",
        num_forwards=num_steps + (start > 0),
        num_steps=num_steps,
    )


def _denoise(
    model: SDARForCausalLM,
    tokens: list[int],
    masked: torch.Tensor,
    step: int,
    uniforms: torch.Tensor,
    config: DecodingConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step on the last block: which of its positions are revealed [block], and the tokens drawn [block]."""
    ids = torch.tensor([tokens], device=model.device)
    positions = torch.arange(len(tokens), device=model.device)
    mask = block_causal_mask(positions, positions, config.block_size)[None, None]
    logits = model(ids, attention_mask=mask).logits[0, -config.block_size :].cpu()
    probabilities = token_probabilities(logits, config.mask_id, config.temperature, config.top_k, config.top_p)
    drawn, confidence = draw_tokens(probabilities, uniforms if config.temperature > 0 else None)
    if step == config.denoising_steps - 1:
        return masked.clone(), drawn
    scores = BlockScores(
        masked=masked[None],
        confidence=confidence[None],
        entropy=entropy(probabilities)[None],
        quota=torch.minimum(
            step_quota(torch.tensor([step]), config.block_size, config.denoising_steps), masked.sum()[None]
        ),
        dynamic_threshold=config.dynamic_threshold,
        eb_threshold=config.eb_threshold,
    )
    return STRATEGIES[config.remasking_strategy](scores)[0], drawn
