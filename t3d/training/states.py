"""Denoising states x_t of a sample: which tokens of its response are masked, and what stands there instead.

The response is seen in the blocks that the decoder would use: with absolute alignment (the default) the first block
starts with the tail of the prompt, already revealed, and the last one is filled up with pad tokens, the last to be
revealed (but random masks take those that are learnt in any order).  With response alignment (the authors' release)
blocks are counted from the first response token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t3d.sdar.attention import block_start

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingSample:
    """A prompt with its recorded response, or a text.

    Attributes:
        prompt_ids: token ids of the prompt; none of a text, all of which is `response_ids`.
        response_ids: token ids of the response.
        step_map: denoising step that revealed each response token, from 1; None if it was not decoded (real
            data), which the trace objectives cannot use.
        ended: True if the response ends with a stop token, so that pad tokens may be learnt after it.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    step_map: list[int] | None
    ended: bool

    @property
    def is_text(self) -> bool:
        """Whether it is a text, which may be cut into several samples: nobody asked for it, and nobody decoded it."""
        return not self.prompt_ids and self.step_map is None


@dataclass(frozen=True)
class StateSettings:
    """How states are drawn; see `TrainingConfig` for the meaning of each.

    Attributes:
        strategy: "trace", "trace_earliest", "random" (at a drawn ratio), "uniform" (random, and every masked
            count of a block equally likely: Eq. 3) or "all_mask".
        block_sizes: positions per block, drawn per sample; usually one.
    """

    strategy: str
    block_sizes: tuple[int, ...]
    mask_id: int
    pad_id: int
    vocab_size: int
    mask_ratios: tuple[float, ...] = (1.0,)
    mask_ratio_exponent: float = 0.0
    random_ratio: float = 0.0
    path_k_steps: int = 1
    post_num: int = 0
    alignment: str = "absolute"


@dataclass(frozen=True)
class State:
    """One sample in one denoising state; arrays run over the noisy copy, position `noisy_start` onwards.

    Attributes:
        block_size: positions per block.
        clean_ids: prompt and response up to the start of the last block: all that a noisy block may look back to.
        noisy_start: position of the first noisy token, at a block's start.
        origin: position that blocks are counted from.
        targets: the clean tokens.
        inputs: what the network is shown: `targets` where revealed, else the mask or a random token.
        masked: not revealed in this state.
        scored: positions that count: response tokens, and the first `post_num` pads after a stop token.
        response: tokens of the response, neither the prompt's tail nor pads.
        coarse_step: pi_i of Eq. 9, 1..B; 0 on the prompt's tail.
        uniforms: one uniform number per position, from which fakes are drawn.
    """

    block_size: int
    clean_ids: IntArray
    noisy_start: int
    origin: int
    targets: IntArray
    inputs: IntArray
    masked: BoolArray
    scored: BoolArray
    response: BoolArray
    coarse_step: IntArray
    uniforms: NDArray[np.float32]

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and response that the network is given in this state, without the last block's fill."""
        fill = (self.coarse_step > 0) & ~self.response
        return len(self.clean_ids) + len(self.targets) - int(fill.sum())


def sample_stream(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The random stream of one visit to one sample, whatever batch or process it falls into."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) + sample]))


def draw_state(sample: TrainingSample, settings: StateSettings, stream: np.random.Generator) -> State:
    """Draws a state of `sample`: its blocks are laid out, masked (Eq. 5), and shown with noise (Eq. 48-49)."""
    size = int(settings.block_sizes[stream.integers(len(settings.block_sizes))])
    blocks = _lay_out(sample, settings, size)
    masked = _masked(blocks.steps.reshape(-1, size), blocks.scored.reshape(-1, size), settings, stream).reshape(-1)
    inputs = _shown(blocks.targets, masked, settings, stream)
    return State(
        block_size=size,
        clean_ids=blocks.tokens[:-size],
        noisy_start=blocks.noisy_start,
        origin=blocks.origin,
        targets=blocks.targets,
        inputs=inputs,
        masked=masked,
        scored=blocks.scored,
        response=blocks.response,
        coarse_step=_coarse_steps(blocks.steps.reshape(-1, size), settings.path_k_steps).reshape(-1),
        uniforms=stream.random(len(masked), dtype=np.float32),
    )


@dataclass(frozen=True)
class _Blocks:
    """A sample in whole blocks; see `State` for what it has in common with it.

    Attributes:
        tokens: prompt, response, and the pads that fill the last block.
        steps: step that reveals each noisy position, see `_steps`.
    """

    origin: int
    noisy_start: int
    tokens: IntArray
    steps: IntArray
    scored: BoolArray
    response: BoolArray

    @property
    def targets(self) -> IntArray:
        """The clean tokens of the noisy copy."""
        return self.tokens[self.noisy_start :]


def _lay_out(sample: TrainingSample, settings: StateSettings, size: int) -> _Blocks:
    """Cuts the sample into blocks of `size`, the last one filled up with pads, and says what of them counts."""
    prompt_length = len(sample.prompt_ids)
    origin = 0 if settings.alignment == "absolute" else prompt_length
    noisy_start = block_start(prompt_length, size, origin)
    response_end = prompt_length + len(sample.response_ids)
    num_fill = (noisy_start - response_end) % size
    num_learnt = min(num_fill, settings.post_num) if sample.ended else 0
    steps = _steps(sample, noisy_start, num_fill)
    position = noisy_start + np.arange(len(steps))
    return _Blocks(
        origin=origin,
        noisy_start=noisy_start,
        tokens=np.array([*sample.prompt_ids, *sample.response_ids, *[settings.pad_id] * num_fill], dtype=np.int64),
        steps=steps,
        scored=(steps > 0) & (position < response_end + num_learnt),
        response=(steps > 0) & (position < response_end),
    )


def _shown(targets: IntArray, masked: BoolArray, settings: StateSettings, stream: np.random.Generator) -> IntArray:
    """What the network is shown: the clean tokens and, where masked, the mask or with p_rand a random token."""
    random_tokens = stream.integers(settings.vocab_size, size=len(targets))
    is_random = stream.random(len(targets)) < settings.random_ratio
    return np.where(masked, np.where(is_random, random_tokens, settings.mask_id), targets)


def _steps(sample: TrainingSample, noisy_start: int, num_fill: int) -> IntArray:
    """Step that reveals each noisy position: 0 on the prompt's tail, after everything else on the fill."""
    tail = [0] * (len(sample.prompt_ids) - noisy_start)
    recorded = sample.step_map or [1] * len(sample.response_ids)
    return np.array([*tail, *recorded, *[max(recorded) + 1] * num_fill], dtype=np.int64)


def _masked(steps: IntArray, scored: BoolArray, settings: StateSettings, stream: np.random.Generator) -> BoolArray:
    """Which positions [block, position] are masked; positions of step 0 never are.

    In every block the strategy puts positions in an order and says how many of them, from the highest on, are masked.
    Where chance orders them, pads that are not learnt come behind all others, as they do where steps are recorded.
    """
    hideable = steps > 0
    fill = hideable & ~scored
    counts, drawable = hideable.sum(1), (hideable & scored).sum(1)
    ratios = np.array(settings.mask_ratios)
    weights = ratios**settings.mask_ratio_exponent
    ratio = stream.choice(ratios, p=weights / weights.sum())
    shuffled = np.where(fill, 1.0, stream.random(steps.shape))
    drawn = stream.integers(1, np.maximum(drawable, 1) + 1)
    order, num_masked = {
        "trace": (steps.astype(np.float64), _share(ratio, counts)),
        "trace_earliest": (-steps.astype(np.float64), _share(ratio, counts)),
        "random": (shuffled, _share(ratio, drawable) + fill.sum(1)),
        "uniform": (shuffled, drawn + fill.sum(1)),
        "all_mask": (shuffled, counts),
    }[settings.strategy]
    order = np.where(hideable, order, -np.inf)
    highest_first = -np.sort(-order, axis=1)
    last_masked = np.take_along_axis(highest_first, num_masked[:, None] - 1, axis=1)
    # Equal ones, tokens of one step, are masked together: the decoder visits no state in between.
    return hideable & (order >= last_masked)


def _share(ratio: float, counts: IntArray) -> IntArray:
    """So large a part of each count, rounded up; a product just above a whole number is that number."""
    return np.ceil(ratio * counts - 1e-9).astype(np.int64)


def _coarse_steps(steps: IntArray, path_k_steps: int) -> IntArray:
    """pi_i of each position [block, position]: its rank by step within the block, in groups of `path_k_steps`."""
    earlier = (steps[:, None, :] < steps[:, :, None]) & (steps[:, None, :] > 0)
    return np.where(steps > 0, earlier.sum(2) // path_k_steps + 1, 0)
