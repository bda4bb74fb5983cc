"""Figures over whole rollout files: in which order tokens are revealed, and where two decodings agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from t3d.trajectory import Trajectory
from t3d.viewer.source import Response, Source


@dataclass(frozen=True)
class Order:
    """How the tokens of a rollout file were revealed.

    Attributes:
        by_place: of the tokens at each place of a block (rows), the share revealed in each step of that block
            (columns); a row of zeros where no token lies.
        per_step: number of steps that revealed 1, 2, ... tokens.
        left_to_right: share of the tokens at whose reveal no token before them in their block was hidden.
        tokens: number of tokens counted.
        steps: number of steps counted, those that revealed a token of the response.
    """

    by_place: Float[np.ndarray, "block block"]
    per_step: Int[np.ndarray, " block"]
    left_to_right: float
    tokens: int
    steps: int


@dataclass(frozen=True)
class Agreement:
    """How far two decodings of the same problems agree.

    Attributes:
        by_step: of the tokens that the first file revealed in each step of their block, the share at whose position
            the second has the same token; NaN where it revealed none.
        by_step_count: the number of those tokens.
        same_share: share of the responses that are the same token for token.
        first_difference: median place of the first token that differs, among responses that do; None if none do.
        pairs: responses compared.
    """

    by_step: Float[np.ndarray, " block"]
    by_step_count: Int[np.ndarray, " block"]
    same_share: float
    first_difference: float | None
    pairs: int


def steps_in_block(trajectory: Trajectory, block_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Block and step within that block, from 1, of each token; blocks count from position 0 of the prompt.

    The first step of a block is the first one that revealed a token of the response in it.
    """
    steps = np.asarray(trajectory.step_map)
    blocks = (len(trajectory.prompt_ids) + np.arange(len(steps))) // block_size
    blocks -= blocks[0]
    first = np.full(blocks[-1] + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, blocks, steps)
    return blocks, steps - first[blocks] + 1


def reveal_order(source: Source) -> Order:
    """Counts over every response of a file."""
    size = source.block_size
    counts = np.zeros((size, size), dtype=np.int64)
    per_step: Counter[int] = Counter()
    in_order = 0
    for trajectory in _trajectories(source.responses):
        blocks, steps = steps_in_block(trajectory, size)
        places = (len(trajectory.prompt_ids) + np.arange(len(steps))) % size
        np.add.at(counts, (places, np.minimum(steps, size) - 1), 1)
        per_step.update(np.unique(np.asarray(trajectory.step_map), return_counts=True)[1].tolist())
        latest = np.zeros(blocks[-1] + 1, dtype=np.int64)
        for block, step in zip(blocks.tolist(), steps.tolist(), strict=True):
            in_order += step >= latest[block]
            latest[block] = max(latest[block], step)
    tokens = int(counts.sum())
    return Order(
        by_place=counts / np.maximum(counts.sum(1, keepdims=True), 1),
        per_step=np.array([per_step[count] for count in range(1, size + 1)], dtype=np.int64),
        left_to_right=in_order / max(tokens, 1),
        tokens=tokens,
        steps=sum(per_step.values()),
    )


def agreement(first: Source, second: Source) -> Agreement:
    """Compares the responses that both files have (the same problem and response number)."""
    others = {response.key: response for response in second.responses}
    same = np.zeros(first.block_size, dtype=np.int64)
    counted = np.zeros(first.block_size, dtype=np.int64)
    differences: list[int] = []
    pairs = 0
    for response in first.responses:
        other = others.get(response.key)
        if other is None or response.trajectory is None or other.trajectory is None:
            continue
        pairs += 1
        ids, other_ids = response.trajectory.response_ids, other.trajectory.response_ids
        equal = np.array([a == b for a, b in zip(ids, other_ids, strict=False)] + [False] * (len(ids) - len(other_ids)))
        _, steps = steps_in_block(response.trajectory, first.block_size)
        columns = np.minimum(steps, first.block_size) - 1
        np.add.at(counted, columns, 1)
        np.add.at(same, columns, equal.astype(np.int64))
        if ids != other_ids:
            differences.append(int(np.argmin(equal)) if not equal.all() else len(ids))
    return Agreement(
        by_step=np.where(counted > 0, same / np.maximum(counted, 1), np.nan),
        by_step_count=counted,
        same_share=1 - len(differences) / max(pairs, 1),
        first_difference=float(np.median(differences)) if differences else None,
        pairs=pairs,
    )


def _trajectories(responses: Sequence[Response]) -> list[Trajectory]:
    return [response.trajectory for response in responses if response.trajectory is not None]
