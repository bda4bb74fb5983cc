"""Lossless speculative decoding: several denoising steps of a sequence in one forward, and the same response.

A draft (`t3d.decoding.drafts`) expects the coming states of a sequence's block.  Every state is an input of the
network, and none needs the result of another, so one forward computes them all: each in a slot of its own, which holds
the same committed keys and values, beside the states of the other sequences.  Then the decoder's own step is taken in
the first state, which is the real one; if that leads to the second state as it was expected, what the forward computed
there is what the next forward would have computed, and the decoder's step is taken there, and so on.  The rest is
thrown away.

The response, its step map and its records are those of `t3d.decoding.decode` wherever a forward's result at a position
does not depend on what else it computes: to the bit on a CPU in single precision (see `t3d.sdar.products`).  Where it
does depend (bfloat16 on a GPU), another near-tie may be taken, as by any other change of the batch.

Drafts cost nothing where the network makes them itself: each forward predicts all masked positions, not only those that
the step reveals (`source="self"`).  Another network with the same vocabulary, such as a student, may draft with a
forward of its own before each of the model's ("student"), or only where a new block has no draft yet ("both").
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from t3d.decoding.cache import SlotCache
from t3d.decoding.config import DecodingConfig
from t3d.decoding.drafts import Asked, Drafts, States, current, follow
from t3d.decoding.draws import Draws
from t3d.decoding.kernel import choose_kernel
from t3d.decoding.lanes import make_lanes, side_by_side
from t3d.decoding.limits import PREFILL_TOKENS, cache_length, prefill_chunk
from t3d.decoding.memory import Capacity, fitting, num_states, speculative_memory, within_memory
from t3d.decoding.plan import Spans
from t3d.decoding.reveal import Positions, reveal
from t3d.decoding.runner import Runner
from t3d.decoding.schedule import advance
from t3d.decoding.slots import Request, Slots, make_requests
from t3d.decoding.stage import Staged
from t3d.errors import ConfigError
from t3d.parcel import Parcel
from t3d.remasking import RANKED_BY
from t3d.sdar.modeling import SDARForCausalLM
from t3d.trajectory import Trajectory

SOURCES = ("self", "student", "both")
NONE = np.zeros(0, dtype=np.int64)
COPIED_BYTES = 2**26
"""Keys or values that are copied to a sequence's other slots at a time."""


@dataclass(frozen=True)
class Drafted:
    """A response and what it cost.

    Attributes:
        trajectory: as `t3d.decoding.decode` gives it; but `num_forwards` counts the forwards that were needed, those
            of the drafting network included.
        positions: that the model computed after the prompt, in all its forwards.
    """

    trajectory: Trajectory
    positions: int

    @property
    def draft_forwards(self) -> int:
        """Forwards of the drafting network, those that prefill the prompt included."""
        return self.trajectory.num_draft_forwards

    @property
    def own_forwards(self) -> int:
        """Forwards of the model, likewise."""
        return self.trajectory.num_forwards - self.draft_forwards


@dataclass(frozen=True)
class Draft:
    """Where drafts come from.

    Attributes:
        source: "self", "student" or "both", see this module.
        network: the student; None where the model drafts for itself.
    """

    source: str = "self"
    network: SDARForCausalLM | None = None

    def __post_init__(self) -> None:
        """Checks the source."""
        if self.source not in SOURCES or (self.source == "self") != (self.network is None):
            raise ConfigError("draft", "self alone, or student or both with a network", self.source)


def iter_speculative(
    model: SDARForCausalLM,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    draft: Draft | None = None,
    max_active: int = 32,
    streams: Sequence[int] | None = None,
    sharing: int = 1,
) -> Iterator[tuple[int, Drafted]]:
    """Yields (index of the prompt, its response) as sequences finish; memory as `t3d.decoding.iter_decode` minds it.

    Args:
        model: the network, in eval mode, on any device.
        prompts: token ids of each prompt.
        config: decoding settings.
        draft: where drafts come from; None: from the model itself.
        max_active: most sequences in flight, as memory allows; results do not depend on it.
        streams: see `t3d.decoding.iter_decode`.
        sharing: likewise.

    Raises:
        ConfigError: settings that fit neither the model nor the memory, or a student with another vocabulary.
    """
    draft = draft or Draft()
    networks = [model] if draft.network is None else [model, draft.network]
    vocabulary = model.config.vocab_size
    if networks[-1].config.vocab_size != vocabulary:
        raise ConfigError("draft", f"a network with the model's {vocabulary} tokens", networks[-1].config.vocab_size)
    left, refused = make_requests(prompts, streams, config, *(network.config for network in networks))
    for index, trajectory in refused.items():
        yield index, Drafted(trajectory, 0)
    if left:
        longest, wanted = max(len(request.prompt) for request in left.values()), min(max_active, len(left))
        shapes = [(network.config, network.dtype) for network in networks]
        needed = speculative_memory(shapes, config, longest, model.device)
        capacity = fitting(needed, model.device, config, longest, wanted, sharing)
        decode_left = partial(_speculate_through, model, config, draft, left, longest)
        yield from within_memory(decode_left, left, capacity, model.device)


def _speculate_through(
    model: SDARForCausalLM,
    config: DecodingConfig,
    draft: Draft,
    left: dict[int, Request],
    longest: int,
    capacity: Capacity,
) -> Generator[tuple[int, Drafted], None, None]:
    """Decodes what is `left`, and takes out what finishes, so many sequences at a time."""
    waiting = deque(left.values())
    num_sequences = min(capacity.slots, len(left))
    lanes = make_lanes(model, num_sequences, config.block_size, num_sequences)
    engines = [SpeculativeEngine(model, config, draft, waiting, share, longest) for share in lanes.shares]
    for index, drafted in side_by_side([engine.run for engine in engines], lanes.threads):
        del left[index]
        yield index, drafted


class GroupedCache(SlotCache):
    """Several slots for each sequence, one for each state of it that a forward computes.

    Place p of sequence s is slot p * sequences + s.  All places hold the same committed keys and values.
    """

    def __init__(self, model: SDARForCausalLM, num_sequences: int, width: int, length: int) -> None:
        """Allocates `width` slots for each sequence."""
        super().__init__(model.config, num_sequences * width, length, model.dtype, model.device)
        self.num_sequences, self.length = num_sequences, length

    @property
    def groups(self) -> list[Float[Tensor, "layers places sequences length kv_heads dim"]]:
        """Keys and values, by place and sequence."""
        return [buffer.unflatten(1, (-1, self.num_sequences)) for buffer in (self.keys, self.values)]

    def move(self, source: int, target: int, length: int) -> None:
        """Moves the first `length` positions of a sequence to another's slots and leaves zeros."""
        for group in self.groups:
            group[:, :, target, :length] = group[:, :, source, :length]
            group[:, :, source, :length] = 0

    def clear(self, slot: int, start: int = 0) -> None:
        """Overwrites a sequence with zeros, from a position on."""
        for group in self.groups:
            group[:, :, slot, start:] = 0

    def spread(self, places: Positions, sequences: Positions, starts: Positions, stops: Positions) -> None:
        """Copies positions `starts` to `stops` of a sequence from one place to all of them, for several sequences.

        Few positions at a time, as their copies stand beside the cache for a moment: whole prompts are gigabytes.
        """
        lengths, width = stops - starts, self.keys.shape[1] // self.num_sequences
        if width == 1 or not lengths.any():
            return
        positions = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        source = np.repeat((places * self.num_sequences + sequences) * self.length, lengths) + positions
        lead = np.repeat(sequences * self.length, lengths) + positions
        target = lead + np.arange(width)[:, None] * self.num_sequences * self.length
        flats = [buffer.flatten(1, 2) for buffer in (self.keys, self.values)]
        copied = flats[0][:, 0].numel() * flats[0].itemsize * (width + 1)
        for first in range(0, len(source), size := max(1, COPIED_BYTES // copied)):
            part = slice(first, first + size)
            indices = (source[part], target[:, part].ravel())
            read, written = (torch.from_numpy(index).to(self.keys.device) for index in indices)
            for flat in flats:
                flat.index_copy_(1, written, flat.index_select(1, read).repeat(1, width, 1, 1))


class Network:
    """A model with the keys and values of the sequences in flight."""

    def __init__(self, model: SDARForCausalLM, config: DecodingConfig, cache: GroupedCache) -> None:
        """Chooses the attention."""
        self.cache, self.kernel, self.random = cache, choose_kernel(model), config.temperature > 0
        self.runner, self.ranked_by = Runner(model, config, self.kernel), RANKED_BY[config.remasking_strategy]

    def prefill(self, slots: Slots, fresh: Positions) -> None:
        """Computes the whole blocks of new prompts, as many at a time as one forward should hold."""
        size, whole = slots.config.block_size, slots.table["whole"][fresh]
        filled = np.zeros_like(whole)
        while (filled < whole).any():
            chunks = np.minimum(whole - filled, prefill_chunk(size))
            unfilled = np.flatnonzero(chunks)
            within = np.cumsum(chunks[unfilled]) <= PREFILL_TOKENS
            within[0] = True
            now = unfilled[within]
            spans = Spans(fresh[now], filled[now], chunks[now] // size, size)
            self.forward(spans, slots.columns["ids"].reshape(-1)[spans.places(slots.length)], NONE, None)
            filled[now] += chunks[now]
        self.cache.spread(0 * fresh, fresh, 0 * whole, whole)

    def draw(self, states: States, slots: Slots, spans: Spans, ids: Positions) -> tuple[Asked, Draws]:
        """One forward over the states: what is drawn in them, and would be drawn at their later steps.

        Args:
            states: each is the last block of a run.
            slots: of the sequences.
            spans: the runs.
            ids: their tokens.
        """
        asked = Asked.of(states, slots.config)
        uniforms = asked.uniforms(states, slots) if self.random else None
        draws = self.forward(spans, ids, asked.places(spans), uniforms)
        assert draws is not None, "a state has masked positions"
        return asked, draws.to_host()

    def forward(self, spans: Spans, ids: Positions, rows: Positions, uniforms: np.ndarray | None) -> Draws | None:
        """The network on a row of blocks; one draw per row."""
        parcel = Parcel(self.cache.keys.device)
        numbers = [parcel.add(array) for array in (ids, spans.positions, rows)]
        drawn_by = None if uniforms is None else parcel.add(uniforms)
        plan = self.kernel.plan(spans, self.cache, parcel)
        tokens, positions, places = (parcel[number] for number in numbers)
        by = None if drawn_by is None else parcel[drawn_by]
        return self.runner.run(Staged(tokens[None], positions[None], plan, places, by, self.ranked_by, len(rows)))


class SpeculativeEngine:
    """Decodes the waiting prompts, a round of drafting, computing and accepting at a time."""

    def __init__(
        self,
        model: SDARForCausalLM,
        config: DecodingConfig,
        draft: Draft,
        waiting: deque[Request],
        num_slots: int,
        longest_prompt: int,
    ) -> None:
        """Takes requests, which engines empty together."""
        self.waiting, self.source = waiting, draft.source
        length = cache_length(longest_prompt, config)
        cache = GroupedCache(model, num_slots, num_states(config), length)
        self.slots = Slots(model, config, num_slots, longest_prompt, cache=cache)
        self.network, self.student = Network(model, config, cache), None
        if draft.network is not None:
            cache = GroupedCache(draft.network, num_slots, 1, length)
            self.student = Network(draft.network, replace(config, record=()), cache)
        self.drafts = Drafts(num_slots, config)
        self.prompts: dict[int, list[int]] = {}
        # By slot: how far the student's keys and values go, its forwards, and the positions that the model computed.
        self.known, self.draft_forwards, self.positions = np.zeros((3, num_slots), dtype=np.int64)

    def run(self) -> Iterator[list[tuple[int, Drafted]]]:
        """Yields what finished, after every round."""
        with torch.inference_mode():
            going = self.admit()
        while going:
            with torch.inference_mode():
                if self.student is not None:
                    self.ask_student(self.student)
                states = follow(self.slots, self.drafts)
                spans = states.spans(self.network.cache.num_sequences)
                asked, draws = self.network.draw(states, self.slots, spans, states.tokens())
                self.count(states)
                over = self.accept(states, asked, draws)
                news = [self.end(slot, over[slot]) for slot in sorted(over, reverse=True)]
                going = self.admit()
            yield news

    def admit(self) -> bool:
        """Gives every free slot a prompt and prefills it; False where no sequence is left."""
        slots, first = self.slots, self.slots.active
        self.prompts |= slots.fill(self.waiting)
        fresh = np.arange(first, slots.active)
        if len(fresh):
            chunks = -(-slots.table["whole"][fresh] // prefill_chunk(slots.config.block_size))
            self.network.prefill(slots, fresh)
            slots.table["filled"][fresh], slots.table["forwards"][fresh] = slots.table["whole"][fresh], chunks
            self.drafts.starts[fresh], self.positions[fresh], self.draft_forwards[fresh] = -1, 0, 0
            if self.student is not None:
                self.student.prefill(slots, fresh)
                self.known[fresh], self.draft_forwards[fresh] = slots.table["whole"][fresh], chunks
        return slots.active > 0

    def ask_student(self, student: Network) -> None:
        """Drafts from the states that the sequences are in, where more than one step may be left of the block."""
        slots, states = self.slots, current(self.slots)
        wanted = (states.masked.sum(1) > 1) & (states.steps < slots.config.denoising_steps - 1)
        if self.source == "both":
            wanted &= self.drafts.starts[: slots.active] != states.starts
        if not wanted.any():
            return
        states, size = states.at(wanted), slots.config.block_size
        first = self.known[states.slots]  # what it has not committed, the forward carries along
        spans = Spans(states.slots, first, (states.starts - first) // size + 1, size)
        asked, draws = student.draw(states, slots, spans, slots.columns["ids"].reshape(-1)[spans.places(slots.length)])
        self.drafts.expect(states, asked, draws, np.arange(len(states.slots)))
        self.known[states.slots] = states.starts
        self.draft_forwards[states.slots] += 1

    def count(self, states: States) -> None:
        """Counts a forward of the model, and the positions it computed."""
        self.slots.running["forwards"] += 1
        np.add.at(self.positions, states.slots, (states.commits + 1) * self.slots.config.block_size)

    def accept(self, states: States, asked: Asked, draws: Draws) -> dict[int, bool]:
        """Takes the decoder's steps for as long as they lead to the states that were computed.

        Returns:
            The slots whose sequences are over, and whether they failed.
        """
        slots, over = self.slots, dict[int, bool]()
        last, going = np.zeros(slots.active, dtype=np.int64), np.ones(slots.active, dtype=np.bool_)
        for place in range(int(states.places.max()) + 1):
            rows = np.flatnonzero((states.places == place) & going[states.slots])
            rows = rows[states.at(rows).equal(current(slots).at(states.slots[rows]))]
            now = states.slots[rows]
            going[:], going[now], last[now] = False, True, rows
            committing = rows[slots.table["pending"][now]]
            self.commit(states.at(committing))
            revealed = reveal(now, draws.at(asked.own(rows)), slots)
            advance(slots, NONE, now)
            ended = revealed.decided | revealed.failed
            over |= dict(zip(now[ended].tolist(), revealed.failed[ended].tolist(), strict=True))
            going[now[ended]] = False
        self.drafts.expect(states, asked, draws, last)
        if draws.failed.any():  # in a state that does not exist, too: what it left must not poison sums
            for slot in range(slots.active):
                self.network.cache.clear(slot, int(slots.table["start"][slot]))
        return over

    def commit(self, states: States) -> None:
        """Hands on the keys and values of blocks that a forward committed in one slot of each sequence."""
        stops = states.starts
        starts = stops - states.commits * self.slots.config.block_size
        self.network.cache.spread(states.places, states.slots, starts, stops)

    def end(self, slot: int, failed: bool) -> tuple[int, Drafted]:
        """Takes a sequence out of its slot, which the last one gets."""
        slots, last = self.slots, self.slots.active - 1
        row = slots.table[slot]
        index, drafted = int(row["index"]), int(self.draft_forwards[slot])
        trajectory = slots.trajectory(slot, self.prompts.pop(index), failed)
        forwards = trajectory.num_forwards + drafted
        trajectory = replace(trajectory, num_forwards=forwards, num_draft_forwards=drafted)
        found = Drafted(trajectory, int(self.positions[slot]))
        slots.remove(slot, poisoned=failed)
        if slot != last:
            self.drafts.move(last, slot)
            for column in (self.known, self.draft_forwards, self.positions):
                column[slot] = column[last]
            if self.student is not None:
                self.student.cache.move(last, slot, int(self.known[slot]))
        return index, found
