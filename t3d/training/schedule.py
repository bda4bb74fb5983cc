"""What a global step is made of: its learning rate and its samples, as functions of the step number alone."""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from t3d.config import SchedulerConfig, TrainingConfig
from t3d.errors import ConfigError

Visit = tuple[int, int]
"""Epoch and sample."""

Lengths = Sequence[int] | NDArray[np.int64]
"""Tokens of every sample of the data."""


def samples_per_step(training: TrainingConfig, num_processes: int) -> int:
    """Samples of one global step: a fact of the experiment, unless `training.global_batch_size` is null."""
    product = training.batch_size_lm * training.gradient_accumulation_steps * num_processes
    return training.global_batch_size or product


def num_steps(training: TrainingConfig, samples: int, global_batch: int) -> int:
    """Global steps of a run on so many samples, with so many to a step."""
    return training.max_steps or math.ceil(samples * training.num_train_epochs / global_batch)


def accumulation_steps(training: TrainingConfig, num_processes: int) -> int:
    """Micro-batches of `batch_size_lm` samples that each process contributes to a global step.

    Raises:
        ConfigError: the processes cannot share the samples of a step evenly.
    """
    samples, together = samples_per_step(training, num_processes), training.batch_size_lm * num_processes
    if samples % together:
        expected = (
            f"a multiple of {together} (training.batch_size_lm {training.batch_size_lm} x {num_processes} processes)"
        )
        raise ConfigError("training.global_batch_size", expected, samples)
    return samples // together


def learning_rate(step: int, num_steps: int, peak: float, config: SchedulerConfig) -> float:
    """Learning rate of 0-based global step `step`: linear warm-up, then decay to `min_lr_scale` of the peak.

    Never below that, also after `num_steps`; a warm-up as long as the run or longer is cut to the run.
    """
    warmup = min(config.params.warmup_steps, num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    falling = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[config.scheduler]
    floor = config.params.min_lr_scale
    return peak * (floor + (1 - floor) * falling)


class SampleOrder:
    """An endless stream of samples: every epoch a fresh permutation, seeded by (seed, epoch)."""

    def __init__(self, num_samples: int, seed: int) -> None:
        """Orders samples 0..num_samples-1."""
        self.num_samples, self.seed = num_samples, seed
        self._orders: dict[int, np.ndarray] = {}

    def visits(self, step: int, global_batch: int) -> list[Visit]:
        """(epoch, sample) of each of the `global_batch` visits of 0-based global step `step`."""
        places = range(step * global_batch, (step + 1) * global_batch)
        return [
            (place // self.num_samples, int(self._order(place // self.num_samples)[place % self.num_samples]))
            for place in places
        ]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return self._orders[epoch]


def micro_batches(
    visits: Sequence[Visit], lengths: Lengths, batch_size: int, process: int, num_processes: int
) -> list[list[Visit]]:
    """The micro-batches of one process, of `batch_size` samples each.

    Visits are dealt out by length, so that processes finish together; which samples a global step holds does not
    depend on it.

    Args:
        visits: the global batch: batch_size * num_processes * (number of micro-batches) visits.
        lengths: length of every sample of the data.
        batch_size: samples per micro-batch.
        process: which process, 0..num_processes-1.
        num_processes: how many there are.
    """
    ordered = sorted(visits, key=lambda visit: (lengths[visit[1]], visit))
    parts = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return parts[process::num_processes]


def token_packs(
    visits: Sequence[Visit], lengths: Lengths, budget: int, process: int, num_processes: int
) -> list[list[Visit]]:
    """The micro-batches of one process, of at most `budget` tokens each; a longer sample stands alone.

    As few packs as hold the global batch, the same number for every process, and of nearly equal size: the longest
    sample first, each into the pack that is the emptiest by then.

    Args:
        visits: the global batch: a multiple of `num_processes` visits.
        lengths: tokens of every sample of the data, at most.
        budget: tokens per pack, at most.
        process: which process, 0..num_processes-1.
        num_processes: how many there are.
    """
    ordered = sorted(visits, key=lambda visit: (-lengths[visit[1]], visit))
    fewest = -(-sum(min(budget, lengths[sample]) for _, sample in ordered) // budget)
    for count in range(-(-fewest // num_processes) * num_processes, len(ordered) + 1, num_processes):
        packs = _spread(ordered, lengths, count)
        if all(len(pack) == 1 or sum(lengths[sample] for _, sample in pack) <= budget for pack in packs):
            break
    return packs[process::num_processes]


def longest_row(lengths: Lengths, training: TrainingConfig) -> int:
    """Tokens that no micro-batch of the data has more of: one pack, or the longest samples together."""
    ordered = sorted(lengths, reverse=True)
    if training.tokens_per_batch is None:
        return int(sum(ordered[: training.batch_size_lm]))
    return int(max(training.tokens_per_batch, ordered[0]))


def _spread(ordered: Sequence[Visit], lengths: Lengths, count: int) -> list[list[Visit]]:
    """`ordered` dealt into `count` packs, each visit to the pack with the fewest tokens."""
    packs: list[list[Visit]] = [[] for _ in range(count)]
    emptiest = [(0, index) for index in range(count)]
    for visit in ordered:
        tokens, index = emptiest[0]
        packs[index].append(visit)
        heapq.heapreplace(emptiest, (tokens + lengths[visit[1]], index))
    return packs
