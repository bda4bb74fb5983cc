"""What an evaluation reads: a rollout file, what was recorded beside it, and what its model was trained on."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t3d.config import EvalConfig
from t3d.data.benchmarks import load_benchmark
from t3d.errors import ConfigError, DataError
from t3d.evaluation.results import UNKNOWN_DECODING, Decoding
from t3d.prompts import prompts_of
from t3d.storage.experiments import recorded, run_config
from t3d.storage.fields import read_fields
from t3d.storage.files import json_kind, read_json
from t3d.storage.paths import find_data


@dataclass(frozen=True)
class Details:
    """What is known of how a rollout file was made; None: not recorded.

    Attributes:
        dataset: the data set's name.
        checkpoint: the model, as it was named.
        problems: number of records.
        seconds: decoding time of all of them.
        decoding: how they were decoded.
        prompts: wordings of their prompts in place of the built-in ones.
    """

    dataset: str | None = None
    checkpoint: str | None = None
    problems: int | None = None
    seconds: float | None = None
    decoding: Decoding = UNKNOWN_DECODING
    prompts: dict[str, str] | None = None


@dataclass(frozen=True)
class _Recorded:
    """What of `Details` lies in a file of this version."""

    dataset: str
    checkpoint: str
    problems: int
    seconds: float
    fingerprint: Decoding
    prompts: dict[str, str] | None = None


def read_gradable(path: Path, data_type: str, limit: int | None) -> list[dict[str, Any]]:
    """Reads a rollout file for grading: dataset records with at least one response each.

    Steps and ids are not looked at, so that files of other programs can be graded too.

    Raises:
        DataError: the file or a record is unusable; file, record and field are named.
    """
    records = load_benchmark(path, data_type, limit)
    for index, record in enumerate(records):
        _check_responses(record, f"{path}, record {index}")
    return records


def read_details(path: Path) -> Details:
    """Reads the `.meta.json` that stage 1 writes beside a rollout file; without one, nothing is known.

    Raises:
        DataError: it lacks a field of this version, or is another file.
    """
    details = path.with_suffix(".meta.json")
    if not details.exists():
        return Details()
    try:
        told = read_fields(_Recorded, read_json(details), details)
    except DataError as error:
        expected = f"{error.expected} (without the file, rollouts are graded too)"
        raise DataError(error.where, expected, error.found) from error
    return Details(told.dataset, told.checkpoint, told.problems, told.seconds, told.fingerprint, told.prompts)


def with_recorded_prompts(config: EvalConfig, details: Details, path: Path) -> EvalConfig:
    """The configuration with the wordings that a given rollout file was decoded with, as results record them.

    Raises:
        ConfigError: it asks for others.
    """
    asked = prompts_of(config.evaluation.data_type, config.evaluation.prompts)
    if details.prompts is None or asked == details.prompts:
        return config
    if asked:
        raise ConfigError("evaluation.prompts", f"those that {path} was decoded with: {details.prompts}", asked)
    return replace(config, evaluation=replace(config.evaluation, prompts=details.prompts))


def other_wording(config: EvalConfig) -> str | None:
    """What the checkpoint was trained to be asked and is not, in a line; None if nothing tells.

    Raises:
        DataError: see `run_config`.
    """
    evaluation = config.evaluation
    found = None if evaluation.checkpoint_path is None else run_config(evaluation.checkpoint_path)
    then = None if found is None else recorded(found[1], "dataset.prompts")
    if found is None or recorded(found[1], "dataset.data_type") != evaluation.data_type or not isinstance(then, dict):
        return None
    trained, asked = prompts_of(evaluation.data_type, then), prompts_of(evaluation.data_type, evaluation.prompts)
    if trained == asked:
        return None
    return f"evaluation.prompts is {asked or 'empty'}, and {found[0]} says that it was trained with {trained or 'none'}"


def check_same_problems(records: list[dict[str, Any]], path: Path, config: EvalConfig) -> bool:
    """Checks that a given rollout file answers problems of `evaluation.eval_dataset`, each no more than once.

    Returns:
        Whether they could be compared: the data set's file need not be here.

    Raises:
        DataError: a problem that is not the data set's, or repeated; the first is named.
    """
    try:
        dataset = find_data(config.evaluation.eval_dataset)
    except DataError:
        return False
    left = Counter(item["question"] for item in load_benchmark(dataset, config.evaluation.data_type))
    for index, record in enumerate(records):
        if not left[record["question"]]:
            expected = f"a problem of evaluation.eval_dataset ({dataset}), once"
            raise DataError(f"{path}, record {index}, field question", expected, repr(record["question"][:60]))
        left[record["question"]] -= 1
    return True


def training_data(checkpoint: str | None) -> str | None:
    """Names the data that a checkpoint of this project was trained on, as its run's config.yaml tells.

    Raises:
        DataError: that file is there and is no configuration.
    """
    found = None if checkpoint is None else run_config(checkpoint)
    name = None if found is None else recorded(found[1], "dataset.optimization_data")
    return None if name is None else str(name)


def _check_responses(record: dict[str, Any], where: str) -> None:
    """Checks what grading and metrics use: the texts, and of `_ENTRIES` what the record has."""
    texts = record.get("full_output")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        found = "an empty list" if texts == [] else json_kind(texts)
        raise DataError(f"{where}, field full_output", "a list of responses", found)
    for field, (expected, is_valid) in _ENTRIES.items():
        values = record.get(field, [None] * len(texts))
        if not isinstance(values, list) or len(values) != len(texts):
            found = f"{len(values)}" if isinstance(values, list) else json_kind(values)
            raise DataError(f"{where}, field {field}", f"a list of {len(texts)}, one per response", found)
        if wrong := [value for value in values if field in record and not is_valid(value)]:
            raise DataError(f"{where}, field {field}", expected, repr(wrong[0]))
    if not isinstance(record.get("prompt_ids", []), list):
        raise DataError(f"{where}, field prompt_ids", "a list of token ids", json_kind(record["prompt_ids"]))
    if not _is_count(record.get("block_size", 1)):
        raise DataError(f"{where}, field block_size", "a whole number", repr(record["block_size"]))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int to isinstance


_ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("response_length", "num_steps", "num_forwards", "num_draft_forwards"),
        ("whole numbers of at least 0", _is_count),
    ),
    "finish_reason": ("strings", lambda value: isinstance(value, str)),
    "error": ("strings or nulls", lambda value: value is None or isinstance(value, str)),
}
