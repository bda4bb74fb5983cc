"""The rollout stage: problems in, one rollout file out; a killed run continues where it was."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from t3d.benchmarks import load_benchmark
from t3d.config import DecodeConfig, RolloutConfig, save_config
from t3d.decoding import DecodingConfig, iter_decode
from t3d.decoding.engine import check_lengths
from t3d.errors import ConfigError, DataError
from t3d.extract import extract
from t3d.files import read_json, write_json_atomic, write_json_list
from t3d.paths import dataset_name, find_data, workspace
from t3d.prompts import build_prompt
from t3d.rollout.fingerprint import model_digest, text_digest
from t3d.rollout.shard import Shard
from t3d.sdar.checkpoint import (
    default_stop_ids,
    load_config,
    load_model,
    load_tokenizer,
    resolve_checkpoint,
)
from t3d.trajectory import Trajectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One response to decode: a problem's prompt and the number of its random stream."""

    item: int
    stream: int
    prompt: str
    prompt_ids: list[int]


def outputs_name(config: DecodeConfig) -> str:
    """`eval-<model>-<dataset>`, with the machine's number in front when several share the problems."""
    evaluation = config.evaluation
    if evaluation.checkpoint_path is None:
        raise ConfigError("evaluation.checkpoint_path", "a model folder or hub id", "null")
    model = Path(evaluation.checkpoint_path.rstrip("/")).name
    name = f"eval-{model}-{dataset_name(evaluation.eval_dataset)}"
    return f"{evaluation.node_index}-{name}" if evaluation.num_node > 1 else name


def project_folder(config: DecodeConfig) -> Path:
    """The folder of a decoding project."""
    return Path(config.experiment.output_dir or workspace() / config.experiment.project)


def rollout_path(config: DecodeConfig) -> Path:
    """Where `rollout` writes."""
    return project_folder(config) / "temp_data" / f"outputs-{outputs_name(config)}.json"


def rollout(config: DecodeConfig) -> Path:
    """Decodes the data set with the checkpoint and returns the rollout file.

    The same settings and seed give the same file, whatever the batching, and after any interruption.  A
    finished file of the same settings is kept; one of other settings is renamed, never lost.

    Raises:
        UserError: a mistake in configuration, data or checkpoint; what is already decoded stays.
    """
    path = rollout_path(config)
    folder = resolve_checkpoint(str(config.evaluation.checkpoint_path))
    model_config, tokenizer = load_config(folder), load_tokenizer(folder)
    first, items = _problems(config)
    requests = list(_requests(first, items, tokenizer, config))
    decoding = decoding_config(config.rollout, folder, tokenizer)
    one_per_problem = [request.prompt_ids for request in requests[:: config.rollout.num_response_per_task]]
    check_lengths(model_config, one_per_problem, decoding)
    fingerprint = _fingerprint(folder, items, requests, decoding, config)
    details = path.with_suffix(".meta.json")
    if config.rollout.resume and path.exists() and _same(details, fingerprint):
        log.info("%s is complete", path)
        return path
    shard = Shard(path.with_suffix(".partial.jsonl"), fingerprint, config.rollout.resume)
    try:
        _decode(requests, folder, decoding, config.rollout, shard)
    finally:
        shard.close()
    _set_aside(path, details)
    write_json_list(path, _records(items, requests, shard.finished, tokenizer, decoding, config))
    save_config(config, path.with_suffix(".config.yaml"))
    source = {
        "dataset": dataset_name(config.evaluation.eval_dataset),
        "checkpoint": config.evaluation.checkpoint_path,
        "problems": len(items),
    }
    write_json_atomic(details, {**source, "fingerprint": fingerprint, "seconds": shard.seconds})
    shard.remove()
    log.info("%d responses: %s", len(requests), path)
    return path


def _fingerprint(
    folder: Path,
    items: Sequence[dict[str, Any]],
    requests: Sequence[Request],
    decoding: DecodingConfig,
    config: DecodeConfig,
) -> dict[str, Any]:
    """What the rollout file depends on."""
    return {
        "model": model_digest(folder),
        "problems": text_digest(items),
        "prompts": text_digest([request.prompt_ids for request in requests]),
        "num_response_per_task": config.rollout.num_response_per_task,
        "step_maps": config.evaluation.output_unmasking_history,
        "dtype": config.rollout.dtype,
        **json.loads(json.dumps(asdict(decoding))),
    }


def decoding_config(settings: RolloutConfig, folder: Path, tokenizer: PreTrainedTokenizerBase) -> DecodingConfig:
    """The decoder's settings: the configuration's, with the model's mask token and stop tokens.

    Raises:
        ConfigError: a stop token that the tokenizer does not have.
    """
    stop_ids = default_stop_ids(folder, tokenizer)
    if settings.stop_token_list is not None:
        stop_ids = tuple(_token_id(token, tokenizer) for token in settings.stop_token_list)
    return DecodingConfig(
        mask_id=load_config(folder).mask_token_id,
        block_size=settings.block_size,
        denoising_steps=settings.denoising_steps_per_block,
        max_new_tokens=settings.max_token,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        remasking_strategy=settings.remasking_strategy,
        dynamic_threshold=settings.dynamic_threshold,
        eb_threshold=settings.eb_threshold,
        stop_ids=stop_ids,
        seed=settings.seed,
    )


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("rollout.device", "a device of this machine", f"{name} ({reason})") from error
    return device


def _problems(config: DecodeConfig) -> tuple[int, list[dict[str, Any]]]:
    """This machine's share of the data set, and the number of its first problem."""
    evaluation = config.evaluation
    items = load_benchmark(find_data(evaluation.eval_dataset), evaluation.data_type, evaluation.limit)
    share = [len(items) * node // evaluation.num_node for node in (evaluation.node_index, evaluation.node_index + 1)]
    if share[0] == share[1]:
        raise ConfigError("evaluation.num_node", f"at most one machine per problem ({len(items)})", evaluation.num_node)
    return share[0], items[share[0] : share[1]]


def _requests(
    first: int, items: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, config: DecodeConfig
) -> Iterator[Request]:
    """Every response to decode; streams are numbered over the whole data set, not this machine's share."""
    responses = config.rollout.num_response_per_task
    for number, item in enumerate(items):
        prompt, ids = build_prompt(tokenizer, item, config.evaluation.data_type, config.rollout.start_with_think)
        for response in range(responses):
            yield Request(number, (first + number) * responses + response, prompt, ids)


def _decode(
    requests: Sequence[Request], folder: Path, decoding: DecodingConfig, settings: RolloutConfig, shard: Shard
) -> None:
    """Decodes what the shard does not hold yet."""
    waiting = [number for number in range(len(requests)) if number not in shard.finished]
    if not waiting:
        return
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model = load_model(folder, dtype).to(pick_device(settings.device))  # type: ignore[arg-type]
    started, before = time.perf_counter(), shard.seconds
    tokens = forwards = 0
    size = settings.batch_size or len(waiting)
    with tqdm(total=len(requests), initial=len(requests) - len(waiting), desc="rollout", unit="response") as progress:
        for start in range(0, len(waiting), size):
            numbers = waiting[start : start + size]
            prompts = [requests[number].prompt_ids for number in numbers]
            streams = [requests[number].stream for number in numbers]
            for place, trajectory in iter_decode(model, prompts, decoding, settings.max_active, streams):
                seconds = time.perf_counter() - started
                shard.add(numbers[place], trajectory, before + seconds)
                tokens, forwards = tokens + len(trajectory.response_ids), forwards + trajectory.num_forwards
                progress.set_postfix(
                    tok_s=f"{tokens / seconds:.0f}", tok_forward=f"{tokens / forwards:.2f}", refresh=False
                )
                progress.update()


def _records(
    items: Sequence[dict[str, Any]],
    requests: Sequence[Request],
    finished: dict[int, Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    decoding: DecodingConfig,
    config: DecodeConfig,
) -> Iterator[dict[str, Any]]:
    """The records of the rollout file (SPEC section 5, CONTRACT)."""
    per_item: list[list[int]] = [[] for _ in items]
    for number, request in enumerate(requests):
        per_item[request.item].append(number)
    for item, numbers in zip(items, per_item, strict=True):
        trajectories = [finished[number] for number in numbers]
        texts = [response_text(trajectory, decoding, tokenizer) for trajectory in trajectories]
        record = {
            **item,
            "prompt": requests[numbers[0]].prompt,
            "prompt_ids": requests[numbers[0]].prompt_ids,
            "full_output": texts,
            "extracted_output": [extract(text, item, config.evaluation.data_type) for text in texts],
            "response_ids": [trajectory.response_ids for trajectory in trajectories],
            "response_length": [len(trajectory.response_ids) for trajectory in trajectories],
            "step_map": [trajectory.step_map for trajectory in trajectories],
            "finish_reason": [trajectory.finish_reason for trajectory in trajectories],
            "num_forwards": [trajectory.num_forwards for trajectory in trajectories],
            "num_steps": [trajectory.num_steps for trajectory in trajectories],
            "block_size": decoding.block_size,
        }
        if not config.evaluation.output_unmasking_history:
            del record["step_map"]
        yield record


def response_text(trajectory: Trajectory, decoding: DecodingConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The response as people read it: without the stop token, other special tokens spelled out."""
    ids = trajectory.response_ids
    if ids[-1] in decoding.stop_ids:
        ids = ids[:-1]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _token_id(token: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    known = tokenizer.get_vocab()
    if type(token) is int and 0 <= token < len(tokenizer):  # a bool is an int to isinstance
        return token
    if isinstance(token, str) and token in known:
        return known[token]
    raise ConfigError("rollout.stop_token_list", "tokens of the model's vocabulary, or their ids", repr(token))


def _same(details: Path, fingerprint: dict[str, Any]) -> bool:
    try:
        return read_json(details)["fingerprint"] == fingerprint
    except (DataError, KeyError, TypeError):
        return False


def _set_aside(path: Path, details: Path) -> None:
    """Renames a finished file of other settings, so that a new run does not destroy it."""
    if not path.exists():
        return
    number = 1
    while (kept := path.with_suffix(f".old-{number}.json")).exists():
        number += 1
    path.rename(kept)
    if details.exists():
        details.rename(kept.with_suffix(".meta.json"))
    log.warning("an earlier rollout of other settings is now %s", kept)
