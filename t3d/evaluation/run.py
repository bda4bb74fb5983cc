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
from t3d.evaluation.records import check_same_problems, read_details, read_rollouts, training_data
from t3d.evaluation.results import BadRecord, KnownBad, LeftOut, Results, write_results
from t3d.rollout import rollout
from t3d.rollout.ranks import join_ranks
from t3d.rollout.run import outputs_name, project_folder
from t3d.storage.files import atomic_writer, write_json_list
from t3d.storage.folders import make_folder
from t3d.storage.paths import dataset_name, user_path

log = logging.getLogger(__name__)


def evaluate(config: DecodeConfig) -> Results:
    """Decodes (or takes `evaluation.rollouts`), grades, writes the results, and returns them.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, or not one response that could be graded.
    """
    given = config.evaluation.rollouts
    path = rollout(config) if given is None else user_path(given)
    return join_ranks().on_first(lambda: _evaluate(config, path))


def _evaluate(config: DecodeConfig, path: Path) -> Results:
    """Grades the rollout file and writes the results."""
    evaluation, details = config.evaluation, read_details(path)
    dataset = details.dataset or dataset_name(evaluation.eval_dataset)
    checkpoint = details.checkpoint or evaluation.checkpoint_path
    leakage = _leakage(checkpoint, dataset)
    records = _records(config, path)
    bad = known_bad(records)
    if evaluation.repair_known_bad:
        records = [bad.get(index, record) for index, record in enumerate(records)]
    graded = grade(records, evaluation.data_type, config.execute)
    without = _left_out(graded, path)
    named = [BadRecord(index, record["question"].split("\n")[0]) for index, record in bad.items()]
    results = Results(
        dataset=dataset,
        checkpoint=checkpoint,
        decoding=details.decoding,
        metrics=metrics(graded, details.seconds if len(records) == details.problems else None),
        environment=environment(),
        config=asdict(config),
        rollouts=str(path),
        left_out=without,
        known_bad=KnownBad(evaluation.repair_known_bad, named),
        leakage=leakage,
    )
    _write(results, graded, project_folder(config) / "results", results_name(config))
    return results


def results_name(config: DecodeConfig) -> str:
    """What the files of an evaluation are called, behind `results-` and `graded-`."""
    given = config.evaluation.rollouts
    return outputs_name(config) if given is None else Path(given).stem.removeprefix("outputs-")


def _records(config: DecodeConfig, path: Path) -> list[dict[str, Any]]:
    """The rollout file's records; of a given file the first `evaluation.limit`, checked against the data set."""
    evaluation, is_given = config.evaluation, config.evaluation.rollouts is not None
    records = read_rollouts(path, evaluation.data_type, evaluation.limit if is_given else None)
    if is_given and not check_same_problems(records, path, config):
        log.info("not compared with %s, which is not here: the problems of %s", evaluation.eval_dataset, path)
    return records


def _left_out(graded: list[dict[str, Any]], path: Path) -> list[LeftOut]:
    """The responses of a rollout file that have no grade.

    Raises:
        DataError: not one response has a grade.
    """
    found = left_out(graded)
    if len(found) == sum(len(record["correctness"]) for record in graded):
        reason = f"none of {len(found)} (the first: {found[0].reason})"
        raise DataError(path, "at least one response that can be graded", reason)
    return found


def summary(results: Results) -> str:
    """One line of figures, as the release prints them."""
    figures = results.metrics
    avg_len, avg_steps, per_step = (
        "unknown" if value is None else f"{value:.{digits}f}"
        for value, digits in ((figures.avg_len, 1), (figures.avg_steps, 1), (figures.tokens_per_step, 2))
    )
    return (
        f"{results.dataset} {results.model}: acc {100 * figures.acc:.2f} +- {100 * figures.stderr:.2f}"
        f" (n = {figures.n}), avg len {avg_len}, avg steps {avg_steps}, tokens/step {per_step}"
    )


def _write(results: Results, graded: list[dict[str, Any]], folder: Path, name: str) -> None:
    """Writes grades, results and the line of figures, each whole or not at all, and says what is odd about them."""
    make_folder(folder)
    write_json_list(folder / f"graded-{name}.json", graded)
    write_results(folder / f"results-{name}.json", results)
    with atomic_writer(folder / f"results-{name}.txt") as file:
        file.write(summary(results) + "\n")
    log.info("%s", summary(results))
    _warn(results)


def _warn(results: Results) -> None:
    """Says what is odd about the results."""
    if results.left_out:
        first, count = results.left_out[0], len(results.left_out)
        place = f"record {first.record}, response {first.response}, {first.reason}"
        log.warning(
            "%d of %d responses have no grade and do not count: %s, ...", count, results.metrics.responses, place
        )
    for status in ("timeout", "crashed"):
        if count := results.metrics.grading.get(status, 0):
            log.warning("%d answers count as wrong because comparing them ended in: %s", count, status)
    for bad in results.known_bad.records:
        state = "mended" if results.known_bad.repaired else "left as published, nothing can pass it"
        log.warning("record %d tests something else than the solution (%s): %s", bad.record, state, bad.question)
    if results.leakage:
        log.warning("%s", results.leakage)


def _leakage(checkpoint: str | None, dataset: str) -> str | None:
    """What is wrong with evaluating this checkpoint on this data set, if anything is known to be."""
    source = training_data(checkpoint)
    return None if source is None else leakage_warning(source, dataset)
