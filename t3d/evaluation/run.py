"""One evaluation: rollouts -> extracted answers -> grades -> results."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t3d.config import DecodeConfig
from t3d.data.benchmarks import known_bad, leakage_warning
from t3d.errors import DataError
from t3d.evaluation.environment import environment
from t3d.evaluation.grade import grade, left_out
from t3d.evaluation.metrics import metrics
from t3d.evaluation.records import DECODING, check_same_problems, read_details, read_rollouts, training_data
from t3d.rollout import rollout
from t3d.rollout.ranks import join_ranks
from t3d.rollout.run import outputs_name, project_folder
from t3d.storage.files import atomic_writer, write_json_atomic, write_json_list
from t3d.storage.folders import make_folder
from t3d.storage.paths import dataset_name, user_path

log = logging.getLogger(__name__)


def evaluate(config: DecodeConfig) -> dict[str, Any]:
    """Decodes (or takes `evaluation.rollouts`), grades, writes the results, and returns them.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, or not one response that could be graded.
    """
    given = config.evaluation.rollouts
    path = rollout(config) if given is None else user_path(given)
    return join_ranks().on_first(lambda: _evaluate(config, path))


def _evaluate(config: DecodeConfig, path: Path) -> dict[str, Any]:
    """Grades the rollout file and writes the results."""
    evaluation, given = config.evaluation, config.evaluation.rollouts
    name = outputs_name(config) if given is None else path.stem.removeprefix("outputs-")
    details = read_details(path)
    records = read_rollouts(path, evaluation.data_type, None if given is None else evaluation.limit)
    if given is not None and not check_same_problems(records, path, config):
        log.info("not compared with %s, which is not here: the problems of %s", evaluation.eval_dataset, path)
    dataset = details.dataset or dataset_name(evaluation.eval_dataset)
    checkpoint = details.checkpoint or evaluation.checkpoint_path
    leakage = _leakage(checkpoint, dataset)
    mended = known_bad(records)
    if evaluation.repair_known_bad:
        records = [mended.get(index, record) for index, record in enumerate(records)]
    graded = grade(records, evaluation.data_type, config.execute)
    results = {
        "dataset": dataset,
        "checkpoint": checkpoint,
        "rollouts": str(path),
        **(details.decoding or dict.fromkeys(DECODING)),
        **metrics(graded, details.seconds if len(records) == details.problems else None),
        "left_out": left_out(graded),
        "known_bad": {"repaired": evaluation.repair_known_bad, "records": _named(mended)},
        "leakage": leakage,
        "environment": environment(),
        "config": asdict(config),
    }
    if not results["n"]:
        first = results["left_out"][0]
        found = f"none of {results['responses']} (the first: {first['reason']})"
        raise DataError(path, "at least one response that can be graded", found)
    _write(results, graded, project_folder(config) / "results", name)
    return results


def summary(results: dict[str, Any]) -> str:
    """One line of figures, as the release prints them."""
    avg_len, avg_steps, per_step = (
        "unknown" if results[name] is None else f"{results[name]:.{digits}f}"
        for name, digits in (("avg_len", 1), ("avg_steps", 1), ("tokens_per_step", 2))
    )
    return (
        f"{results['dataset']} {results['checkpoint'] or results['rollouts']}: acc {100 * results['acc']:.2f}"
        f" +- {100 * results['stderr']:.2f} (n = {results['n']}), avg len {avg_len},"
        f" avg steps {avg_steps}, tokens/step {per_step}"
    )


def _write(results: dict[str, Any], graded: list[dict[str, Any]], folder: Path, name: str) -> None:
    """Writes grades, results and the line of figures, each whole or not at all, and says what is odd about them."""
    make_folder(folder)
    write_json_list(folder / f"graded-{name}.json", graded)
    write_json_atomic(folder / f"results-{name}.json", results)
    with atomic_writer(folder / f"results-{name}.txt") as file:
        file.write(summary(results) + "\n")
    log.info("%s", summary(results))
    if results["left_out"]:
        first, count = results["left_out"][0], len(results["left_out"])
        place = f"record {first['record']}, response {first['response']}, {first['reason']}"
        log.warning("%d of %d responses have no grade and do not count: %s, ...", count, results["responses"], place)
    for status in ("timeout", "crashed"):
        if count := results["grading"].get(status, 0):
            log.warning("%d answers count as wrong because comparing them ended in: %s", count, status)
    for bad in results["known_bad"]["records"]:
        state = "mended" if results["known_bad"]["repaired"] else "left as published, nothing can pass it"
        log.warning("record %d tests something else than the solution (%s): %s", bad["record"], state, bad["question"])
    if results["leakage"]:
        log.warning("%s", results["leakage"])


def _named(records: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"record": index, "question": record["question"].split("\n")[0]} for index, record in records.items()]


def _leakage(checkpoint: str | None, dataset: str) -> str | None:
    """What is wrong with evaluating this checkpoint on this data set, if anything is known to be."""
    source = training_data(checkpoint)
    return None if source is None else leakage_warning(source, dataset)
