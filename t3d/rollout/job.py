"""What a rollout decodes: the requests, the decoder's settings, and the fingerprint of all that decides the file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d.config import RolloutConfig, SampleConfig
from t3d.data.benchmarks import load_benchmark
from t3d.decoding import DecodingConfig
from t3d.errors import ConfigError
from t3d.prompts import build_prompt
from t3d.sdar.checkpoint import default_stop_ids
from t3d.sdar.opening import Checkpoint, open_checkpoint
from t3d.storage.fingerprint import model_digest, text_digest
from t3d.storage.paths import find_data


@dataclass(frozen=True)
class Request:
    """One response to decode.

    Attributes:
        number: its place in the rollout file, over all problems' responses.
        item: its problem's place.
        stream: its random stream, numbered over the whole data set, not this machine's share.
        prompt: what the model is asked.
        prompt_ids: the same as token ids.
    """

    number: int
    item: int
    stream: int
    prompt: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class Job:
    """A rollout's input, read and checked; every process of a launch builds the same one.

    Attributes:
        config: the settings.
        checkpoint: the model.
        items: this machine's problems.
        requests: every response to decode, by number.
        decoding: the decoder's settings.
        fingerprint: what the rollout file depends on, and nothing else.
    """

    config: SampleConfig
    checkpoint: Checkpoint
    items: list[dict[str, Any]]
    requests: list[Request]
    decoding: DecodingConfig
    fingerprint: dict[str, Any]


def make_job(config: SampleConfig) -> Job:
    """Reads the problems and the tokenizer, and builds every prompt.

    Raises:
        UserError: a mistake in configuration, data or checkpoint.
    """
    checkpoint = open_checkpoint(str(config.evaluation.checkpoint_path), config.rollout.block_size)
    first, items = machine_share(config)
    requests = list(iter_requests(first, items, checkpoint.tokenizer, config))
    decoding = decoding_config(config.rollout, checkpoint)
    fingerprint = {
        "model": model_digest(checkpoint.folder),
        "problems": text_digest(items),
        "prompts": text_digest([request.prompt_ids for request in requests]),
        "prompt_style": config.evaluation.prompt_style,
        "num_response_per_task": config.rollout.num_response_per_task,
        "step_maps": config.evaluation.output_unmasking_history,
        "dtype": config.rollout.dtype,
        "compile": config.rollout.compile,
        **json.loads(json.dumps(asdict(decoding))),
    }
    return Job(config, checkpoint, items, requests, decoding, fingerprint)


def decoding_config(settings: RolloutConfig, checkpoint: Checkpoint) -> DecodingConfig:
    """The decoder's settings: the configuration's, with the model's mask token and stop tokens.

    Raises:
        ConfigError: a stop token that the tokenizer does not have.
    """
    stop_ids = default_stop_ids(checkpoint.folder, checkpoint.tokenizer)
    if settings.stop_token_list is not None:
        stop_ids = tuple(_token_id(token, checkpoint.tokenizer) for token in settings.stop_token_list)
    return DecodingConfig(
        mask_id=checkpoint.mask_id,
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
        confidence=settings.confidence,
        record=tuple(settings.record),
    )


def machine_share(config: SampleConfig) -> tuple[int, list[dict[str, Any]]]:
    """The number of this machine's first problem, and its share of the data set.

    Raises:
        UserError: no such file, a bad record (named), or more machines than problems.
    """
    evaluation = config.evaluation
    items = load_benchmark(find_data(evaluation.eval_dataset), evaluation.data_type, evaluation.limit)
    share = [len(items) * node // evaluation.num_node for node in (evaluation.node_index, evaluation.node_index + 1)]
    if share[0] == share[1]:
        raise ConfigError("evaluation.num_node", f"at most one machine per problem ({len(items)})", evaluation.num_node)
    return share[0], items[share[0] : share[1]]


def prompt_of(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase, config: SampleConfig) -> tuple[str, list[int]]:
    """What the model is asked about a problem, as text and as token ids."""
    evaluation = config.evaluation
    return build_prompt(
        tokenizer,
        item,
        evaluation.data_type,
        config.rollout.start_with_think,
        evaluation.prompt_style,
        evaluation.prompts,
    )


def iter_requests(
    first: int, items: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, config: SampleConfig
) -> Iterator[Request]:
    """Yields every response to decode, by number.

    Args:
        first: number of the first problem in its data set.
        items: the problems.
        tokenizer: of the model.
        config: how many responses, and how problems are asked.
    """
    responses = config.rollout.num_response_per_task
    for place, item in enumerate(items):
        prompt, ids = prompt_of(item, tokenizer, config)
        for number in range(place * responses, (place + 1) * responses):
            yield Request(number, place, first * responses + number, prompt, ids)


def _token_id(token: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    known = tokenizer.get_vocab()
    if type(token) is int and 0 <= token < len(tokenizer):  # a bool is an int to isinstance
        return token
    if isinstance(token, str) and token in known:
        return known[token]
    raise ConfigError("rollout.stop_token_list", "tokens of the model's vocabulary, or their ids", repr(token))
