"""All stages for one base model and one kind of problem, each as the command that a person would give.

python -m t3d.reproduce base=JetLM/SDAR-4B-Chat data_type=math --dry-run

Works in the folder that it is run from.  Every stage keeps what it finished, so the same command goes on after a kill.
"""

from t3d.entry import run_entry

import logging
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import MISSING

from t3d.config import EvalConfig, SampleConfig, TrainConfig, load_config
from t3d.config.keys import key
from t3d.config.loading import TRAINING_SETS
from t3d.data.benchmarks import DATASETS
from t3d.errors import ConfigError, DataError, UserError
from t3d.rollout.run import project_folder, rollout_path
from t3d.storage.experiments import method_folder
from t3d.storage.paths import config_path, find_data, model_name

log = logging.getLogger(__name__)

EXAMPLE = "python -m t3d.reproduce base=JetLM/SDAR-4B-Chat data_type=math --dry-run"
T3D = [sys.executable, "-m", "t3d"]
BENCHMARKS = {"math": ["MATH500", "GSM8K"], "code": ["MBPP", "HumanEval"]}
"""Kind of problem -> the paper's test sets."""


@dataclass
class ReproduceConfig:
    """What to reproduce, and with which configurations."""

    base: str = key(MISSING, "model to distil: a folder or hub id; every path follows from its name")
    data_type: str = key("math", "kind of problem", one_of=tuple(TRAINING_SETS))
    train_dataset: str | None = key(None, "problems to learn from: a file, or a name in data/ (null: the paper's)")
    eval_datasets: list[str] = key([], "problems to be tested on (empty: the paper's)")
    launcher: str = key(
        "accelerate launch --config_file accelerate_configs/1_node_8_gpus_deepspeed_zero1.yaml",
        "what starts `-m t3d train`; python: one process",
    )
    rollout_config: str = key("configs/sdar_sample.yaml", "configuration of stage 1")
    training_config: str = key("configs/t3d.yaml", "configuration of stage 3")
    evaluation_config: str = key("configs/eval.yaml", "configuration of the evaluation")
    rollout_keys: list[str] = key([], "further key=value of stage 1")
    training_keys: list[str] = key([], "further key=value of stage 3")
    evaluation_keys: list[str] = key([], "further key=value of the evaluation")
    decodings: list[list[int]] = key(
        [[4, 2], [8, 4], [4, 1], [8, 2]], "block_size and denoising_steps_per_block that are evaluated"
    )
    dry_run: bool = key(False, "only say what would be run (--dry-run)")


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of the stage.
        command: its words.
        reads: what must be there.
        writes: what is there afterwards.
    """

    name: str
    command: list[str]
    reads: list[str]
    writes: str


def stages(config: ReproduceConfig) -> Iterator[Stage]:
    """The stages in their order.

    Raises:
        UserError: a key or a configuration of a stage that is wrong.
    """
    name, data_type = model_name(config.base), config.data_type
    problems = config.train_dataset or TRAINING_SETS[data_type]
    benchmarks = config.eval_datasets or BENCHMARKS[data_type]
    for dataset in (problems, *benchmarks):
        yield from _download(dataset)
    keys = [f"evaluation.checkpoint_path={config.base}", f"evaluation.data_type={data_type}"]
    arguments = [f"config={config.rollout_config}", *keys, f"evaluation.eval_dataset={problems}", *config.rollout_keys]
    rollouts = str(rollout_path(load_config(SampleConfig, arguments, "", "")))
    yield Stage("rollout", [*T3D, "sample", *arguments], [config.base, problems], rollouts)
    arguments = [
        f"config={config.training_config}",
        f"model.pretrained_model={config.base}",
        f"dataset.data_type={data_type}",
        f"dataset.optimization_data={rollouts}",
        "experiment.resume_from=latest",
        *config.training_keys,
    ]
    student = _student(load_config(TrainConfig, arguments, "", ""))
    yield Stage(
        "training",
        [*_launcher(config.launcher), "-m", "t3d", "train", *arguments],
        [config.base, rollouts],
        student,
    )
    arguments = [
        f"config={config.evaluation_config}",
        f"evaluation.data_type={data_type}",
        f"table.name={name}-{data_type}",
        f"table.checkpoints.Original={config.base}",
        f"table.checkpoints.T3D={student}",
        "table.baseline=Original",
        f"table.datasets={yaml.safe_dump(benchmarks, default_flow_style=True, width=math.inf).strip()}",
        f"table.decodings={config.decodings}",
        *config.evaluation_keys,
    ]
    table = project_folder(load_config(EvalConfig, arguments, "", "")) / "results" / f"{name}-{data_type}.md"
    reads = [config.base, student, *benchmarks]
    yield Stage("evaluation", [*T3D, "table", *arguments], reads, str(table))


def run(stage: Stage, dry_run: bool) -> None:
    """Says what a stage is and runs it.

    Raises:
        UserError: it failed; what it says itself stands above.
    """
    log.info(
        "== %s\n%s\nreads:  %s\nwrites: %s", stage.name, shlex.join(stage.command), ", ".join(stage.reads), stage.writes
    )
    if dry_run:
        return
    started = time.perf_counter()
    try:
        ended = subprocess.run(stage.command, check=False)
    except FileNotFoundError as error:
        raise ConfigError("launcher", "a command that is installed", stage.command[0]) from error
    if ended.returncode:
        expected = "exit status 0 (the same command goes on where it stopped)"
        raise UserError(f"the stage {stage.name}", expected, ended.returncode)
    log.info("took:   %.0f s", time.perf_counter() - started)


def main(arguments: list[str]) -> None:
    """Runs all stages.

    Raises:
        UserError: see `stages`; or a stage that failed.
    """
    given = ["dry_run=true" if argument == "--dry-run" else argument for argument in arguments]
    config = load_config(ReproduceConfig, given, __doc__ or "", EXAMPLE)
    for stage in list(stages(config)):
        run(stage, config.dry_run)


def _launcher(words: str) -> list[str]:
    """The launcher's words; a configuration of accelerate's that is not here is the one that comes with t3d."""
    try:
        split = shlex.split(words)
    except ValueError as error:
        raise ConfigError("launcher", "the words of a command", f"{words} ({error})") from error
    return [str(config_path(word)) if word.startswith("accelerate_configs/") else word for word in split]


def _download(dataset: str) -> Iterator[Stage]:
    """How to fetch one of the paper's data sets, unless it is here."""
    known = DATASETS.get(dataset)
    try:
        find_data(dataset)
    except DataError:
        if known is None or known.repo_id is None:
            raise
        command = [*T3D, "download", "--dataset", dataset, "--output_dir", "data"]
        yield Stage(f"download of {dataset}", command, [known.repo_id], f"data/{dataset}.json")


def _student(config: TrainConfig) -> str:
    """Where tables find the student; without a folder of its own, in the newest finished run."""
    method = method_folder(
        model_name(config.model.pretrained_model), config.dataset.data_type, config.experiment.project
    )
    return str(Path(config.experiment.output_dir or method) / "ckpt" / config.model.optimized_name)


if __name__ == "__main__":
    run_entry(main)
