"""What a global step is made of: its learning rate and its samples, as functions of the step number alone."""

import math
from collections.abc import Sequence

import numpy as np

from t3d.config import SchedulerConfig


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

    def visits(self, step: int, global_batch: int) -> list[tuple[int, int]]:
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
    visits: Sequence[tuple[int, int]],
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    process: int,
    num_processes: int,
) -> list[list[tuple[int, int]]]:
    """The micro-batches of one process.

    Visits are dealt out by length, so that samples padded together are alike and processes finish together; which
    samples a global step holds does not depend on it.

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
