"""The rollout stage: problems in, one rollout file out; a killed run continues where it was."""

import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from t3d.config import RolloutConfig, SampleConfig, save_config
from t3d.decoding.config import warn_of_threshold
from t3d.errors import ConfigError, DataError, Terminated
from t3d.prompts import prompts_of
from t3d.rollout.job import Job, Request, make_job
from t3d.rollout.pool import Workers
from t3d.rollout.progress import Progress
from t3d.rollout.ranks import Ranks, join_ranks
from t3d.rollout.records import records
from t3d.rollout.shard import Shards
from t3d.rollout.worker import Share, processes_per_device
from t3d.storage.files import (
    iter_json_list,
    read_json,
    remove_temporaries,
    set_aside,
    write_json_atomic,
    write_json_list,
)
from t3d.storage.paths import dataset_name, model_name, user_path, workspace

log = logging.getLogger(__name__)

FEW_PROBLEMS = 8
"""For each process: fewer are not dealt out whole, as the last ones would keep too few processes busy."""


def outputs_name(config: SampleConfig) -> str:
    """`eval-<model>-<dataset>`, with the machine's number in front when several share the problems."""
    evaluation = config.evaluation
    if evaluation.checkpoint_path is None:
        raise ConfigError("evaluation.checkpoint_path", "a model folder or hub id", "null")
    name = f"eval-{model_name(evaluation.checkpoint_path)}-{dataset_name(evaluation.eval_dataset)}"
    return f"{evaluation.node_index}-{name}" if evaluation.num_node > 1 else name


def project_folder(config: SampleConfig) -> Path:
    """The folder of a decoding project."""
    return user_path(config.experiment.output_dir or str(workspace() / user_path(config.experiment.project)))


def rollout_path(config: SampleConfig) -> Path:
    """Where `rollout` writes."""
    return project_folder(config) / "temp_data" / f"outputs-{outputs_name(config)}.json"


def rollout(config: SampleConfig) -> Path:
    """Decodes the data set with the checkpoint and returns the rollout file.

    The file has the release's name, whatever the settings; see `decode_job`.

    Raises:
        UserError: see `make_job` and `decode_job`; or not one response could be decoded, as the file tells.
    """
    path, job = rollout_path(config), make_job(config)
    decode_job(job, path)
    join_ranks().on_first(lambda: _check_decoded(path, len(job.requests)))
    return path


def _check_decoded(path: Path, responses: int) -> None:
    if read_json(path.with_suffix(".meta.json")).get("failed") == responses:
        first = next(iter_json_list(path))["error"][0]
        raise DataError(path, "a response that could be decoded", f"none of {responses} (the first: {first})")


def decode_job(job: Job, path: Path, workers: Workers | None = None) -> None:
    """Decodes a job into the rollout file `path`.

    The same settings and seed give the same file, whatever the batching and the number of processes, and after
    any interruption.  A finished file of the same settings is kept; one of other settings is renamed, never lost.
    In a launch of several processes (torchrun, accelerate) each decodes its part, and each returns once the file
    is whole.

    Args:
        job: what to decode.
        path: the file.
        workers: who decodes, kept for the next job; None: new ones, for this job only.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, a full disk, a worker that died; what is
            already decoded stays, and the same call continues.
    """
    if workers is None:
        with Workers() as workers:
            return decode_job(job, path, workers)
    ranks, settings = join_ranks(), job.config.rollout
    num_workers = count_workers(settings, ranks)
    shards = Shards(path, job.fingerprint)
    waiting = ranks.on_first(lambda: _open(job, shards))
    if waiting is None:
        return
    session = ranks.on_first(lambda: secrets.token_hex(8))
    divided = settings.tensor_parallel_size > 1
    left = [job.requests[number] for number in waiting]
    mine = left if divided else deal(left, ranks.size)[ranks.rank]
    try:
        if divided:  # in step with the others at every layer: none can wait for the rest of them before it fails
            _decode(job, shards, mine, 1, session, ranks, workers)
        else:
            ranks.on_each(lambda: _decode(job, shards, mine, num_workers, session, ranks, workers))
    except (KeyboardInterrupt, Terminated) as stopped:
        kept = f"the finished responses are kept in {path.parent}, the same command goes on from there"
        raise type(stopped)(kept) from None
    ranks.on_first(lambda: _finish(job, shards))


def deal(requests: Sequence[Request], processes: int) -> list[list[Request]]:
    """The requests' parts for so many processes: whole problems in turn, as responses to one share pages of its prompt.

    Where problems are few, responses in turn.
    """
    problems = dict.fromkeys(request.item for request in requests)
    if len(problems) < FEW_PROBLEMS * processes:
        return [list(requests[number::processes]) for number in range(processes)]
    place = {item: number % processes for number, item in enumerate(problems)}
    parts: list[list[Request]] = [[] for _ in range(processes)]
    for request in requests:
        parts[place[request.item]].append(request)
    return parts


def count_workers(settings: RolloutConfig, ranks: Ranks) -> int:
    """How many processes this one is to start: as many as asked for, or as there are GPUs to use.

    Raises:
        ConfigError: several, although a launcher has started several already; or a model divided among another
            number of processes than those of the launch.
    """
    if settings.tensor_parallel_size not in (1, ranks.size):
        expected = f"1, or all processes of the launch (torchrun, accelerate): {ranks.size}"
        raise ConfigError("rollout.tensor_parallel_size", expected, settings.tensor_parallel_size)
    if ranks.size > 1:
        if settings.num_workers > 1:
            expected = f"0 or 1 in a launch of {ranks.size} processes"
            raise ConfigError("rollout.num_workers", expected, settings.num_workers)
        return 1
    gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") else 0
    return settings.num_workers or max(1, gpus)


def _open(job: Job, shards: Shards) -> list[int] | None:
    """The numbers of the requests to decode, or None if the rollout file is complete."""
    warn_of_threshold(job.decoding)
    path = shards.target
    resume = job.config.rollout.resume
    if resume and path.exists() and _same(path.with_suffix(".meta.json"), job.fingerprint):
        with suppress(DataError):  # shards of other settings stay
            shards.read()
            shards.remove()
        log.info("%s is complete", path)
        return None
    if not resume:
        shards.remove()
    shards.read()
    waiting = [request.number for request in job.requests if request.number not in shards]
    if resume and len(waiting) == len(job.requests) and not path.exists():
        _refuse_moved(path, job.fingerprint)
    return waiting


def _refuse_moved(path: Path, fingerprint: dict[str, Any]) -> None:
    """A rollout that its meta file says is finished is not decoded again because its file is elsewhere.

    Raises:
        DataError: that is so.
    """
    details = path.with_suffix(".meta.json")
    if _same(details, fingerprint):
        expected = f"the finished rollout that {details.name} tells of: copy it elsewhere instead of moving it"
        raise DataError(path, f"{expected} (rollout.resume=false decodes it again)", "none there")


def _decode(
    job: Job,
    shards: Shards,
    requests: Sequence[Request],
    num_workers: int,
    session: str,
    ranks: Ranks,
    workers: Workers,
) -> None:
    """Decodes `requests` in this process or, if they are several, in worker processes."""
    num_workers = min(num_workers, len(requests))
    dealt, settings = deal(requests, num_workers), job.config.rollout
    writes = settings.tensor_parallel_size == 1 or ranks.rank == 0
    shares = [
        Share(
            worker=ranks.local_rank + worker,
            requests=dealt[worker],
            model=job.checkpoint.folder,
            model_config=job.checkpoint.config,
            settings=settings,
            decoding=job.decoding,
            shard=shards.path(ranks.rank + worker) if writes else None,
            fingerprint=job.fingerprint,
            session=session,
            sharing=processes_per_device(settings.device, num_workers, ranks),
            student=None if job.student is None else job.student.folder,
            student_config=None if job.student is None else job.student.config,
        )
        for worker in range(num_workers)
    ]
    total = len(job.requests) if ranks.size == 1 else len(requests)  # each of several ranks knows of its own only
    bar = Progress(total, total - len(requests), settings.num_response_per_task, hidden=ranks.rank > 0)
    with bar as progress, logging_redirect_tqdm():
        workers.decode(shares, progress.add)


def _finish(job: Job, shards: Shards) -> None:
    """Merges the shards into the rollout file; killed anywhere in between, a second start ends the same."""
    path, config = shards.target, job.config
    shards.read()
    if missing := sum(request.number not in shards for request in job.requests):
        expected = "every response in the shards beside it (in a folder that all processes see)"
        raise DataError(path, expected, f"{missing} of {len(job.requests)} missing")
    _set_aside(path)
    details = {
        "dataset": dataset_name(config.evaluation.eval_dataset),
        "checkpoint": config.evaluation.checkpoint_path,
        "prompts": prompts_of(config.evaluation.data_type, config.evaluation.prompts),
        "problems": len(job.items),
        "fingerprint": job.fingerprint,
        "seconds": shards.seconds,
        "failed": shards.failed,
    }
    for written in (path, path.with_suffix(".meta.json"), path.with_suffix(".config.yaml")):
        remove_temporaries(written)
    write_json_atomic(path.with_suffix(".meta.json"), details)
    save_config(config, path.with_suffix(".config.yaml"))
    write_json_list(path, records(job, shards))
    shards.remove()
    log.info("%d responses, %d of them failed: %s", len(job.requests), shards.failed, path)


def _same(details: Path, fingerprint: dict[str, Any]) -> bool:
    try:
        return read_json(details)["fingerprint"] == fingerprint
    except (DataError, KeyError, TypeError):
        return False


def _set_aside(path: Path) -> None:
    """Renames a finished file of other settings, so that a new run does not destroy it."""
    if path.exists():
        stem = path.with_suffix("")
        # The file itself last: until then, it is found again.
        age = set_aside([(stem, ending) for ending in (".meta.json", ".config.yaml", ".json")])
        log.warning("an earlier rollout of other settings is now %s", path.with_suffix(f".{age}.json"))
