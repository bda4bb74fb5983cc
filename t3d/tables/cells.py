"""The cells of a table: what each one evaluates, and its results, kept by the content they depend on."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from t3d.config import EvalConfig, TableConfig
from t3d.data.benchmarks import DATASETS, load_benchmark
from t3d.errors import CheckpointError, ConfigError, DataError
from t3d.evaluation.environment import versions
from t3d.evaluation.results import Results, from_json, to_json
from t3d.evaluation.run import Evaluation, evaluate
from t3d.rollout.pool import Workers
from t3d.rollout.ranks import join_ranks
from t3d.sdar.checkpoint import load_model_config, resolve_checkpoint
from t3d.storage.experiments import newest_checkpoint
from t3d.storage.files import read_json, write_json_atomic
from t3d.storage.fingerprint import model_digest, text_digest
from t3d.storage.paths import dataset_name, find_data
from t3d.tables.origin import check_origin
from t3d.tables.outcomes import Outcomes, load_outcomes

log = logging.getLogger(__name__)

CONTENT = ("evaluation.checkpoint_path", "evaluation.eval_dataset", "evaluation.limit")  # keyed by what they name
WITHOUT_EFFECT = ("rollout.resume", "execute.num_chunk", "execute.num_workers", "execute.sandbox")
ON_SPEED = (
    *("rollout.max_active", "rollout.batch_size", "rollout.device", "rollout.num_workers"),
    *("rollout.cuda_graphs", "rollout.paged"),
)
TIMINGS = ("tokens_per_second", "latency_s")  # the only figures that ON_SPEED changes

Place = dict[str, Any]
"""Value of each axis (`TABLE_AXES`) at a cell."""


@dataclass(frozen=True)
class Cell:
    """One evaluation of the grid.

    Attributes:
        place: where it stands.
        config: what it evaluates.
        is_missing: whether its checkpoint is missing, and may be.
    """

    place: Place
    config: EvalConfig
    is_missing: bool = False


@dataclass(frozen=True)
class Run:
    """A finished evaluation.

    Attributes:
        place: where it stands in its table.
        model: what tells its weights from others: their digest, or the checkpoint's name.
        results: of `evaluate`; None where the checkpoint was missing.
        outcomes: its grades, likewise.
        path: the file that holds all this, likewise.
    """

    place: Place
    model: str | None = None
    results: Results | None = None
    outcomes: Outcomes | None = None
    path: Path | None = None


def plan(config: EvalConfig) -> list[Cell]:
    """Every cell of `config.table`, after a check that all can be evaluated.

    Raises:
        UserError: checkpoints that are missing (all are named) or not what their row says, a data set that cannot be
            read, or two cells with one place in the table.
    """
    table = config.table
    if config.evaluation.num_node > 1:
        raise ConfigError("evaluation.num_node", "1 with table.checkpoints", config.evaluation.num_node)
    cells = list(every_cell(config))
    axes = [*table.sections, *table.rows, *table.columns]
    if len({tuple(cell.place[axis] for axis in axes) for cell in cells}) < len(cells):
        expected = "axes that give each cell a place of its own"
        raise ConfigError("table.sections, rows and columns", expected, ", ".join(axes))
    for asked in {cell.place["dataset"]: cell.config for cell in cells}.values():
        _problems(asked)
    paths = dict.fromkeys(str(cell.config.evaluation.checkpoint_path) for cell in cells)
    reasons = {path: reason for path in paths if (reason := _why_missing(path))}
    cells = [replace(cell, is_missing=cell.config.evaluation.checkpoint_path in reasons) for cell in cells]
    if reasons and not table.skip_missing:
        where = ", ".join(
            dict.fromkeys(f"table.checkpoints.{cell.place['model']}" for cell in cells if cell.is_missing)
        )
        expected = "model folders (table.skip_missing=true leaves their cells empty)"
        raise CheckpointError(where, expected, "; ".join(reasons.values()))
    for cell in cells:
        if not cell.is_missing:
            evaluation = cell.config.evaluation
            check_origin(
                table, cell.place["model"], str(evaluation.checkpoint_path), cell.place["base"], evaluation.data_type
            )
    for reason in reasons.values():
        log.warning("left empty: %s", reason)
    return cells


def measure(cell: Cell, project: Path, workers: Workers | None = None) -> Run:
    """Evaluates a cell, or takes the results of an earlier run with the same content: one process looks for all.

    Args:
        cell: of a table.
        project: the folder that keeps its results.
        workers: who decodes, kept for the next cell.

    Raises:
        UserError: see `evaluate`.
    """
    if cell.is_missing:
        return Run(cell.place)
    name = dataset_name(cell.config.evaluation.eval_dataset)
    decoding = f"b{cell.place['block_size']}-s{cell.place['denoising_steps']}"
    folder = project / "cells" / f"{name}-{decoding}-{_key(cell.config)}"
    path = folder / "cell.json"
    ranks = join_ranks()
    if not ranks.on_first(path.exists):
        config = replace(
            cell.config,
            experiment=replace(cell.config.experiment, output_dir=str(folder)),
            table=TableConfig(),
        )
        model = ranks.on_first(lambda: _digest(config))
        evaluation = evaluate(config, workers)
        ranks.on_first(lambda: _keep(path, config, model, evaluation))
    return ranks.on_first(lambda: load_run(path, cell.place))


def _keep(path: Path, config: EvalConfig, model: str, evaluation: Evaluation) -> None:
    """Writes the file of a finished cell, whose model had the digest `model` before."""
    if _digest(config) != model:
        checkpoint = str(config.evaluation.checkpoint_path)
        raise CheckpointError(checkpoint, "the same weights from beginning to end", "others when they were evaluated")
    outcomes = load_outcomes(evaluation.path, evaluation.results)
    write_json_atomic(path, {"model": model, "results": to_json(evaluation.results), "outcomes": asdict(outcomes)})


def load_run(path: Path, place: Place) -> Run:
    """Reads a finished cell.

    Raises:
        DataError: no such file, or another kind of file.
    """
    stored = read_json(path)
    try:
        results = from_json(stored["results"], path)
        return Run(place, stored["model"], results, Outcomes(**stored["outcomes"]), path)
    except (KeyError, TypeError) as error:
        raise DataError(path, "a cell of a table (remove its folder to evaluate it again)", error) from error


def every_cell(config: EvalConfig) -> Iterator[Cell]:
    """The grid of `config.table`, unchecked."""
    table = config.table
    datasets = table.datasets or [config.evaluation.eval_dataset]
    names = [dataset_name(dataset) for dataset in datasets]
    bases: list[str | None] = [*table.bases] or [None]
    for base, (model, checkpoint), (number, dataset), strategy, (block_size, steps) in itertools.product(
        bases,
        table.checkpoints.items(),
        enumerate(datasets),
        table.strategies or [config.rollout.remasking_strategy],
        table.decodings,
    ):
        known = DATASETS.get(names[number])
        data_type = config.evaluation.data_type if known is None else known.data_type
        rollout = replace(
            config.rollout,
            block_size=block_size,
            denoising_steps_per_block=steps,
            remasking_strategy=strategy,
        )
        path = newest_checkpoint(checkpoint.replace("{base}", base or "").replace("{data_type}", data_type))
        evaluation = replace(config.evaluation, checkpoint_path=path, eval_dataset=dataset, data_type=data_type)
        place = {
            "base": base,
            "model": model,
            "dataset": names[number] if names.count(names[number]) == 1 else dataset,
            "strategy": strategy,
            "block_size": block_size,
            "denoising_steps": steps,
            "tokps": f"{block_size / steps:.3g}",
        }
        yield Cell(place, replace(config, rollout=rollout, evaluation=evaluation))


def _why_missing(checkpoint: str) -> str | None:
    """Why a checkpoint cannot be evaluated, or None if it can."""
    try:
        load_model_config(resolve_checkpoint(checkpoint))
    except CheckpointError as error:
        return f"{error.where} ({error.found})"
    return None


def _problems(config: EvalConfig) -> list[dict[str, Any]]:
    evaluation = config.evaluation
    return load_benchmark(find_data(evaluation.eval_dataset), evaluation.data_type, evaluation.limit)


def _digest(config: EvalConfig) -> str:
    return model_digest(resolve_checkpoint(str(config.evaluation.checkpoint_path)))


def _key(config: EvalConfig) -> str:
    """Digest of all that the cell's figures depend on: content, settings and versions, not names of files."""
    timed = set(TIMINGS) & set(config.table.figures)
    left_out = CONTENT + WITHOUT_EFFECT + (() if timed else ON_SPEED)
    groups = {name: values for name, values in asdict(config).items() if name in ("rollout", "evaluation", "execute")}
    settings = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    return text_digest(
        {
            "model": _digest(config),
            "problems": text_digest(_problems(config)),
            "versions": versions(),
            "settings": {name: value for name, value in settings.items() if name not in left_out},
        }
    )
