"""The records of a rollout file: the data set's fields, and per response text, ids, step map and counts."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d.decoding import DecodingConfig
from t3d.grading.extract import extract
from t3d.rollout.job import Job, Request
from t3d.rollout.shard import Shards
from t3d.trajectory import Trajectory


def records(job: Job, shards: Shards) -> Iterator[dict[str, Any]]:
    """Yields a record per problem; one problem's trajectories are in memory at a time."""
    responses = job.config.rollout.num_response_per_task
    for place, item in enumerate(job.items):
        requests = job.requests[place * responses : (place + 1) * responses]
        yield _record(item, requests[0], [shards[request.number] for request in requests], job)


def _record(item: dict[str, Any], request: Request, trajectories: list[Trajectory], job: Job) -> dict[str, Any]:
    texts = [response_text(trajectory, job.decoding, job.checkpoint.tokenizer) for trajectory in trajectories]
    record = {
        **item,
        "prompt": request.prompt,
        "prompt_ids": request.prompt_ids,
        "full_output": texts,
        "extracted_output": [
            extract(text, item, job.config.evaluation.data_type, job.config.execute.code_block) for text in texts
        ],
        "response_ids": [trajectory.response_ids for trajectory in trajectories],
        "response_length": [len(trajectory.response_ids) for trajectory in trajectories],
        "step_map": [trajectory.step_map for trajectory in trajectories],
        "finish_reason": [trajectory.finish_reason for trajectory in trajectories],
        "num_forwards": [trajectory.num_forwards for trajectory in trajectories],
        "num_steps": [trajectory.num_steps for trajectory in trajectories],
        "block_size": job.decoding.block_size,
    }
    if not job.config.evaluation.output_unmasking_history:
        del record["step_map"]
    if any(trajectory.error is not None for trajectory in trajectories):
        record["error"] = [trajectory.error for trajectory in trajectories]
    recorded = job.config.rollout.record
    if "logprob" in recorded:
        record["logprob"] = [trajectory.logprobs or [] for trajectory in trajectories]
    if "entropy" in recorded:
        record["entropy"] = [trajectory.entropies or [] for trajectory in trajectories]
    return record


def response_text(trajectory: Trajectory, decoding: DecodingConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The response as people read it: without the stop token, other special tokens spelled out."""
    ids = trajectory.response_ids
    if trajectory.finish_reason == "stop":
        ids = ids[:-1]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
