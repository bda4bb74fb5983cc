"""A rollout file as a data set on the hub: our JSON, and Parquet with the same records."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from t3d.cards.data import PARQUET, data_card
from t3d.cards.results import CardResult
from t3d.errors import DataError
from t3d.hub.private import check_text, check_values
from t3d.hub.upload import Upload
from t3d.storage.paths import existing_path, model_name
from t3d.trajectory import failures, noted_beside, read_rollouts, record_trajectories

ROWS = 500
"""Records per row group: few enough for the hub's viewer, at 2000 tokens a response."""

_TEXTS, _INTEGERS = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.int32())
COLUMNS: dict[str, pyarrow.DataType] = {
    "prompt": pyarrow.string(),
    "prompt_ids": _INTEGERS,
    "full_output": _TEXTS,
    "answer": _TEXTS,
    "extracted_output": _TEXTS,
    "response_ids": pyarrow.list_(_INTEGERS),
    "response_length": _INTEGERS,
    "step_map": pyarrow.list_(_INTEGERS),
    "finish_reason": _TEXTS,
    "num_forwards": _INTEGERS,
    "num_draft_forwards": _INTEGERS,
    "num_steps": _INTEGERS,
    "block_size": pyarrow.int32(),
    "error": _TEXTS,
    "logprob": pyarrow.list_(pyarrow.list_(pyarrow.float32())),
    "entropy": pyarrow.list_(pyarrow.list_(pyarrow.float32())),
    "correctness": pyarrow.list_(pyarrow.bool_()),
}
"""Fields that this project writes.  Those of the data set have the type of their values."""

SETTINGS = {
    "block_size": "block size",
    "denoising_steps": "steps per block",
    "remasking_strategy": "strategy",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "dynamic_threshold": "threshold of low_confidence_dynamic",
    "max_new_tokens": "most tokens",
    "seed": "seed",
    "draft": "drafted by",
}
"""What stage 1 notes beside a rollout file of its decoding, and what it is called."""

WORDS = (
    *("question", "prompt", "full_output", "answer", "extracted_output", "ground_truth_answer"),
    *("test_list", "test_input", "test_output", "prefix"),
)
"""Fields of problems and answers, in which a path is part of the problem."""


def rollouts_upload(
    path: str, repository: str, results: Sequence[CardResult], license_id: str | None, scratch: Path
) -> Upload:
    """Checks a rollout file, and writes it as Parquet.

    Args:
        path: the file.
        repository: where it goes.
        results: evaluations of these rollouts.
        license_id: as the hub spells it; None if unknown.
        scratch: a folder for the Parquet file.

    Raises:
        DataError: an invalid record (named), or one with a path of this machine outside problems and answers.
    """
    source = existing_path(path)
    records, responses, others = _checked(source)
    types, as_json = _column_types(others)
    table = scratch / Path(PARQUET).name
    _write_parquet(source, table, types, as_json)
    settings = {**_settings(source), "problems": records, "responses": responses}
    files: dict[str, Path | bytes] = {PARQUET: table, source.name: source}
    card = data_card(repository, source.name, records, responses, settings, license_id, results, as_json)
    check_text(card, "the data set's card")
    return Upload(repository, "dataset", card, files)


def _checked(source: Path) -> tuple[int, int, dict[str, list[Any]]]:
    """Checks all records; returns how many there are, and responses, and the values of the data set's own fields."""
    records = responses = 0
    others: dict[str, list[Any]] = {}
    for index, record in read_rollouts(source):
        where = f"{source}, record {index}"
        if "response_ids" in record:
            record_trajectories(record, where, without=failures(record))
        for name, value in record.items():
            if name not in WORDS and (name not in COLUMNS or name == "error"):
                check_values(value, f"{where}, field {name}")
            if name not in COLUMNS:
                others.setdefault(name, []).append(value)
        records, responses = records + 1, responses + len(record["step_map"])
    if not records:
        raise DataError(source, "at least one record", "an empty list")
    return records, responses, others


def _column_types(others: Mapping[str, list[Any]]) -> tuple[dict[str, pyarrow.DataType], list[str]]:
    """The types of the data set's own fields, and those that become JSON text because their values have no one type."""
    types, as_json = {}, []
    for name, values in others.items():
        try:
            types[name] = pyarrow.array(values).type
        except (pyarrow.ArrowException, OverflowError):
            types[name] = pyarrow.string()
            as_json.append(name)
    return types, as_json


def _write_parquet(source: Path, target: Path, others: Mapping[str, pyarrow.DataType], as_json: Sequence[str]) -> None:
    """Writes the records in groups of `ROWS`: memory does not grow with their number."""
    used = {name for _, record in read_rollouts(source) for name in record}
    types = {name: kind for name, kind in {**others, **COLUMNS}.items() if name in used}
    with parquet.ParquetWriter(target, pyarrow.schema(list(types.items())), compression="zstd") as writer:
        for rows in _groups(source):
            columns = {name: [_cell(row.get(name), name in as_json) for _, row in rows] for name in types}
            try:
                table = pyarrow.table({name: pyarrow.array(columns[name], types[name]) for name in types})
            except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
                where = f"{source}, records {rows[0][0]} to {rows[-1][0]}"
                raise DataError(where, "fields of the types that rollouts have", error) from error
            writer.write_table(table)


def _groups(source: Path) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    records = read_rollouts(source)
    return iter(lambda: list(islice(records, ROWS)), [])


def _cell(value: Any, as_json: bool) -> Any:
    return json.dumps(value, ensure_ascii=False) if as_json and value is not None else value


def _settings(source: Path) -> dict[str, Any]:
    """What is noted beside the file of model and decoding, without any path."""
    known = noted_beside(source)
    told = {name: known.get(field) for field, name in SETTINGS.items()}
    model = known.get("checkpoint")
    return {"model": None if model is None else _public_name(str(model)), **told}


def _public_name(model: str) -> str:
    """A hub id as it is; of a folder its own name."""
    return model if model.count("/") == 1 and not existing_path(model).exists() else model_name(model)
