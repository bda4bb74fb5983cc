"""One evaluation: rollouts -> extracted answers -> grades -> results."""

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t3d.benchmarks import load_benchmark, repair_known_bad
from t3d.config import DecodeConfig, ExecuteConfig
from t3d.errors import DataError
from t3d.evaluation.code_grader import Program, grade_code_many
from t3d.evaluation.math_grader import grade_math_many
from t3d.evaluation.metrics import metrics
from t3d.extract import extract
from t3d.files import atomic_writer, json_kind, read_json, write_json_atomic, write_json_list
from t3d.folders import make_folder
from t3d.paths import dataset_name
from t3d.rollout import rollout
from t3d.rollout.run import outputs_name, project_folder

log = logging.getLogger(__name__)

PACKAGES = ("t3d", "torch", "transformers", "math-verify")


def evaluate(config: DecodeConfig) -> dict[str, Any]:
    """Decodes (or takes `evaluation.rollouts`), grades, writes the results, and returns them.

    Raises:
        UserError: a mistake in configuration, data or checkpoint.
    """
    given = config.evaluation.rollouts
    path = rollout(config) if given is None else Path(given)
    name = outputs_name(config) if given is None else path.stem.removeprefix("outputs-")
    details = _details(path)
    records = _records(path, config.evaluation.data_type, None if given is None else config.evaluation.limit)
    records, repaired = repair_known_bad(records, enabled=True)
    graded = grade(records, config.evaluation.data_type, config.execute)
    correct = [value for record in graded for value in record["correctness"]]
    results = {
        "dataset": details.get("dataset", dataset_name(config.evaluation.eval_dataset)),
        "checkpoint": details.get("checkpoint", config.evaluation.checkpoint_path),
        "rollouts": str(path),
        **_decoding(config, details),
        **metrics(correct, records, details.get("seconds") if len(records) == details.get("problems") else None),
        "repaired_records": repaired,
        "ungraded": sum(reason != "graded" for record in graded for reason in record["grading"]),
        "environment": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "config": asdict(config),
    }
    folder = make_folder(project_folder(config) / "results")
    write_json_list(folder / f"graded-{name}.json", graded)
    write_json_atomic(folder / f"results-{name}.json", results)
    with atomic_writer(folder / f"results-{name}.txt") as file:
        file.write(summary(results) + "\n")
    log.info("%s", summary(results))
    return results


def grade(records: Sequence[dict[str, Any]], data_type: str, execute: ExecuteConfig) -> list[dict[str, Any]]:
    """The records with `extracted_output`, `correctness` and `grading`, one entry per response.

    `grading` is "graded", "timeout" or "error".
    """
    answers = [[extract(text, record, data_type) for text in record["full_output"]] for record in records]
    flat = [(answer, record) for record, texts in zip(records, answers, strict=True) for answer in texts]
    grades: list[tuple[bool, str, Any]] = []
    with tqdm(total=len(flat), desc="grade", unit="answer") as progress:
        for start in range(0, len(flat), execute.num_chunk * 16):
            part = flat[start : start + execute.num_chunk * 16]
            grades += _GRADERS[data_type](part, execute)
            progress.update(len(part))
    graded, place = [], 0
    for record, texts in zip(records, answers, strict=True):
        mine = grades[place : place + len(texts)]
        place += len(texts)
        extra = {"execution_result": [result for _, _, result in mine]} if data_type == "code" else {}
        graded.append(
            {
                **record,
                "extracted_output": texts,
                "correctness": [correct for correct, _, _ in mine],
                "grading": [status for _, status, _ in mine],
                **extra,
            }
        )
    return graded


def summary(results: dict[str, Any]) -> str:
    """One line of figures, as the release prints them."""
    avg_steps, per_step = (
        "unknown" if results[name] is None else f"{results[name]:.{digits}f}"
        for name, digits in (("avg_steps", 1), ("tokens_per_step", 2))
    )
    return (
        f"{results['dataset']} {results['checkpoint'] or results['rollouts']}: acc {100 * results['acc']:.2f}"
        f" +- {100 * results['stderr']:.2f} (n = {results['n']}), avg len {results['avg_len']:.1f},"
        f" avg steps {avg_steps}, tokens/step {per_step}"
    )


def _grade_math(part: Sequence[tuple[str, dict]], execute: ExecuteConfig) -> list[tuple[bool, str, Any]]:
    pairs = [(answer, record["ground_truth_answer"]) for answer, record in part]
    results = grade_math_many(pairs, num_workers=execute.num_workers, timeout_s=execute.timeout_s)
    return [(result.correct, result.status, None) for result in results]


def _grade_option(part: Sequence[tuple[str, dict]], execute: ExecuteConfig) -> list[tuple[bool, str, Any]]:
    del execute
    return [(answer == record["ground_truth_answer"].strip().upper(), "graded", None) for answer, record in part]


def _grade_code(part: Sequence[tuple[str, dict]], execute: ExecuteConfig) -> list[tuple[bool, str, Any]]:
    programs = [
        Program(answer, record["test_time_limit"], tests=record["test_list"])
        if record["test_method"] == "function"
        else Program(answer, record["test_time_limit"], inputs=record["test_input"], outputs=record["test_output"])
        for answer, record in part
    ]
    verdicts = grade_code_many(programs, num_workers=execute.num_workers, sandbox=execute.sandbox)
    return [
        (
            all(verdict.passed for verdict in per_test),
            "error" if any(verdict.status == "error" for verdict in per_test) else "graded",
            [verdict.status for verdict in per_test],
        )
        for per_test in verdicts
    ]


_GRADERS = {"math": _grade_math, "option": _grade_option, "code": _grade_code}


def _records(path: Path, data_type: str, limit: int | None) -> list[dict[str, Any]]:
    """The rollout file's records: those of a data set, with at least one response each."""
    records = load_benchmark(path, data_type, limit)
    for index, record in enumerate(records):
        texts = record.get("full_output")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            found = "an empty list" if texts == [] else json_kind(texts)
            raise DataError(f"{path}, record {index}, field full_output", "a list of responses", found)
    return records


def _details(path: Path) -> dict[str, Any]:
    details = path.with_suffix(".meta.json")
    return read_json(details) if details.exists() else {}


def _decoding(config: DecodeConfig, details: dict[str, Any]) -> dict[str, Any]:
    """The settings that made the rollouts: those recorded beside the file, else the configuration's."""
    recorded = details.get("fingerprint")
    if recorded is not None:
        names = (
            "block_size",
            "denoising_steps",
            "temperature",
            "top_k",
            "top_p",
            "remasking_strategy",
            "seed",
        )
        return {name: recorded[name] for name in (*names, "dynamic_threshold", "max_new_tokens")}
    rollout_config = asdict(config.rollout)
    return {
        "block_size": rollout_config["block_size"],
        "denoising_steps": rollout_config["denoising_steps_per_block"],
    }
