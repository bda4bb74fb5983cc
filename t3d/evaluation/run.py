"""One evaluation: rollouts -> extracted answers -> grades -> results."""

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from t3d.config import EvalConfig
from t3d.data.benchmarks import known_bad, leakage_warning
from t3d.errors import DataError
from t3d.evaluation.environment import environment
from t3d.evaluation.grade import acc_math_verify, disagreements, grade, left_out
from t3d.evaluation.metrics import metrics
from t3d.evaluation.names import decoded_name, given_name, graded_name
from t3d.evaluation.records import (
    Details,
    check_same_problems,
    other_wording,
    read_details,
    read_gradable,
    training_data,
    with_recorded_prompts,
)
from t3d.evaluation.results import BadRecord, KnownBad, LeftOut, Results, read_results, write_results
from t3d.rollout.job import make_job
from t3d.rollout.pool import Workers
from t3d.rollout.ranks import join_ranks
from t3d.rollout.run import decode_job, project_folder
from t3d.storage.experiments import newest_checkpoint
from t3d.storage.files import atomic_writer, set_aside, write_json_list
from t3d.storage.folders import make_folder
from t3d.storage.paths import dataset_name, existing_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on disk.

    Attributes:
        results: what it found.
        path: the results file, `results-<name>.json`; the graded records lie beside it in `graded-<name>.json`.
    """

    results: Results
    path: Path


def evaluate(config: EvalConfig, workers: Workers | None = None) -> Evaluation:
    """Decodes (or takes `evaluation.rollouts`), grades, and writes the results.

    What differs in model, problems, decoding or grading has files of its own (`t3d.evaluation.names`).  The same
    evaluation again finds its rollouts decoded and is graded alone.

    Args:
        config: the settings.
        workers: see `decode_job`.

    Raises:
        UserError: a mistake in configuration, data or checkpoint, or not one response that could be graded.
    """
    given = config.evaluation.rollouts
    if given is not None:
        return join_ranks().on_first(lambda: _evaluate_given(config, existing_path(given)))
    config = at_newest_run(config)
    if warning := other_wording(config):
        log.warning("%s", warning)
    job = make_job(config)
    name = decoded_name(config, job.fingerprint)
    rollouts = project_folder(config) / "temp_data" / f"outputs-{name}.json"
    decode_job(job, rollouts, workers)
    return join_ranks().on_first(lambda: _evaluate_decoded(config, rollouts, name))


def at_newest_run(config: EvalConfig) -> EvalConfig:
    """The configuration with the folder that its checkpoint is in, where it names that of a method."""
    asked = config.evaluation.checkpoint_path
    if asked is None or (found := newest_checkpoint(asked)) == asked:
        return config
    log.info("%s: the newest finished run is %s", asked, found)
    return replace(config, evaluation=replace(config.evaluation, checkpoint_path=found))


def _evaluate_given(config: EvalConfig, path: Path) -> Evaluation:
    """Grades a rollout file that the configuration names, of any origin."""
    evaluation = config.evaluation
    source = _source(config, path)
    config = with_recorded_prompts(config, source.details, path)
    records = read_gradable(path, evaluation.data_type, evaluation.limit)
    if not check_same_problems(records, path, config):
        log.info("not compared with %s, which is not here: the problems of %s", evaluation.eval_dataset, path)
    name = given_name(config, path, source.dataset, source.checkpoint)
    return _evaluate(config, source, records, name)


def _evaluate_decoded(config: EvalConfig, path: Path, name: str) -> Evaluation:
    """Grades the rollout file that was decoded for this evaluation."""
    return _evaluate(config, _source(config, path), read_gradable(path, config.evaluation.data_type, None), name)


@dataclass(frozen=True)
class _Source:
    """A rollout file and what is known of it: as recorded beside it or, where nothing is, as the configuration says."""

    path: Path
    details: Details
    dataset: str
    checkpoint: str | None
    leakage: str | None


def _source(config: EvalConfig, path: Path) -> _Source:
    details = read_details(path)
    dataset = details.dataset or dataset_name(config.evaluation.eval_dataset)
    checkpoint = details.checkpoint or config.evaluation.checkpoint_path
    return _Source(path, details, dataset, checkpoint, _leakage(checkpoint, dataset))


def _evaluate(config: EvalConfig, source: _Source, records: list[dict[str, Any]], name: str) -> Evaluation:
    """Grades the records and writes the results under `name`, marked where grading is not as usual."""
    evaluation, details = config.evaluation, source.details
    bad = known_bad(records)
    if evaluation.repair_known_bad:
        records = [bad.get(index, record) for index, record in enumerate(records)]
    graded = grade(records, evaluation.data_type, config.execute)
    without = _left_out(graded, source.path)
    blank = [index for index, record in enumerate(records) if not str(record.get("ground_truth_answer", "-")).strip()]
    if blank:
        told = f"{len(blank)} of {len(records)} problems have"
        log.warning("%s an empty true answer, and count as wrong: record %d, ...", told, blank[0])
    named = [BadRecord(index, record["question"].split("\n")[0]) for index, record in bad.items()]
    results = Results(
        dataset=source.dataset,
        checkpoint=source.checkpoint,
        decoding=details.decoding,
        metrics=metrics(graded, details.seconds if len(records) == details.problems else None),
        environment=environment(),
        config=asdict(config),
        rollouts=str(source.path),
        left_out=without,
        known_bad=KnownBad(evaluation.repair_known_bad, named),
        leakage=source.leakage,
        acc_math_verify=acc_math_verify(graded),
        disagreements=disagreements(graded),
    )
    return Evaluation(results, _write(results, graded, project_folder(config) / "results", graded_name(name, config)))


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


def _write(results: Results, graded: list[dict[str, Any]], folder: Path, name: str) -> Path:
    """Writes grades, results and the line of figures, each whole or not at all, and says what is odd about them."""
    make_folder(folder)
    path = folder / f"results-{name}.json"
    _keep_others(results, path)
    write_json_list(folder / f"graded-{name}.json", graded)
    write_results(path, results)
    with atomic_writer(folder / f"results-{name}.txt") as file:
        file.write(summary(results) + "\n")
    log.info("%s", summary(results))
    log.info("%s", path)
    _warn(results)
    return path


def _keep_others(results: Results, path: Path) -> None:
    """Renames results of the same evaluation with other figures: another version's, or of grading cut short."""
    if not path.exists():
        return
    with suppress(DataError):  # what cannot be read is kept too
        if read_results(path).metrics == results.metrics:
            return
    graded = path.with_name(path.name.replace("results-", "graded-", 1))
    stem = path.with_suffix("")
    age = set_aside([(graded.with_suffix(""), ".json"), (stem, ".txt"), (stem, ".json")])
    log.warning("earlier results of this evaluation, with other figures, are now %s", path.with_suffix(f".{age}.json"))


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
