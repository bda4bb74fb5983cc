"""The factorisation meter of a checkpoint: samples of its own, decoded one token per step, and their gaps.

See `t3d.decoding.factorisation` for what a gap is.  Nothing is graded, and no answer is read.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from t3d.config import SampleConfig
from t3d.config.validation import budget_name
from t3d.decoding.factorisation import Gap, Pair, gaps, joined
from t3d.devices import pick_device, room
from t3d.errors import ConfigError, DataError
from t3d.evaluation.environment import versions
from t3d.rollout.job import Job, make_job
from t3d.rollout.ranks import join_ranks
from t3d.rollout.run import decode_job
from t3d.sdar.checkpoint import load_decoder
from t3d.storage.fields import read_fields
from t3d.storage.files import read_json, write_json_atomic
from t3d.storage.fingerprint import text_digest
from t3d.storage.folders import make_folder
from t3d.trajectory import failures, read_rollouts, record_trajectories

VERSIONED = ("t3d", "torch", "transformers")


@dataclass(frozen=True)
class Measured:
    """The gaps of one checkpoint at one block size.

    Attributes:
        model: digest of its folder.
        gaps: block size/steps -> a gap for each problem, of its responses together; one without a token where they
            failed.
    """

    model: str
    gaps: dict[str, list[Gap]]


def sampling(config: SampleConfig) -> SampleConfig:
    """The same problems and model, decoded as the meter samples: a token per step, temperature 1, nothing cut off."""
    rollout = replace(
        config.rollout,
        denoising_steps_per_block=config.rollout.block_size,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        remasking_strategy="sequential",
        record=[],
    )
    evaluation = replace(config.evaluation, output_unmasking_history=True)
    return replace(config, rollout=rollout, evaluation=evaluation)


def measure(config: SampleConfig, few: Sequence[int], folder: Path) -> Measured:
    """Samples from a checkpoint and scores the samples, or takes what an earlier call with the same content found.

    In a launch of several processes, or with `rollout.num_workers`, samples are shared out; one process scores them.

    Args:
        config: model and problems; of the decoding, block size, length, stop tokens, seed and batching count.
        few: numbers of denoising steps per block.
        folder: keeps samples and figures, under digests of what they depend on; a killed call goes on from there.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, or not one response that could be decoded.
    """
    config = sampling(config)
    for name, value in (
        ("evaluation.num_node", config.evaluation.num_node),
        ("rollout.tensor_parallel_size", config.rollout.tensor_parallel_size),
    ):
        if value > 1:
            raise ConfigError(name, "1 for the meter, which scores on one device", value)
    job = make_job(config)
    samples, ranks = text_digest(job.fingerprint), join_ranks()
    kept = folder / f"gaps-{text_digest([samples, list(few), versions(VERSIONED)])}.json"
    if not ranks.on_first(kept.exists):
        rollouts = make_folder(folder) / f"outputs-{samples}.json"
        decode_job(job, rollouts)
        ranks.on_first(lambda: write_json_atomic(kept, asdict(_score(job, few, rollouts)), indent=None))
    return ranks.on_first(lambda: read_fields(Measured, read_json(kept), kept))


def _score(job: Job, few: Sequence[int], rollouts: Path) -> Measured:
    """The gaps of decoded samples."""
    pairs, owners = _pairs(rollouts)
    settings, checkpoint = job.config.rollout, job.checkpoint
    with room("rollout.device", "memory for the model's weights"):
        model = load_decoder(checkpoint.folder, settings.dtype, pick_device(settings.device), config=checkpoint.config)
    total = (1 + len(few)) * len(pairs)
    with tqdm(total=total, desc="score", unit="response") as progress:
        found = gaps(
            model, pairs, checkpoint.mask_id, settings.block_size, few, settings.max_active, report=progress.update
        )
    by_problem: dict[str, list[Gap]] = {}
    for steps, scored in found.items():
        own: list[list[Gap]] = [[] for _ in job.items]
        for owner, gap in zip(owners, scored, strict=True):
            own[owner].append(gap)
        by_problem[budget_name([settings.block_size, steps])] = [joined(each) for each in own]
    return Measured(str(job.fingerprint["model"]), by_problem)


def _pairs(rollouts: Path) -> tuple[list[Pair], list[int]]:
    """The samples of a rollout file, and each one's problem.

    Raises:
        DataError: all have failed.
    """
    pairs, owners = [], []
    reason = "none"
    for index, record in read_rollouts(rollouts):
        without = failures(record)
        reason = record["error"][without[0]] if without else reason
        for sample in record_trajectories(record, f"{rollouts}, record {index}", without=without):
            pairs.append((sample.prompt_ids, sample.response_ids))
            owners.append(index)
    if not pairs:
        raise DataError(rollouts, "a response that could be decoded", reason)
    return pairs, owners
