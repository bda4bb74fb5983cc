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
step is scheduled on the host (`schedule`), gathered and sent (`stage`), computed (`runner`), and its tokens revealed
(`reveal`).  A CPU with several cores runs several engines (`t3d.decoding.lanes`); CUDA replays forwards that it has
seen (`t3d.decoding.graphs`), and keeps keys and values in pages (`t3d.decoding.pages`).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from t3d.decoding.buckets import Buffers
from t3d.decoding.cache import PagedCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.graphs import CudaGraphs, GraphRunner, are_recorded
from t3d.decoding.kernel import Kernel, choose_kernel, choose_paging
from t3d.decoding.lanes import make_lanes, side_by_side
from t3d.decoding.limits import cache_length
from t3d.decoding.memory import Capacity, decoding_memory, fitting, within_memory
from t3d.decoding.reveal import Revealed, reveal
from t3d.decoding.runner import Runner
from t3d.decoding.schedule import advance, schedule
from t3d.decoding.slots import Request, Slots, make_requests
from t3d.decoding.stage import stage
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import UNFINISHED, Trajectory


def decode(
    model: SDARForCausalLM,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    max_active: int = 32,
    graphs: bool | None = None,
    paged: bool | None = None,
) -> list[Trajectory]:
    """Decodes every prompt, at most `max_active` at a time, and returns the trajectories in their order.

    A prompt that cannot be decoded gets a trajectory with an `error`; the others go on.

    Raises:
        ConfigError: settings that fit neither the model nor the memory.
    """
    finished = dict(iter_decode(model, prompts, config, max_active, graphs=graphs, paged=paged))
    return [finished[index] for index in range(len(prompts))]


def iter_decode(
    model: SDARForCausalLM,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    max_active: int = 32,
    streams: Sequence[int] | None = None,
    agree: Callable[[int], int] | None = None,
    sharing: int = 1,
    by_block: bool = False,
    graphs: bool | None = None,
    paged: bool | None = None,
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
        sharing: processes that decode on this device, each with an equal part of its memory.
        by_block: also yield each sequence whenever a block of it is complete and others follow: a trajectory of
            finish_reason "unfinished".  (Where memory runs out, sequences begin anew, and so do these.)
        graphs: replay forwards as CUDA graphs; None does where that is possible.
        paged: keep keys and values in pages that sequences take as they grow; None does where attention reads pages.

    Raises:
        ConfigError: see `decode`.
    """
    left, refused = make_requests(prompts, streams, config, model.config)
    yield from refused.items()
    left = dict(sorted(left.items(), key=lambda entry: _shape(entry[1].prompt, config)))
    longest, wanted = max((len(request.prompt) for request in left.values()), default=0), min(max_active, len(left))
    if left:
        kernel = choose_kernel(model)
        recorded = are_recorded(model.device, model.dtype, kernel, model.config, graphs)
        paging = choose_paging(kernel, paged)
        needed = decoding_memory(model.config, model.dtype, config, longest, model.device, recorded, paging)
        capacity = fitting(needed, model.device, config, longest, wanted, sharing)
        capacity = capacity if agree is None else capacity.agreed(agree)
        decode_left = partial(_decode_through, model, config, left, longest, by_block, recorded)
        yield from within_memory(decode_left, left, capacity, model.device, agree is not None)


def _decode_through(
    model: SDARForCausalLM,
    config: DecodingConfig,
    left: dict[int, Request],
    longest: int,
    by_block: bool,
    recorded: bool,
    capacity: Capacity,
) -> Generator[tuple[int, Trajectory], None, None]:
    """Decodes what is `left`, and takes out what finishes, through so many slots, or as many as there are requests."""
    waiting, num_slots, kernel = deque(left.values()), min(capacity.slots, len(left)), choose_kernel(model)
    most = num_slots if capacity.paging is None else capacity.pages // capacity.longest  # each must hold the longest
    lanes = make_lanes(model, num_slots, config.block_size, most)
    slots = [_slots(model, config, capacity.part(share), longest, recorded) for share in lanes.shares]
    engines = [Engine(_runner(model, config, kernel, share, recorded), waiting, share, by_block) for share in slots]
    for index, trajectory in side_by_side([engine.run for engine in engines], lanes.threads):
        if trajectory.finish_reason != UNFINISHED:
            del left[index]
        yield index, trajectory


def _slots(model: SDARForCausalLM, config: DecodingConfig, capacity: Capacity, longest: int, recorded: bool) -> Slots:
    """The slots of one engine, and one more for padding where forwards are recorded."""
    num_spare, paging = int(recorded), capacity.paging
    if paging is None:
        return Slots(model, config, capacity.slots, longest, num_spare=num_spare)
    length, num_slots = cache_length(longest, config), capacity.slots + num_spare
    cache = PagedCache(model.config, capacity.pages, paging.size, num_slots, length, model.dtype, model.device)
    return Slots(model, config, capacity.slots, longest, cache=cache)


def _runner(model: SDARForCausalLM, config: DecodingConfig, kernel: Kernel, slots: Slots, recorded: bool) -> Runner:
    """What computes the forwards of one engine; its padding takes the slot after the last."""
    if not recorded:
        return Runner(model, config, kernel)
    buffers = Buffers(slots.device, spare=len(slots.table))
    return GraphRunner(model, config, kernel, buffers, CudaGraphs(model.device))


def _shape(prompt: list[int], config: DecodingConfig) -> tuple[int, int]:
    """Sorts prompts so that neighbouring slots commit at the same forwards and have about as many keys.

    Attention is computed for neighbours together; results do not depend on the order.
    """
    first_masks = config.block_size - len(prompt) % config.block_size
    return min(first_masks, config.denoising_steps), len(prompt)


class Engine:
    """Decodes the waiting prompts through the slots."""

    def __init__(self, runner: Runner, waiting: deque[Request], slots: Slots, by_block: bool = False) -> None:
        """Takes what computes, requests, which engines empty together, and slots without a sequence."""
        self.runner, self.waiting, self.slots, self.by_block = runner, waiting, slots, by_block
        self.prompts: dict[int, list[int]] = {}

    def run(self) -> Iterator[list[tuple[int, Trajectory]]]:
        """Yields what finished, after every forward (and what grew by a block, see `iter_decode`)."""
        slots = self.slots
        while self.admit():
            news: list[tuple[int, Trajectory]] = []
            with torch.inference_mode():
                step = schedule(slots)
                draws = self.runner.run(stage(step, slots, self.runner.kernel, self.runner.buffers))
                if draws is None:
                    advance(slots, step.prefilling, step.denoising)
                else:
                    revealed = reveal(step.denoising, draws.to_host(), slots)
                    advance(slots, step.prefilling, step.denoising)
                    news = self.grown(step.denoising, revealed) if self.by_block else []
                    news += self.end(step.denoising, revealed)
            yield news

    def admit(self) -> bool:
        """Gives sequences room to grow and every free slot a prompt; False where no sequence is left."""
        for request in self.slots.make_room():
            del self.prompts[request.index]
            self.waiting.appendleft(request)
        self.prompts |= self.slots.fill(self.waiting)
        return self.slots.active > 0

    def grown(self, denoising: NDArray[np.int64], revealed: Revealed) -> list[tuple[int, Trajectory]]:
        """The sequences that go on, and whose block is complete."""
        slots = self.slots
        complete = denoising[slots.table["pending"][denoising] & ~(revealed.decided | revealed.failed)]
        indices = [int(index) for index in slots.table["index"][complete]]
        return [
            (index, slots.trajectory(slot, self.prompts[index], goes_on=True))
            for slot, index in zip(complete.tolist(), indices, strict=True)
        ]

    def end(self, denoising: NDArray[np.int64], revealed: Revealed) -> list[tuple[int, Trajectory]]:
        """Takes the sequences that are decided or failed out of their slots, the last slot first."""
        ended = []
        over = revealed.decided | revealed.failed
        for slot, failed in zip(denoising[over][::-1].tolist(), revealed.failed[over][::-1].tolist(), strict=True):
            index = int(self.slots.table[slot]["index"])
            ended.append((index, self.slots.trajectory(slot, self.prompts.pop(index), failed)))
            self.slots.remove(slot, poisoned=failed)
        return ended
