"""Denoising states that have not been reached yet, as a draft expects them.

The decoder is a deterministic function: from a block's state and what the network draws in it (random numbers belong to
a response, a block, a step and a position) follows its next state.  So whoever guesses the draws of the coming steps
knows the states that follow if the guess is right: `follow` walks the decoder's own steps on a draft in place of the
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import Draws
from t3d.decoding.plan import Spans
from t3d.decoding.reveal import Flags, Positions, choose, find_ends, is_decided
from t3d.decoding.slots import Slots


@dataclass(frozen=True)
class States:
    """States of blocks, one per row: those of place 0 (by slot), then those of place 1, ...

    Attributes:
        slots: the sequence of each.
        places: 0 for the state that the sequence is in, 1 for the one that a draft expects after it, ...
        starts: first position of the block.
        steps: denoising step within the block, from 0.
        ids: tokens [rows, block], the mask token where nothing is revealed.
        masked: positions [rows, block] that are not revealed.
        before: tokens [rows, 2 * block] in front of the block.
        commits: blocks in front of it, 0 to 2, whose keys and values are not committed yet.
    """

    slots: Positions
    places: Positions
    starts: Positions
    steps: Positions
    ids: Positions
    masked: Flags
    before: Positions
    commits: Positions

    def at(self, rows: NDArray[Any]) -> "States":
        """Some of the rows."""
        return States(*(getattr(self, field.name)[rows] for field in fields(self)))

    def spans(self, num_slots: int) -> Spans:
        """The rows as a forward's blocks, in the slots of a `GroupedCache` of `num_slots` sequences."""
        size = self.ids.shape[1]
        return Spans(self.places * num_slots + self.slots, self.starts - self.commits * size, self.commits + 1, size)

    def tokens(self) -> Positions:
        """The tokens of these blocks."""
        size = self.ids.shape[1]
        every = np.concatenate([self.before, self.ids], axis=1)
        return every[np.arange(3 * size) >= (2 - self.commits[:, None]) * size]

    def equal(self, other: "States") -> Flags:
        """Which rows are the same state: where, at which step, and with which tokens behind and in the block."""
        same = (self.starts == other.starts) & (self.steps == other.steps) & (self.ids == other.ids).all(1)
        return same & (self.before == other.before).all(1)


def join(states: Sequence[States]) -> States:
    """The rows of several as one."""
    return States(*(np.concatenate([getattr(part, field.name) for part in states]) for field in fields(States)))


def current(slots: Slots) -> States:
    """The states that the running sequences are in."""
    table, every, size = slots.running, np.arange(slots.active), slots.config.block_size
    places = np.maximum(table["start"][:, None] + np.arange(-2 * size, size), 0)
    ids = slots.columns["ids"][every[:, None], places]
    masked, commits = table["masked"].copy(), table["pending"].astype(np.int64)
    starts, steps = table["start"].copy(), table["step"].copy()
    return States(every, 0 * every, starts, steps, ids[:, 2 * size :], masked, ids[:, : 2 * size], commits)


class Drafts:
    """What each slot's block is expected to draw at its coming steps.

    Attributes:
        starts: the block, by its first position; -1 where nothing is expected.
        tokens: [slots, steps, block].
        scores: what the strategy ranks by, likewise.
    """

    def __init__(self, num_slots: int, config: DecodingConfig) -> None:
        """Expects nothing."""
        shape = num_slots, config.denoising_steps, config.block_size
        self.starts = np.full(num_slots, -1)
        self.tokens, self.scores = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)

    def expect(self, states: States, asked: "Asked", draws: Draws, rows: Positions) -> None:
        """Expects that what was drawn in some of the states would be drawn at their later steps, too."""
        tokens, scores = asked.spread(states, draws)
        slots = states.slots[rows]
        self.starts[slots], self.tokens[slots], self.scores[slots] = states.starts[rows], tokens[rows], scores[rows]

    def move(self, source: int, target: int) -> None:
        """What a slot expects, a sequence takes with it to another."""
        for column in (self.starts, self.tokens, self.scores):
            column[target] = column[source]
        self.starts[source] = -1


@dataclass(frozen=True)
class Asked:
    """The draws that are asked for at states: first those of each masked position at the state's own step.

    Attributes:
        rows: the state.
        offsets: the position in its block.
        steps: the step whose random number draws.
        num_own: draws at the states' own steps; the others look ahead.
        num_steps: most steps of a block.
    """

    rows: Positions
    offsets: Positions
    steps: Positions
    num_own: int
    num_steps: int

    @classmethod
    def of(cls, states: States, config: DecodingConfig) -> "Asked":
        """Asks at every masked position; where draws are random, with the numbers of every later step as well.

        At temperature 0 one draw serves all steps.
        """
        found = []
        for ahead in range(config.denoising_steps if config.temperature > 0 else 1):
            rows, offsets = np.nonzero(states.masked & (states.steps + ahead < config.denoising_steps)[:, None])
            found.append((rows, offsets, states.steps[rows] + ahead))
        rows, offsets, steps = (np.concatenate(column) for column in zip(*found, strict=True))
        return cls(rows, offsets, steps, num_own=len(found[0][0]), num_steps=config.denoising_steps)

    def places(self, spans: Spans) -> Positions:
        """Where among a forward's tokens they are: a state's block is the last of its run."""
        return spans.edges[1:][self.rows] - spans.size + self.offsets

    def uniforms(self, states: States, slots: Slots) -> NDArray[np.float32]:
        """The random numbers that draw."""
        of = states.slots[self.rows]
        block = (states.starts[self.rows] - slots.table["whole"][of]) // slots.config.block_size
        return slots.uniforms[of, block, self.steps, self.offsets]

    def own(self, rows: Positions) -> Int[Tensor, " chosen"]:
        """Which draws belong to some of the states, at their own step."""
        return torch.from_numpy(np.flatnonzero(np.isin(self.rows[: self.num_own], rows)))

    def spread(self, states: States, draws: Draws) -> tuple[Positions, NDArray[np.float32]]:
        """Tokens and scores [rows, steps, block]; where one draw serves all steps, at each of them."""
        shape = len(states.slots), self.num_steps, states.ids.shape[1]
        tokens, scores = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        rows, offsets, steps = self.rows, self.offsets, self.steps
        if len(rows) == self.num_own:
            rows, offsets, steps = rows[:, None], offsets[:, None], np.arange(self.num_steps)
        for column, drawn in ((tokens, draws.tokens), (scores, draws.score)):
            column[rows, steps, offsets] = drawn.numpy().reshape(rows.shape)
        return tokens, scores


def follow(slots: Slots, drafts: Drafts) -> States:
    """The states that the sequences are in, and those that come next if the drafts are right.

    Of a sequence with a draft these are all states of its block that are still to come and the first one of the next
    block, unless the response ends before.
    """
    states = current(slots)
    chain, goes_on = [states], drafts.starts[states.slots] == states.starts
    while goes_on.any():
        states, goes_on = _next(states.at(goes_on), slots, drafts)
        chain.append(states)
    return join(chain)


def _next(states: States, slots: Slots, drafts: Drafts) -> tuple[States, Flags]:
    """The next state of each row that has one, and whether its draft reaches beyond that."""
    config, size = slots.config, slots.config.block_size
    tokens, scores = drafts.tokens[states.slots, states.steps], drafts.scores[states.slots, states.steps]
    chosen = choose(states.masked, states.steps, scores, config)
    ids, masked = np.where(chosen, tokens, states.ids), states.masked & ~chosen
    order = states.starts[:, None] + np.arange(size) - slots.table["prompt"][states.slots][:, None]
    exists: Flags = ~is_decided(masked, find_ends(slots, order, ids), config.end_early)
    complete: Flags = ~np.any(masked, axis=1)
    whole = complete[:, None]
    following = States(
        slots=states.slots,
        places=states.places + 1,
        starts=states.starts + size * complete,
        steps=np.where(complete, 0, states.steps + 1),
        ids=np.where(whole, config.mask_id, ids),
        masked=masked | whole,
        before=np.where(whole, np.concatenate([states.before[:, size:], ids], axis=1), states.before),
        commits=states.commits + complete,
    )
    return following.at(exists), ~complete[exists]
