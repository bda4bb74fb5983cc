"""Validation while training: the student as it is decodes held-out problems, and is graded as an evaluation grades.

It decodes in a copy of its weights, in the precision that checkpoints are stored in, so that the figures are those of
`eval.py` with the checkpoint of that step.  Of the training the weights alone are touched, and they are read: no mode,
hook, gradient or random stream.  With several processes each has such a copy, decodes its share of the problems, and
gives the memory back; where ZeRO-3 or FSDP2 divides the weights, they are gathered one after the other into every
copy.
"""

import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import gather_object
from torch import nn

from t3d.config import ExecuteConfig, RolloutConfig, SampleConfig, TrainConfig
from t3d.config.schema import ProblemsConfig
from t3d.config.validation import MEAN, budget_name
from t3d.data.benchmarks import known_bad
from t3d.decoding import iter_decode
from t3d.decoding.limits import prompt_error
from t3d.devices import give_back, room
from t3d.errors import ConfigError, DeviceFullError
from t3d.evaluation.grade import grade, left_out
from t3d.evaluation.metrics import metrics
from t3d.grading.isolation import find_sandbox
from t3d.rollout.job import Job, decoding_config, iter_requests, machine_share
from t3d.rollout.ranks import Ranks, join_ranks
from t3d.rollout.records import records
from t3d.rollout.worker import processes_per_device
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.decoding_layers import pack_layers
from t3d.sdar.modeling import SDARForCausalLM
from t3d.sdar.opening import Checkpoint
from t3d.sdar.weights import empty_network
from t3d.training.lora import copy_weights
from t3d.training.metrics import METRICS, SCORE, read_metrics
from t3d.trajectory import Trajectory

log = logging.getLogger(__name__)

Found = TypeVar("Found")

Decoded = dict[int, Trajectory]
"""A decoding's trajectories, by the number of their request."""


@dataclass(frozen=True)
class Validated:
    """What one validation found.

    Attributes:
        metrics: `SCORE` and, of each decoding, accuracy, its standard error and tokens per forward; seconds.
        is_best: whether the score is above every earlier one of the run.
    """

    metrics: dict[str, float]
    is_best: bool


class Validation:
    """The held-out problems of a run, ready to be decoded; every process of the launch has one."""

    def __init__(self, config: TrainConfig, checkpoint: Checkpoint) -> None:
        """Reads the problems and builds their prompts, so that mistakes show before training starts.

        Raises:
            UserError: no such file, a bad record (named), no prompt that fits the model, or no sandbox for programs.
        """
        self.settings, self.data_type = config.validation, config.dataset.data_type
        if self.data_type == "code":
            find_sandbox(ExecuteConfig.sandbox)
        self.jobs = [held_out_job(asked, checkpoint) for asked in sample_configs(config)]

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the student is validated behind this global step: every so many, and behind the last one."""
        return step % self.settings.every == 0 or step == num_steps

    def run(self, student: nn.Module, device: torch.device, log_folder: Path) -> Validated:
        """Decodes and grades; all processes call it together, and all get the same answer.

        Args:
            student: the network without what accelerate wraps it in; its weights may be divided.
            device: of this process.
            log_folder: the run's, whose metrics hold the scores of earlier validations.

        Raises:
            DeviceFullError: no memory for a copy of the weights.
            UserError: no memory for a single sequence beside it, or no grader that works.
        """
        started, ranks = time.perf_counter(), join_ranks()
        shape = self.jobs[0].checkpoint.config
        found = on_copy(student, shape, device, "validation.every", partial(self._decode, ranks=ranks))
        result = ranks.on_first(lambda: self._judge(found, log_folder))
        result.metrics["validation/seconds"] = time.perf_counter() - started
        return result

    def _decode(self, network: SDARForCausalLM, ranks: Ranks) -> list[Decoded]:
        """What all processes together decode, by the decodings."""
        sharing, found = processes_per_device("auto", 1, ranks), []
        for job in self.jobs:
            mine: Decoded = {}
            ranks.on_each(partial(decode_own, network, job, ranks, sharing, mine))
            found.append(dict(gather_object(list(mine.items()))))
        return found

    def _judge(self, found: Sequence[Decoded], log_folder: Path) -> Validated:
        """Grades every decoding, and compares the score with those of the run so far."""
        named: dict[str, float] = {}
        accuracies = {}
        for job, decoded in zip(self.jobs, found, strict=True):
            name = budget_name([job.decoding.block_size, job.decoding.denoising_steps])
            figures = _figures(job, decoded, self.data_type)
            accuracies[name] = figures["acc"]
            named |= {f"validation/{figure}_{name}": value for figure, value in figures.items()}
        mean = sum(accuracies.values()) / len(accuracies)
        score = mean if self.settings.select == MEAN else accuracies[self.settings.select]
        earlier = [line[SCORE] for line in read_metrics(log_folder / METRICS) if line.get(SCORE) is not None]
        is_best = math.isfinite(score) and all(score > before for before in earlier)
        each = ", ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
        best = ", the best so far" if is_best else ""
        log.info("validation on %d problems: %s%s", len(self.jobs[0].items), each, best)
        return Validated({SCORE: score, **named}, is_best)


def sample_configs(config: TrainConfig) -> list[SampleConfig]:
    """How the held-out problems are decoded: a configuration, as the rollout has it, for each of the decodings."""
    settings, dataset = config.validation, config.dataset
    problems = ProblemsConfig(
        checkpoint_path=config.model.pretrained_model,
        eval_dataset=str(settings.dataset),
        data_type=dataset.data_type,
        prompt_style=dataset.prompt_style,
        prompts=dataset.prompts,
        limit=settings.limit,
    )
    rollouts = [
        RolloutConfig(
            block_size=block_size,
            denoising_steps_per_block=steps,
            max_token=settings.max_token or config.training.max_gen_length,
            temperature=settings.temperature,
            max_active=settings.max_active,
        )
        for block_size, steps in settings.decodings
    ]
    return [SampleConfig(rollout=rollout, evaluation=problems) for rollout in rollouts]


def on_copy(
    student: nn.Module,
    shape: SDARConfig,
    device: torch.device,
    asked_by: str,
    measure: Callable[[SDARForCausalLM], Found],
) -> Found:
    """What `measure` finds with a `decoding_copy` of the student, whose memory is given back.

    All processes call it together.

    Args:
        student: the network that is trained.
        shape: of it, with the precision that its checkpoints are stored in.
        device: of this process.
        asked_by: the key that asks for this.
        measure: gets the copy, and keeps nothing of it.

    Raises:
        DeviceFullError: no memory for the copy.
    """
    give_back(device)
    # Nothing here draws from torch's own streams; whatever may do so one day leaves them as they were.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with room(asked_by, "memory for a copy of the student beside what trains (0: never)", DeviceFullError):
            network = decoding_copy(student, shape, device)
        found = measure(network)
    del network
    gc.collect()
    give_back(device)
    return found


@torch.no_grad()
def decoding_copy(student: nn.Module, shape: SDARConfig, device: torch.device) -> SDARForCausalLM:
    """The student's weights as a checkpoint would hold them, an adapter merged, in a network that only decodes.

    All processes call it together: divided weights are gathered one at a time.

    Args:
        student: the network that is trained.
        shape: of it, with the precision that its checkpoints are stored in.
        device: where to.
    """
    network = empty_network(shape).to(shape.dtype or torch.float32)  # type: ignore[arg-type]
    network.to_empty(device=device).tie_weights()
    for ours, theirs in zip(network.buffers(), student.buffers(), strict=True):
        ours.copy_(theirs)
    copy_weights(network, student)
    pack_layers(network)
    return network.requires_grad_(False).eval()


def held_out_job(asked: SampleConfig, checkpoint: Checkpoint) -> Job:
    """The problems under one decoding.

    Raises:
        UserError: see `Validation`.
    """
    first, items = machine_share(asked)
    items = [known_bad([item]).get(0, item) for item in items]
    requests = list(iter_requests(first, items, checkpoint.tokenizer, asked))
    decoding = decoding_config(asked.rollout, checkpoint)
    errors = [error for one in requests if (error := prompt_error(checkpoint.config, one.prompt_ids, decoding))]
    if len(errors) == len(requests):
        raise ConfigError("validation.max_token", "a problem that fits the model", errors[0])
    return Job(asked, checkpoint, items, requests, decoding, {})


def decode_own(network: SDARForCausalLM, job: Job, ranks: Ranks, sharing: int, decoded: Decoded) -> None:
    """Adds this process's part of a decoding to `decoded`."""
    mine = job.requests[ranks.rank :: ranks.size]
    prompts, streams = [request.prompt_ids for request in mine], [request.stream for request in mine]
    width = job.config.rollout.max_active
    for place, trajectory in iter_decode(network, prompts, job.decoding, width, streams, sharing=sharing):
        decoded[mine[place].number] = trajectory


def _figures(job: Job, decoded: Decoded, data_type: str) -> dict[str, float]:
    """Accuracy, its standard error and tokens per forward; a response without a grade counts in none of them."""
    graded = grade(list(records(job, decoded)), data_type, ExecuteConfig(math_verify=False))
    missing = left_out(graded)
    if missing:
        text = "validation: %d of %d responses have no grade and do not count: problem %d, %s, ..."
        log.warning(text, len(missing), len(decoded), missing[0].record, missing[0].reason)
    if len(missing) == len(decoded):
        return {"acc": math.nan, "stderr": math.nan, "tokens_per_forward": math.nan}
    figures = metrics(graded, None)
    return {"acc": figures.acc, "stderr": figures.stderr, "tokens_per_forward": figures.tokens_per_forward or math.nan}
