"""The records of a rollout file: the data set's fields, and per response text, ids, step map and counts."""

from collections.abc import Iterator, Mapping
from typing import Any

from t3d.grading.extract import extract
from t3d.rollout.job import Job, Request
from t3d.rollout.shard import Shards
from t3d.trajectory import Trajectory, response_text, rollout_record


def records(job: Job, found: Shards | Mapping[int, Trajectory]) -> Iterator[dict[str, Any]]:
    """Yields a record per problem, of the trajectories by request; of those in shards, one problem's are in memory."""
    responses = job.config.rollout.num_response_per_task
    for place, item in enumerate(job.items):
        requests = job.requests[place * responses : (place + 1) * responses]
        yield _record(item, requests[0], [found[request.number] for request in requests], job)


def _record(item: dict[str, Any], request: Request, trajectories: list[Trajectory], job: Job) -> dict[str, Any]:
    config = job.config
    texts = [response_text(trajectory, job.checkpoint.tokenizer) for trajectory in trajectories]
    answers = [extract(text, item, config.evaluation.data_type, config.execute.code_block) for text in texts]
    prompt = request.prompt, request.prompt_ids
    record = rollout_record(item, prompt, trajectories, texts, answers, job.decoding.block_size, config.rollout.record)
    if not config.evaluation.output_unmasking_history:
        del record["step_map"]
    return record
