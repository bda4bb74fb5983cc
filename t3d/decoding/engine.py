"""The decoding engine: continuous batching over a slot cache, S forwards per block of S steps.

A finished block's keys and values must be computed from its clean tokens before a later block may read them (the
commit).  The engine spends no forward on that: the next block's first denoising forward carries the finished block
along, as [finished block | next all-mask block].  This is exact.  Attention is block-causal, so nothing of the finished
block depends on what follows it: in every layer it gets the hidden states, and writes the keys and values, that a
forward of its own would have given.  The next block reads them in that same layer, after they are written.  So the
fused forward evaluates the same function on the same numbers as a commit followed by a denoising step; only the shape
of the matrix products differs, and with it, on some hardware, the order in which their terms are added (on a CPU it
does not: see `t3d.sdar.products`).

All sequences of an engine share each forward, whatever their phase: one flat row of blocks (`t3d.decoding.plan`).  A
CPU with several cores runs several engines (`t3d.decoding.lanes`).
"""

import gc
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import ROW_TILE, Draws, join, judge
from t3d.decoding.kernel import Kernel, choose_kernel
from t3d.decoding.lanes import num_lanes, side_by_side
from t3d.decoding.limits import PREFILL_TOKENS, prefill_chunk, prompt_error
from t3d.decoding.memory import fewer_slots, fitting_slots
from t3d.decoding.plan import Spans
from t3d.decoding.slots import Slots
from t3d.devices import exhaustion, give_back
from t3d.errors import ConfigError
from t3d.remasking import RANKED_BY, STRATEGIES, BlockScores, step_quota
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import UNFINISHED, Trajectory

Request = tuple[int, list[int], int]
"""Index, prompt and random stream."""


def decode(
    model: SDARForCausalLM, prompts: Sequence[list[int]], config: DecodingConfig, max_active: int = 32
) -> list[Trajectory]:
    """Decodes every prompt, at most `max_active` at a time, and returns the trajectories in their order.

    A prompt that cannot be decoded gets a trajectory with an `error`; the others go on.

    Raises:
        ConfigError: settings that fit neither the model nor the memory.
    """
    finished = dict(iter_decode(model, prompts, config, max_active))
    return [finished[index] for index in range(len(prompts))]


def iter_decode(
    model: SDARForCausalLM,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    max_active: int = 32,
    streams: Sequence[int] | None = None,
    agree: Callable[[int], int] | None = None,
    by_block: bool = False,
) -> Iterator[tuple[int, Trajectory]]:
    """Yields (index of the prompt, its trajectory) as sequences finish, and before that, if asked for, as they grow.

    Fewer sequences are in flight where the device has no memory for `max_active`.  If it runs out all the same, half
    of them begin anew; what was yielded stays, and what follows is what it would have been.

    Args:
        model: the network, in eval mode, on any device.
        prompts: token ids of each prompt.
        config: decoding settings.
        max_active: most sequences in flight; results do not depend on it.
        streams: number of each prompt's random stream (0, 1, 2, ... if None): with the seed it fixes the
            response, whatever else is decoded beside it.
        agree: of processes that hold one model in parts and so work in step, gives all the same number of
            sequences; none of them may change it later.
        by_block: also yield each sequence whenever a block of it is complete and others follow: a trajectory of
            finish_reason "unfinished".  (Where memory runs out, sequences begin anew, and so do these.)

    Raises:
        ConfigError: see `decode`.
    """
    if config.mask_id >= model.config.vocab_size:
        raise ConfigError("decoding.mask_id", f"an id below the model's {model.config.vocab_size}", config.mask_id)
    left: dict[int, Request] = {}
    for index, (prompt, stream) in enumerate(zip(prompts, streams or range(len(prompts)), strict=True)):
        error = prompt_error(model.config, prompt, config)
        if error is None:
            left[index] = index, prompt, stream
        else:
            yield index, Trajectory(list(prompt), [], [], "error", 0, 0, error)
    left = dict(sorted(left.items(), key=lambda entry: _shape(entry[1][1], config)))
    longest, num_slots = max((len(prompt) for _, prompt, _ in left.values()), default=0), min(max_active, len(left))
    if left:
        num_slots = fitting_slots(model, config, longest, num_slots)
        num_slots = num_slots if agree is None else agree(num_slots)
    while left:
        found = None
        try:
            with closing(_decode_through(model, config, left, num_slots, longest, by_block)) as news:
                yield from news
        except (RuntimeError, MemoryError) as failure:
            found = exhaustion(failure)
            if found is None:
                raise
        if found is not None:  # here, where the error no longer holds what filled the memory
            num_slots = fewer_slots(min(num_slots, len(left)), model.device, found, agree is not None)
            gc.collect()
        give_back(model.device)


def _decode_through(
    model: SDARForCausalLM,
    config: DecodingConfig,
    left: dict[int, Request],
    num_slots: int,
    longest: int,
    by_block: bool,
) -> Generator[tuple[int, Trajectory], None, None]:
    """Decodes what is `left`, and takes out what finishes, through so many slots, or as many as there are requests."""
    waiting, num_slots, kernel = deque(left.values()), min(num_slots, len(left)), choose_kernel(model)
    lanes = num_lanes(model.device, num_slots)
    shares = [num_slots // lanes + (lane < num_slots % lanes) for lane in range(lanes)]
    slots = [Slots(model, config, share, longest) for share in shares]
    engines = [Engine(model, config, kernel, waiting, share, by_block) for share in slots]
    for index, trajectory in side_by_side([engine.run for engine in engines]):
        if trajectory.finish_reason != UNFINISHED:
            del left[index]
        yield index, trajectory


def _shape(prompt: list[int], config: DecodingConfig) -> tuple[int, int]:
    """Sorts prompts so that neighbouring slots commit at the same forwards and have about as many keys.

    Attention is computed for neighbours together; results do not depend on the order.
    """
    first_masks = config.block_size - len(prompt) % config.block_size
    return min(first_masks, config.denoising_steps), len(prompt)


class Engine:
    """Decodes the waiting prompts through the slots."""

    def __init__(
        self,
        model: SDARForCausalLM,
        config: DecodingConfig,
        kernel: Kernel,
        waiting: deque[Request],
        slots: Slots,
        by_block: bool = False,
    ) -> None:
        """Takes requests, which engines empty together, and slots without a sequence."""
        self.model, self.config, self.kernel, self.waiting, self.slots = model, config, kernel, waiting, slots
        self.by_block = by_block
        self.prompts: dict[int, list[int]] = {}

    def run(self) -> Iterator[list[tuple[int, Trajectory]]]:
        """Yields what finished, after every forward (and what grew by a block, see `iter_decode`)."""
        while self.admit():
            with torch.inference_mode():
                prefilling, denoising, spans = self.schedule()
                draws = self.forward(denoising, spans)
                self.slots.table["filled"][prefilling] += self._chunks(prefilling)
                finished, failed = self.reveal(denoising, draws)
                self.open_blocks(denoising)
                grown = self.grown(denoising[~(finished | failed)]) if self.by_block else []
                ended = self.end(denoising, finished, failed)
            yield grown + ended

    def admit(self) -> bool:
        """Gives every free slot a prompt; False where no sequence is left."""
        while self.slots.num_free:
            try:
                index, prompt, stream = self.waiting.popleft()
            except IndexError:  # asked for, not looked up: another lane may take the last one at any moment
                break
            self.prompts[index] = prompt
            self.slots.add(index, prompt, stream)
        return self.slots.active > 0

    def schedule(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Spans]:
        """Chooses what the next forward computes.

        Returns:
            The slots that prefill, up to the budget and the longest waiting first; the slots that denoise; and the
            tokens of both.
        """
        size, table = self.config.block_size, self.slots.running
        unfilled = table["filled"] < table["whole"]
        prefilling, denoising = np.flatnonzero(unfilled), np.flatnonzero(~unfilled)
        if len(prefilling) > 1:
            queue = prefilling[np.argsort(table["index"][prefilling])]
            within = np.cumsum(self._chunks(queue)) <= PREFILL_TOKENS
            within[0] = True
            prefilling = np.sort(queue[within])
        starts, counts = table["start"] - size * table["pending"], 1 + table["pending"]
        counts[unfilled] = 0
        counts[prefilling], starts[prefilling] = self._chunks(prefilling) // size, table["filled"][prefilling]
        slots = np.flatnonzero(counts)
        table["forwards"][slots] += 1
        return prefilling, denoising, Spans(slots, starts[slots], counts[slots], size)

    def _chunks(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Prompt tokens that each of `slots` prefills next."""
        left = self.slots.table["whole"][slots] - self.slots.table["filled"][slots]
        return np.minimum(left, prefill_chunk(self.config.block_size))

    def forward(self, denoising: NDArray[np.int64], spans: Spans) -> Draws | None:
        """Runs the model and draws at the masked positions of the `denoising` slots; None if there are none."""
        slots, size = self.slots, self.config.block_size
        # A slot's current block is the last of its run; what stands before it is only committed.
        last = spans.edges[1:][np.searchsorted(spans.slots, denoising)] - size
        rows = slots.send((last[:, None] + np.arange(size))[slots.table["masked"][denoising]])
        uniforms, ranked_by = self._uniforms(denoising), self._ranked_by(denoising)

        def draw(head: torch.nn.Module, hidden: Float[Tensor, "rows hidden"]) -> Draws | None:
            if not len(rows):
                return None
            tiles = hidden.split(ROW_TILE)
            random = [None] * len(tiles) if uniforms is None else uniforms.split(ROW_TILE)
            return join([judge(head(tile), u, ranked_by, self.config) for tile, u in zip(tiles, random, strict=True)])

        with self.kernel.within():
            return self.model(
                slots.send(slots.columns["ids"].reshape(-1)[spans.places(slots.length)])[None],
                attention_mask=self.kernel.plan(spans, slots.cache),
                position_ids=slots.send(spans.positions)[None],
                logit_rows=rows,
                head=draw,
            )

    def _uniforms(self, denoising: NDArray[np.int64]) -> Float[Tensor, " rows"] | None:
        """The random number of every masked position; None at temperature 0."""
        if self.config.temperature == 0:
            return None
        table = self.slots.table[denoising]
        block = (table["start"] - table["whole"]) // self.config.block_size
        return self.slots.send(self.slots.uniforms[denoising, block, table["step"]][table["masked"]])

    def _ranked_by(self, denoising: NDArray[np.int64]) -> str | None:
        """The score to rank by; None where every block is at its last step, which reveals all."""
        last = self.slots.table["step"][denoising] == self.config.denoising_steps - 1
        return None if last.all() else RANKED_BY[self.config.remasking_strategy]

    def reveal(self, denoising: NDArray[np.int64], draws: Draws | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Reveals tokens of the current blocks.

        Returns:
            Which of the `denoising` slots have their response decided, and which met logits that are not finite.
        """
        if draws is None:
            return np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.bool_)
        slots, config = self.slots, self.config
        slots.table["steps"][denoising] += 1
        table = slots.table[denoising]
        masked, positions = table["masked"], table["start"][:, None] + np.arange(config.block_size)
        draws = draws.to_host()  # the one moment at which the host waits for the device
        reveal = self._choose(table, draws)
        chosen, places = reveal[masked], (positions + (denoising * slots.length)[:, None])
        steps = np.broadcast_to(table["steps"][:, None], masked.shape)
        known: dict[str, Any] = {"ids": draws.tokens, "logprobs": draws.logprobs, "entropies": draws.entropies}
        for name, column in slots.columns.items():
            values = steps[reveal] if name == "step_map" else known[name].numpy()[chosen]
            column.reshape(-1)[places[reveal]] = values
        left = masked & ~reveal
        slots.table["masked"][denoising] = left
        # A response is decided once all is revealed up to its end: a stop token of its own, or its limit.
        order = positions - table["prompt"][:, None]
        is_stop = slots.is_stop[slots.columns["ids"].reshape(-1)[places]] & (order >= 0)
        is_end = is_stop | (order == config.max_new_tokens - 1)
        is_revealed_up_to = np.cumsum(left, axis=1) == 0
        is_settled = is_revealed_up_to if config.end_early else ~left.any(1, keepdims=True)
        decided = np.any(is_end & is_settled, axis=1)
        failed = np.zeros_like(masked)
        failed[masked] = draws.failed.numpy()
        return decided, np.any(failed, axis=1)

    def _choose(self, table: np.ndarray, draws: Draws) -> NDArray[np.bool_]:
        """Asks the strategy which masked positions are revealed [rows, block]; a block's last step reveals all."""
        config = self.config
        masked, step = torch.from_numpy(table["masked"]), torch.from_numpy(table["step"])
        last = table["step"] == config.denoising_steps - 1
        if last.all():
            return table["masked"]
        score = torch.zeros(masked.shape).masked_scatter_(masked, draws.score)
        scores = BlockScores(
            masked=masked,
            confidence=score,
            entropy=score,
            quota=torch.minimum(step_quota(step, config.block_size, config.denoising_steps), masked.sum(-1)),
            dynamic_threshold=config.dynamic_threshold,
            eb_threshold=config.eb_threshold,
        )
        return np.where(last[:, None], table["masked"], STRATEGIES[config.remasking_strategy](scores).numpy())

    def open_blocks(self, denoising: NDArray[np.int64]) -> None:
        """Counts the step, and begins the next block of every sequence whose current one is complete."""
        table, size = self.slots.table, self.config.block_size
        complete = ~table["masked"][denoising].any(-1)
        table["step"][denoising] += 1
        table["pending"][denoising] = complete
        done = denoising[complete]
        table["start"][done] += size
        table["step"][done] = 0
        table["masked"][done] = True

    def grown(self, running: NDArray[np.int64]) -> list[tuple[int, Trajectory]]:
        """The sequences, of slots that go on, whose block is complete."""
        complete = running[self.slots.table["pending"][running]]
        return [self._trajectory(int(slot), UNFINISHED) for slot in complete]

    def end(
        self, denoising: NDArray[np.int64], finished: NDArray[np.bool_], failed: NDArray[np.bool_]
    ) -> list[tuple[int, Trajectory]]:
        """Takes the sequences that finished or failed out of their slots, the last slot first."""
        ended = []
        for slot, broken in zip(denoising[finished | failed][::-1], failed[finished | failed][::-1], strict=True):
            ended.append(self._trajectory(int(slot), "error" if broken else None))
            del self.prompts[ended[-1][0]]
            self.slots.remove(int(slot), poisoned=bool(broken))
        return ended

    def _trajectory(self, slot: int, reason: str | None) -> tuple[int, Trajectory]:
        """Index and trajectory of a slot's sequence; without a `reason`, it ends with a stop token or at its limit."""
        row = self.slots.table[slot]
        index, num_steps, forwards = int(row["index"]), int(row["steps"]), int(row["forwards"])
        prompt = list(self.prompts[index])
        if reason == "error":
            why = f"logits that are not finite at denoising step {num_steps}"
            return index, Trajectory(prompt, [], [], reason, forwards, num_steps, why)
        kept: dict[str, Any] = self.slots.response(slot, goes_on=reason == UNFINISHED)
        ids, step_map = kept.pop("ids"), kept.pop("step_map")
        if reason is None:
            reason = "stop" if ids[-1] in self.config.stop_ids else "length"
        return index, Trajectory(prompt, ids, step_map, reason, forwards, num_steps, **kept)
