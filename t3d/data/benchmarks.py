"""The data sets: where they live, what their records hold, and what is known to be wrong with them."""

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3d.errors import ConfigError, DataError
from t3d.grading.options import LETTERS
from t3d.prompts import DATA_TYPES, TEST_METHODS, check_text
from t3d.storage.files import iter_json_list, json_kind
from t3d.storage.paths import dataset_name


@dataclass(frozen=True)
class Dataset:
    """One data set of the paper.

    Attributes:
        name: as in `evaluation.eval_dataset`; the local file is `data/<name>.json`.
        data_type: "math", "code" or "option".
        repo_id: its dataset repository on the Hugging Face hub; None if this project generates it.
        file_name: the file inside that repository.
    """

    name: str
    data_type: str
    repo_id: str | None = None
    file_name: str | None = None


def _hosted(name: str, data_type: str, split: str) -> Dataset:
    return Dataset(name, data_type, f"Gen-Verse/{name}", f"{split}/{name}.json")


DATASETS = {
    dataset.name: dataset
    for dataset in (
        _hosted("MATH_train", "math", "train"),
        _hosted("PrimeIntellect", "code", "train"),
        _hosted("MATH500", "math", "test"),
        _hosted("GSM8K", "math", "test"),
        _hosted("MBPP", "code", "test"),
        _hosted("HumanEval", "code", "test"),
        Dataset("TinyMath", "math"),
    )
}

_MATH_TEST_NAMES = ("MATH", "MATH_test")
ID_FIELDS = ("id", "task_id", "unique_id")
"""Fields that name a record, where a file has them: no two records share a value."""


def load_benchmark(path: Path, data_type: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Reads a dataset file and checks every record of it, those past `limit` too.

    Math and option records hold `question` and `ground_truth_answer` (an option's is a letter, A to D). Code
    records hold `question`, `test_time_limit` (seconds) and `test_method`: "function" with `test_list`
    (programs that assert) and an optional `prefix`, or "stdio" with `test_input` and `test_output` (texts,
    pairwise). Any may hold `family`, a text or whole number: problems of one family count together in errors and
    tests. Other keys are kept; `ID_FIELDS` must not repeat. (Questions may: the published MATH_train asks one of
    its problems twice.)

    Args:
        path: a JSON list of records, or JSON Lines.
        data_type: "math", "code" or "option".
        limit: how many records to return, from the first; None for all.

    Returns:
        The records. An answer given as a JSON number is returned as its text.

    Raises:
        ConfigError: an unknown `data_type`, or `limit` below 1.
        DataError: the file or a record is unusable; names file, record (from 0) and field.
    """
    if data_type not in DATA_TYPES:
        raise ConfigError("evaluation.data_type", " or ".join(DATA_TYPES), repr(data_type))
    if limit is not None and limit < 1:
        raise ConfigError("evaluation.limit", "a whole number of at least 1", limit)
    records = list(iter_json_list(path))
    if not records:
        raise DataError(path, "at least one record", "an empty list")
    items = [_checked_item(record, data_type, f"{path}, record {i}") for i, record in enumerate(records)]
    _check_ids_unique(items, path)
    return items[:limit]


def leakage_warning(train_name: str, eval_name: str | None = None) -> str | None:
    """Words a warning if evaluating after training on `train_name` measures memory.

    Args:
        train_name: a data set or a rollout file such as "SDAR-4B-Chat-MATH_train_renamed", by name or path.
        eval_name: the data set evaluated on; None, while training, for any.

    Returns:
        One line for the log, or None if no overlap is known.
    """
    train_name = dataset_name(train_name)
    source = train_name.removesuffix("_renamed").rpartition("-")[2]
    if source == eval_name:
        return f"{eval_name} is what {train_name} was made from: the model was trained on these problems"
    if source == "MATH_train" and eval_name in (None, *_MATH_TEST_NAMES):
        return (
            f"{train_name}: 2936 of the 8523 problems of MATH_train are in the MATH test split: a model trained "
            "on them cannot be evaluated on it (MATH500 shares no problem with MATH_train)"
        )
    return None


def known_bad(items: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Finds records that no solution can pass, and mends them.

    Two records of MBPP (task ids 56 and 349) ask for a function called `check` and test it with a program
    that defines a `check` of its own, which then calls itself in the solution's place. Mended, the program's
    function has another name. Scores comparable with the paper's need the records as published.

    Args:
        items: dataset records; left as they are.

    Returns:
        A mended copy of each such record, by index.
    """
    mended = {}
    for index, item in enumerate(items):
        programs = item.get("test_list", [])
        repaired = [_rename_shadowing_check(program) for program in programs]
        if repaired != programs:
            mended[index] = {**item, "test_list": repaired}
    return mended


def _rename_shadowing_check(program: str) -> str:
    """Renames the program's `check` if it means to call the solution's: it calls `check` and not its argument."""
    if not re.search(r"^def check\(", program, re.MULTILINE):
        return program
    try:
        statements = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError):
        return program
    checks = [s for s in statements if isinstance(s, ast.FunctionDef) and s.name == "check"]
    arguments = {argument.arg for check in checks for argument in check.args.args}
    names = {node.id for check in checks for node in ast.walk(check) if isinstance(node, ast.Name)}
    if "check" not in names or names & arguments:
        return program
    new_name = "run_checks"
    while new_name in program:
        new_name += "_"
    lines = program.split("\n")
    for statement in (*checks, *(s for s in statements if ast.unparse(s).startswith("check("))):
        lines[statement.lineno - 1] = lines[statement.lineno - 1].replace("check", new_name, 1)
    return "\n".join(lines)


def _checked_item(record: object, data_type: str, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(where, "an object", json_kind(record))
    question = f"{where}, field question"
    if not check_text(_field(record, "question", where), question).strip():
        raise DataError(question, "a problem", "none: an empty text")
    record = _with_family(record, where)
    if data_type == "code":
        _check_code(record, where)
        return record
    return {**record, "ground_truth_answer": (_option if data_type == "option" else _answer)(record, where)}


def _with_family(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record, its family, if it has one, a text."""
    family = record.get("family")
    if family is None:
        return {name: value for name, value in record.items() if name != "family"}
    return {**record, "family": str(family) if type(family) is int else check_text(family, f"{where}, field family")}


def _check_code(record: dict[str, Any], where: str) -> None:
    time_limit = _field(record, "test_time_limit", where)
    if not _is_number(time_limit) or not 0 < time_limit < math.inf:
        raise DataError(f"{where}, field test_time_limit", "a number of seconds above 0", repr(time_limit))
    method = _field(record, "test_method", where)
    if method not in TEST_METHODS:
        raise DataError(f"{where}, field test_method", " or ".join(TEST_METHODS), repr(method))
    if method == "function":
        _check_texts(record, "test_list", where)
        if record.get("prefix") is not None:
            check_text(record["prefix"], f"{where}, field prefix")
        return
    num_inputs = _check_texts(record, "test_input", where)
    num_outputs = _check_texts(record, "test_output", where)
    if num_inputs != num_outputs:
        raise DataError(f"{where}, field test_output", f"{num_inputs} texts, one per test_input", num_outputs)


def _check_texts(record: dict[str, Any], field: str, where: str) -> int:
    """Checks a field that lists texts and returns how many there are."""
    values = _field(record, field, where)
    if not isinstance(values, list) or not values:
        found = "an empty list" if values == [] else json_kind(values)
        raise DataError(f"{where}, field {field}", "a list of at least one string", found)
    for position, value in enumerate(values):
        check_text(value, f"{where}, field {field}, entry {position}")
    return len(values)


def _answer(record: dict[str, Any], where: str) -> str:
    """Returns the true answer as text; a number counts if its text is the one that the file shows."""
    value = _field(record, "ground_truth_answer", where)
    if _is_number(value) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", repr(value)):
        return repr(value)
    if _is_number(value):
        expected = "a string, or a number that is finite and not in exponent notation"
        raise DataError(f"{where}, field ground_truth_answer", expected, repr(value))
    # It may be empty: the published MATH_train has such a record, which trains as well as any.
    return check_text(value, f"{where}, field ground_truth_answer")


def _option(record: dict[str, Any], where: str) -> str:
    value = _field(record, "ground_truth_answer", where)
    if value not in LETTERS:
        raise DataError(f"{where}, field ground_truth_answer", f"one of {', '.join(LETTERS)}", repr(value))
    return str(value)


def _field(record: dict[str, Any], field: str, where: str) -> Any:
    if field not in record:
        raise DataError(f"{where}, field {field}", "the field", "nothing")
    return record[field]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_ids_unique(items: list[dict[str, Any]], path: Path) -> None:
    first_seen: dict[tuple[str, str | int], int] = {}
    for index, item in enumerate(items):
        for field in ID_FIELDS:
            if item.get(field) is None:
                continue
            where, value = f"{path}, record {index}, field {field}", item[field]
            if not isinstance(value, str | int):
                raise DataError(where, "a string or a whole number", json_kind(value))
            first = first_seen.setdefault((field, value), index)
            if first != index:
                raise DataError(where, "an id of its own", f"{value!r}, the id of record {first}")
