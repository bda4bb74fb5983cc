"""The factorisation meter while training: what few steps cost the student as it is, on prompts of the validation.

See `t3d.decoding.factorisation`.  The samples of a step are those that `t3d meter` takes from its checkpoint, and the
figures are the same; as in a validation, nothing of the training is touched.
"""

import logging
import time
from functools import partial

import torch
from accelerate.utils import gather_object
from torch import nn

from t3d.config import SampleConfig, TrainConfig
from t3d.config.validation import budget_name
from t3d.decoding.factorisation import Factorisation, Gap, gaps, mean_gap
from t3d.evaluation.meter import sampling
from t3d.rollout.job import Job
from t3d.rollout.ranks import Ranks, join_ranks
from t3d.rollout.worker import processes_per_device
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.opening import Checkpoint
from t3d.training.metrics import GAP
from t3d.training.validation import Decoded, decode_own, held_out_job, on_copy, sample_configs

log = logging.getLogger(__name__)

Scored = list[tuple[int, dict[int, Gap]]]
"""Number of a sample, and its gap by the number of steps."""


class Meter:
    """The held-out prompts of a run, ready to be sampled from; every process of the launch has one."""

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint) -> None:
        """Reads the problems and builds their prompts, so that mistakes show before training starts.

        Raises:
            UserError: no such file, a bad record (named), or no prompt that fits the model.
        """
        self.every = config.training.meter_every
        few: dict[int, list[int]] = {}
        asked: dict[int, SampleConfig] = {}
        for one in sample_configs(config):
            size, steps = one.rollout.block_size, one.rollout.denoising_steps_per_block
            if steps < size:
                few.setdefault(size, []).append(steps)
                asked.setdefault(size, sampling(one))
        self.parts = [(held_out_job(asked[size], checkpoint), few[size]) for size in few]

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the student is measured behind this global step: every so many, and behind the last one."""
        return step % self.every == 0 or step == num_steps

    def run(self, student: nn.Module, device: torch.device) -> dict[str, float]:
        """The figures of each decoding of fewer steps than positions; all processes call it together.

        Args:
            student: the network without what accelerate wraps it in; its weights may be divided (ZeRO-3, FSDP2).
            device: of this process.

        Raises:
            DeviceFullError: no memory for a copy of the weights.
            UserError: no memory for a single sequence beside it.
        """
        started, ranks = time.perf_counter(), join_ranks()
        shape = self.parts[0][0].checkpoint.config
        found = on_copy(student, shape, device, "training.meter_every", partial(self._measure, ranks=ranks))
        each = ", ".join(f"{name} {figures.nats_per_block:.3f}" for name, figures in found.items())
        if ranks.rank == 0:
            log.info("factorisation gap, nats per block: %s", each)
        named: dict[str, float] = {}
        for name, figures in found.items():
            named[f"{GAP}_{name}"] = figures.nats_per_block
            named[f"meter/stderr_{name}"] = figures.stderr
            named[f"meter/nats_per_token_{name}"] = figures.nats_per_token
            named[f"meter/entropy_per_block_{name}"] = figures.entropy_per_block
        return {**named, "meter/seconds": time.perf_counter() - started}

    def _measure(self, network: SDARForCausalLM, ranks: Ranks) -> dict[str, Factorisation]:
        """What all processes together find, by the decodings."""
        sharing, found = processes_per_device("auto", 1, ranks), {}
        for job, few in self.parts:
            mine: Scored = []
            ranks.on_each(partial(_score_share, network, job, few, ranks, sharing, mine))
            scored = [each for _, each in sorted(gather_object(mine), key=lambda entry: entry[0])]
            if failed := len(job.requests) - len(scored):
                log.warning("meter: %d of %d samples failed and do not count", failed, len(job.requests))
            for steps in few:
                figures = mean_gap([each[steps] for each in scored])
                found[budget_name([job.decoding.block_size, steps])] = figures
        return found


def _score_share(
    network: SDARForCausalLM, job: Job, few: list[int], ranks: Ranks, sharing: int, scored: Scored
) -> None:
    """Adds the gaps of this process's part of the samples to `scored`."""
    decoded: Decoded = {}
    decode_own(network, job, ranks, sharing, decoded)
    numbers = [number for number, sample in decoded.items() if sample.error is None]
    pairs = [(decoded[number].prompt_ids, decoded[number].response_ids) for number in numbers]
    size, width = job.decoding.block_size, job.config.rollout.max_active
    found = gaps(network, pairs, job.decoding.mask_id, size, few, width)
    scored += [(number, {steps: found[steps][place] for steps in few}) for place, number in enumerate(numbers)]
