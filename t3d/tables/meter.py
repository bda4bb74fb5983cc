"""Factorisation meter: what decoding in few steps costs a model, in nats per block and without labels.

Samples answers to the problems, one token per step at temperature 1, and compares their log-likelihood with that of
fewer steps per block.  Takes the keys of an evaluation, with those of a table for several models: the model
(table.checkpoints), the problems (table.datasets), and block size and steps (table.decodings).  A model whose steps are
one per token is measured at half of them, a quarter, and so on.  What evaluations say of temperature, top-k, top-p and
remasking has no effect.
"""

from t3d.entry import run_entry

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from t3d.config import EvalConfig, load_config
from t3d.decoding.factorisation import Factorisation, mean_gap
from t3d.errors import ConfigError
from t3d.evaluation.environment import environment
from t3d.evaluation.meter import measure
from t3d.rollout.ranks import join_ranks
from t3d.rollout.run import outputs_name, project_folder
from t3d.storage.experiments import newest_checkpoint
from t3d.storage.fields import read_fields
from t3d.storage.files import write_json_atomic
from t3d.storage.folders import make_folder
from t3d.storage.paths import dataset_name
from t3d.tables.cells import plan

log = logging.getLogger(__name__)

EXAMPLE = (
    "t3d meter config=eval evaluation.checkpoint_path=/path/to/checkpoint evaluation.eval_dataset=MATH500"
    " evaluation.limit=100 rollout.denoising_steps_per_block=1\n"
    "  t3d meter config=tables/table1 evaluation.limit=100"
)


@dataclass(frozen=True)
class Asked:
    """One checkpoint to measure, at one block size.

    Attributes:
        label: what people call it.
        config: model and problems.
        few: numbers of denoising steps per block.
    """

    label: str
    config: EvalConfig
    few: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Meter:
    """One model under one decoding; `model` is its folder's digest."""

    label: str
    checkpoint: str
    model: str
    dataset: str
    block_size: int
    denoising_steps: int
    figures: Factorisation


@dataclass(frozen=True)
class Meters:
    """What one command measured."""

    meter: list[Meter]
    environment: dict[str, Any]
    config: dict[str, Any]


def run(config: EvalConfig) -> Path:
    """Measures every model, and writes <project>/results/meter-<name>.json.

    Raises:
        UserError: see `measure`; or nothing to measure.
    """
    project, every = project_folder(config), list(asked(config))
    found = []
    for number, one in enumerate(every, 1):
        log.info("meter, %d of %d: %s, block %d", number, len(every), one.label, one.config.rollout.block_size)
        found += meters(one, project / "meter")
    single = every[0].config
    name = config.table.name if config.table.checkpoints else f"{outputs_name(single)}-b{single.rollout.block_size}"
    path = project / "results" / f"meter-{name}.json"
    join_ranks().on_first(lambda: _write(path, Meters(found, environment(), asdict(config))))
    return path


def asked(config: EvalConfig) -> Iterator[Asked]:
    """Each checkpoint and block size of a configuration, once.

    Raises:
        UserError: see `plan`; or no decoding of several tokens per step.
    """
    if config.evaluation.rollouts is not None:
        raise ConfigError("evaluation.rollouts", "null: the meter takes a model's own samples", "a file")
    if not config.table.checkpoints:
        yield _single(config)
        return
    found: dict[tuple[Any, ...], Asked] = {}
    for cell in plan(config):
        size, steps, evaluation = cell.place["block_size"], cell.place["denoising_steps"], cell.config.evaluation
        if cell.is_missing or steps == size:
            continue
        label = " ".join(filter(None, [cell.place["base"], config.table.label(cell.place["model"])]))
        place = label, evaluation.checkpoint_path, evaluation.eval_dataset, size
        one = found.setdefault(place, Asked(label, cell.config))
        if steps not in one.few:
            one.few.append(steps)
    if not found:
        expected = "a checkpoint that is there, and a decoding of fewer steps than block_size"
        raise ConfigError("table.checkpoints, table.decodings", expected, "none")
    yield from found.values()


def _single(config: EvalConfig) -> Asked:
    """The model of a configuration without a table."""
    evaluation, rollout = config.evaluation, config.rollout
    if evaluation.checkpoint_path is None:
        raise ConfigError("evaluation.checkpoint_path", "a model folder or hub id", "null")
    if rollout.block_size == 1:
        raise ConfigError("rollout.block_size", "at least 2, as there is nothing to factorise in a position", 1)
    few, steps = [rollout.denoising_steps_per_block], rollout.block_size
    if few == [steps]:
        few = []
        while steps > 1:
            steps //= 2
            few.append(steps)
    path = newest_checkpoint(evaluation.checkpoint_path)
    return Asked(path, replace(config, evaluation=replace(evaluation, checkpoint_path=path)), few)


def meters(one: Asked, folder: Path) -> list[Meter]:
    """A checkpoint's figures, by number of steps.

    Raises:
        UserError: see `measure`.
    """
    found, evaluation = measure(one.config, one.few, folder), one.config.evaluation
    size, dataset = one.config.rollout.block_size, dataset_name(evaluation.eval_dataset)
    return [
        Meter(one.label, str(evaluation.checkpoint_path), found.model, dataset, size, steps, mean_gap(gaps))
        for steps, gaps in zip(one.few, found.gaps.values(), strict=True)
    ]


def read_meters(values: Any, where: str | Path) -> list[Meter]:
    """The figures of a file that `run` wrote, from its parsed content.

    Raises:
        DataError: a field is missing or of another type; it is named, behind `where`.
    """
    return read_fields(Meters, values, where).meter


def lines(found: Sequence[Meter]) -> Iterator[str]:
    """The figures as a table in Markdown."""
    yield "| model | data set | block/steps | gap, nats per block | nats per token | entropy, nats per block | n |"
    yield "|---|---|---|---|---|---|---|"
    for one in found:
        figures = one.figures
        yield (
            f"| {one.label} | {one.dataset} | {one.block_size}/{one.denoising_steps} |"
            f" {figures.nats_per_block:.4f} ± {figures.stderr:.4f} | {figures.nats_per_token:.4f} |"
            f" {figures.entropy_per_block:.4f} | {figures.num_samples} |"
        )


def _write(path: Path, found: Meters) -> None:
    make_folder(path.parent)
    write_json_atomic(path, asdict(found))
    sys.stdout.write("\n".join([*lines(found.meter), ""]))
    log.info("%s", path)


def main(arguments: list[str]) -> None:
    """Parses the configuration and measures."""
    run(load_config(EvalConfig, arguments, __doc__ or "", EXAMPLE))


if __name__ == "__main__":
    run_entry(main)
