"""The decoding engine: continuous batching over a slot cache, S forwards per block of S steps.

A finished block's keys and values must be computed from its clean tokens before a later block may read them (the
commit).  The engine spends no forward on that: the next block's first denoising forward carries the finished block
along, over [finished block | next all-mask block].  Attention is block-causal, so the finished block's outputs do
not depend on what follows it, and the next block sees, layer by layer, the same keys and values that a separate
commit would have cached: the fused forward computes the same function of the same inputs.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.errors import DataError
from t3d.remasking import STRATEGIES, BlockScores, step_quota
from t3d.sampling import draw_tokens, entropy, response_uniforms, token_probabilities
from t3d.sdar.attention import block_causal_mask
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import Trajectory

UNREVEALED = 0
"""Step-map entry of a position that no denoising step has revealed."""


def decode(
    model: SDARForCausalLM, prompts: Sequence[list[int]], config: DecodingConfig, max_active: int = 32
) -> list[Trajectory]:
    """Decodes every prompt, at most `max_active` at a time, and returns the trajectories in their order.

    Raises:
        DataError: a prompt that leaves no room for the response in the model's context.
    """
    finished = dict(iter_decode(model, prompts, config, max_active))
    return [finished[index] for index in range(len(prompts))]


def iter_decode(
    model: SDARForCausalLM,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    max_active: int = 32,
    streams: Sequence[int] | None = None,
) -> Iterator[tuple[int, Trajectory]]:
    """Yields (index of the prompt, its trajectory) as sequences finish.

    Args:
        model: the network, in eval mode, on any device.
        prompts: token ids of each prompt.
        config: decoding settings.
        max_active: most sequences in flight; results do not depend on it.
        streams: number of each prompt's random stream (0, 1, 2, ... if None): with the seed it fixes the
            response, whatever else is decoded beside it.

    Raises:
        DataError: see `decode`.
    """
    if not prompts:
        return
    check_lengths(model.config, prompts, config)
    streams = range(len(prompts)) if streams is None else streams
    engine = Engine(model, config, min(max_active, len(prompts)), max(map(len, prompts)))
    waiting = deque(range(len(prompts)))
    while waiting or engine.busy:
        admitted = [waiting.popleft() for _ in range(min(len(waiting), len(engine.free)))]
        engine.admit([(index, prompts[index], streams[index]) for index in admitted])
        yield from engine.step()


class Engine:
    """Sequences in slots, each at its own block and denoising step.

    Attributes:
        free: slots that hold no sequence.
    """

    def __init__(self, model: SDARForCausalLM, config: DecodingConfig, num_slots: int, longest_prompt: int) -> None:
        """Allocates the cache for `num_slots` sequences of the greatest length that can occur."""
        size, device = config.block_size, model.device
        self.model, self.config, self.device = model, config, device
        self.max_length = -(-(longest_prompt + config.max_new_tokens) // size) * size
        self.cache = SlotCache(model.config, num_slots, self.max_length, model.dtype, device)
        self.ids = torch.full((num_slots, self.max_length), config.mask_id, device=device)
        self.step_map = torch.full((num_slots, self.max_length), UNREVEALED, device=device)
        self.masked = torch.zeros((num_slots, size), dtype=torch.bool, device=device)
        self.block_start = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.block_step = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.num_steps = torch.zeros(num_slots, dtype=torch.long, device=device)
        num_blocks = self.max_length // size if config.temperature > 0 else 0
        self.uniforms = torch.zeros((num_slots, num_blocks, config.denoising_steps, size), device=device)
        self.first_block = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.free = list(range(num_slots))
        self._sequences: dict[int, tuple[int, list[int]]] = {}
        self._start: dict[int, int] = {}
        self._uncommitted: set[int] = set()

    @property
    def busy(self) -> bool:
        """True while a sequence is in flight."""
        return bool(self._sequences)

    @torch.inference_mode()
    def admit(self, requests: Sequence[tuple[int, list[int], int]]) -> None:
        """Puts (index, prompt, stream) requests into free slots and prefills their whole prompt blocks."""
        size, config = self.config.block_size, self.config
        slots = []
        for index, prompt, stream in requests:
            slot = self.free.pop()
            start = len(prompt) // size * size
            self._sequences[slot], self._start[slot] = (index, prompt), start
            self.ids[slot] = config.mask_id
            self.ids[slot, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
            self.step_map[slot] = UNREVEALED
            self.masked[slot] = torch.arange(start, start + size, device=self.device) >= len(prompt)
            self.block_start[slot], self.first_block[slot] = start, start // size
            self.block_step[slot] = self.num_steps[slot] = 0
            if config.temperature > 0:
                num_blocks = (self.max_length - start) // size
                uniforms = response_uniforms(config.seed, stream, num_blocks, config.denoising_steps, size)
                self.uniforms[slot, :num_blocks] = torch.from_numpy(uniforms).to(self.device)
            if start:
                slots.append(slot)
        if slots:
            longest = max(self._start[slot] for slot in slots)
            rows = torch.tensor(slots, device=self.device)
            self._forward(rows, torch.arange(longest, device=self.device).expand(len(slots), -1), longest, None)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Trajectory]]:
        """One denoising step of every running sequence; returns those that finished with it."""
        for behind in (0, self.config.block_size):
            slots = [slot for slot in self._sequences if (slot in self._uncommitted) == bool(behind)]
            if slots:
                self._denoise(slots, behind)
        self._uncommitted.clear()
        complete = ~self.masked.any(-1).cpu()
        return [done for slot in list(self._sequences) if complete[slot] for done in self._end_block(slot)]

    def _denoise(self, slots: list[int], behind: int) -> None:
        """Runs the current blocks of `slots`, after the `behind` positions still to commit, and reveals tokens."""
        rows = torch.tensor(slots, device=self.device)
        size = self.config.block_size
        positions = self.block_start[rows, None] + torch.arange(-behind, size, device=self.device)
        masked = self.masked[rows]
        wanted = torch.cat([torch.zeros_like(masked[:, :1]).expand(-1, behind), masked], dim=1)
        logits = self._forward(rows, positions, max(self._start[slot] for slot in slots) + size, wanted)
        reveal, drawn = self._choose(rows, masked, logits)
        self.num_steps[rows] += 1
        block = positions[:, behind:]
        current, steps = self.ids[rows[:, None], block], self.step_map[rows[:, None], block]
        self.ids[rows[:, None], block] = torch.where(reveal, drawn, current)
        self.step_map[rows[:, None], block] = torch.where(reveal, self.num_steps[rows, None], steps)
        self.masked[rows] = masked & ~reveal
        self.block_step[rows] += 1

    def _choose(
        self,
        rows: Int[Tensor, " rows"],
        masked: Bool[Tensor, "rows block"],
        logits: Float[Tensor, "masked vocab"],
    ) -> tuple[Bool[Tensor, "rows block"], Int[Tensor, "rows block"]]:
        """Draws a token at every masked position and asks the strategy which are revealed."""
        config, step = self.config, self.block_step[rows]
        probabilities = token_probabilities(logits, config.mask_id, config.temperature, config.top_k, config.top_p)
        uniforms = None
        if config.temperature > 0:
            block = self.block_start[rows] // config.block_size - self.first_block[rows]
            uniforms = self.uniforms[rows, block, step][masked]
        drawn, confidence = draw_tokens(probabilities, uniforms)
        scores = BlockScores(
            masked=masked,
            confidence=_scatter(masked, confidence),
            entropy=_scatter(masked, entropy(probabilities)),
            quota=torch.minimum(step_quota(step, config.block_size, config.denoising_steps), masked.sum(-1)),
            dynamic_threshold=config.dynamic_threshold,
            eb_threshold=config.eb_threshold,
        )
        last_step = (step == config.denoising_steps - 1)[:, None]
        return torch.where(last_step, masked, STRATEGIES[config.remasking_strategy](scores)), _scatter(masked, drawn)

    def _forward(
        self,
        rows: Int[Tensor, " rows"],
        positions: Int[Tensor, "rows query"],
        num_keys: int,
        wanted: Bool[Tensor, "rows query"] | None,
    ) -> Float[Tensor, "wanted vocab"]:
        """One forward over `positions` of `rows`; logits where `wanted` (None: at no position)."""
        keys = torch.arange(num_keys, device=self.device)
        self.cache.select(rows, positions, num_keys)
        return self.model(
            self.ids[rows[:, None], positions],
            attention_mask=block_causal_mask(positions, keys.expand(len(rows), -1), self.config.block_size)[:, None],
            position_ids=positions,
            past_key_values=self.cache,
            logit_rows=torch.zeros_like(positions, dtype=torch.bool) if wanted is None else wanted,
        ).logits

    def _end_block(self, slot: int) -> list[tuple[int, Trajectory]]:
        """Ends the sequence after its finished block (a list of one), or opens the next block (an empty list)."""
        size, config = self.config.block_size, self.config
        index, prompt = self._sequences[slot]
        end = self._start[slot] + size
        generated = self.ids[slot, len(prompt) : end].tolist()
        fresh = max(0, len(generated) - size)
        stops = [place for place in range(fresh, len(generated)) if generated[place] in config.stop_ids]
        if not stops and len(generated) < config.max_new_tokens:
            self._start[slot] = end
            self.block_start[slot], self.block_step[slot] = end, 0
            self.masked[slot] = True
            self._uncommitted.add(slot)
            return []
        length = min([place + 1 for place in stops[:1]] + [config.max_new_tokens])
        num_steps = int(self.num_steps[slot])
        del self._sequences[slot], self._start[slot]
        self.free.append(slot)
        return [
            (
                index,
                Trajectory(
                    prompt_ids=list(prompt),
                    response_ids=generated[:length],
                    step_map=self.step_map[slot, len(prompt) : len(prompt) + length].tolist(),
                    finish_reason="stop" if generated[length - 1] in config.stop_ids else "length",
                    num_forwards=num_steps + (len(prompt) >= size),
                    num_steps=num_steps,
                ),
            )
        ]


def _scatter(masked: Bool[Tensor, "rows block"], values: Tensor) -> Tensor:
    """`values` of the masked positions, in row-major order, at their places; 0 elsewhere."""
    return torch.zeros(masked.shape, dtype=values.dtype, device=values.device).masked_scatter(masked, values)


def check_lengths(model: SDARConfig, prompts: Sequence[list[int]], config: DecodingConfig) -> None:
    """Checks that every prompt leaves room for its response.

    Raises:
        DataError: one that does not, named by its number.
    """
    context, size = model.max_position_embeddings, config.block_size
    for index, prompt in enumerate(prompts):
        length = -(-(len(prompt) + config.max_new_tokens) // size) * size
        if length > context:
            raise DataError(
                f"prompt {index}",
                f"prompt and response within the model's {context} positions",
                f"{len(prompt)} prompt tokens + up to {config.max_new_tokens} new ones in blocks of {size}",
            )
