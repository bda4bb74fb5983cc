"""The folder of a training run: a new one, or the one that a killed run left."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from t3d.config import TrainConfig
from t3d.errors import CheckpointError, ConfigError, UserError
from t3d.storage.experiments import claim_run, method_folder, new_run, read_run_config, runs
from t3d.storage.files import read_json, write_json_atomic
from t3d.storage.fingerprint import model_digest
from t3d.storage.folders import make_folder, remove_leftovers
from t3d.storage.locks import claim
from t3d.storage.paths import model_name, start_of, user_path
from t3d.training.checkpoint import saved_samples, saved_steps
from t3d.training.schedule import samples_per_step

log = logging.getLogger(__name__)

FREE_KEYS = (
    *("project", "output_dir", "start_from_scratch", "resume_from", "num_node", "num_processes"),
    *("save_every_steps", "checkpoints_total_limit", "max_grad_norm", "trackers"),
)
"""Keys of `experiment` that may change between a run and its continuation, as those of `wandb` may: the weights do
not depend on them.  (`max_grad_norm` there is another name for training's.)"""

BATCH_KEYS = ("training.global_batch_size", "training.gradient_accumulation_steps")
"""Keys that may change as long as a step has as many samples."""

LENGTH_KEYS = ("training.max_steps", "training.num_train_epochs")
"""Keys that say how long a run is."""

PLACE_KEYS = (
    "training.shard_reference",
    "training.device_peak_tflops",
    "training.meter_every",
    "validation.every",
    "validation.max_active",
)
"""Keys that say where something lies, when it is looked at or what is told of it, not what it is.  (States hold the
whole reference, and either way it computes the same.)"""

INPUTS = "inputs.json"
"""The file of a run that holds the digests of what the keys in it name."""
LOCK = ".lock"
"""The file of a run that the process which trains in its folder has claimed."""


def run_inputs(source: Path, data_digest: str) -> dict[str, str]:
    """Digests of what may change under the same name: key of the configuration -> digest.

    Args:
        source: the teacher's folder.
        data_digest: of the training samples.
    """
    return {"model.pretrained_model": model_digest(source), "dataset.optimization_data": data_digest}


def open_run_folder(
    config: TrainConfig, accelerator: Accelerator, inputs: Callable[[], dict[str, str]]
) -> tuple[Path, Path | None]:
    """The run's folder and the state to resume from (None: a new run); the same on every process.

    Args:
        config: the run's.
        accelerator: the launch's.
        inputs: gives `run_inputs`; asked on the main process alone.

    Raises:
        CheckpointError: resuming was asked for by path, and there is no state.
        ConfigError: configuration, weights or data differ from those of the run to resume, a new run's folder
            holds one, or another process trains in it.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer = [_open(config, inputs(), accelerator)]
        except UserError as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _open(config: TrainConfig, inputs: dict[str, str], accelerator: Accelerator) -> tuple[Path, Path | None]:
    folder, state = find_run(config)
    if state is None:
        folder = claim_run(folder.parent) if _is_named_by_time(config) else make_folder(folder)
    if not claim(folder / LOCK, accelerator):
        raise ConfigError("experiment.output_dir", "a folder that no other process trains in", f"{folder}, in use")
    if state is None:
        write_json_atomic(folder / INPUTS, inputs)
        return folder, None
    _check_batch(config, state, folder, accelerator.num_processes)
    _check_inputs(inputs, folder)
    for part in ("ckpt", "state"):
        remove_leftovers(folder / part)
    return folder, state


def find_run(config: TrainConfig) -> tuple[Path, Path | None]:
    """The run's folder and the state to resume from (None: a new run); nothing is made or removed.

    Raises:
        CheckpointError: see `open_run_folder`.
        ConfigError: likewise.
    """
    experiment = config.experiment
    resume = experiment.resume_from or (None if experiment.start_from_scratch else "latest")
    if resume is None or (resume == "latest" and not _latest(config)):
        folder = _new_folder(config)
        if resume is None and (folder / "config.yaml").exists():
            raise ConfigError(
                "experiment.output_dir",
                "a new folder, or experiment.resume_from=latest",
                f"the run in {folder}",
            )
        return folder, None
    folder = (_latest(config) if resume == "latest" else None) or user_path(resume)
    if folder.parent.name == "state":
        folder, states = folder.parent.parent, [folder]
    else:
        states = list(saved_steps(folder / "state").values())
    if not states or not states[-1].is_dir():
        raise CheckpointError(folder, "a run with a saved state (state/step-N)", f"none{start_of(folder)}")
    _check_same(config, folder)
    return folder, states[-1]


def _method(config: TrainConfig) -> Path:
    """Folder of this configuration's runs."""
    model = model_name(config.model.pretrained_model)
    return method_folder(model, config.dataset.data_type, user_path(config.experiment.project))


def _is_named_by_time(config: TrainConfig) -> bool:
    return config.experiment.output_dir is None and config.experiment.timestamp


def _new_folder(config: TrainConfig) -> Path:
    if config.experiment.output_dir is not None:
        return user_path(config.experiment.output_dir)
    return new_run(_method(config)) if _is_named_by_time(config) else _method(config)


def _latest(config: TrainConfig) -> Path | None:
    """The newest run of this configuration that saved a state."""
    if config.experiment.output_dir is not None:
        candidates = [user_path(config.experiment.output_dir)]
    else:
        candidates = runs(_method(config))
    saved = [folder for folder in candidates if saved_steps(folder / "state")]
    return saved[-1] if saved else None


def _check_batch(config: TrainConfig, state: Path, folder: Path, num_processes: int) -> None:
    """Checks that a step has as many samples as it had: the data's order and the schedule are counted in steps."""
    before, training = _recorded(folder), config.training
    accumulated = before.get("training.gradient_accumulation_steps", training.gradient_accumulation_steps)
    then, now = saved_samples(state, training.batch_size_lm * accumulated), samples_per_step(training, num_processes)
    if then is not None and then != now:
        expected = f"{then} samples per step, as in the run to resume ({folder})"
        raise ConfigError("training.global_batch_size", expected, f"{now} with {num_processes} process(es)")


def _check_same(config: TrainConfig, folder: Path) -> None:
    # A key that is younger than the run had its default's effect.
    before, given = _flat(asdict(TrainConfig())) | _recorded(folder), _flat(asdict(config))
    for name in {**given, **{name: None for name in before if name.startswith("dataset.prompts.")}}:
        then, now = before.get(name), given.get(name)
        group, _, key = name.partition(".")
        free = group == "wandb" or (group == "experiment" and key in FREE_KEYS)
        free = free or name in (*BATCH_KEYS, *PLACE_KEYS)
        # Figures of other problems or decodings cannot be compared; without any, there is nothing to compare with.
        looked = before.get("validation.every") or before.get("training.meter_every")
        free = free or (group == "validation" and not looked)
        if not free and then != now:
            longer = f"; {to_train_on(folder, config)}" if name in LENGTH_KEYS else ""
            expected, found = ("null" if value is None else value for value in (then, now))
            raise ConfigError(name, f"{expected}, as in the run to resume ({folder}){longer}", found)


def to_train_on(folder: Path, config: TrainConfig) -> str:
    """How to train longer than the run in `folder` was meant to: its length shapes the schedule, so in a new run."""
    checkpoint = folder / "ckpt" / config.model.optimized_name
    if not checkpoint.is_dir():
        return "to train longer, let it end first"
    return (
        f"to train longer: model.pretrained_model={checkpoint}"
        f" dataset.optimization_data={config.dataset.optimization_data}, a new experiment.output_dir and no"
        " experiment.resume_from"
    )


def _recorded(folder: Path) -> dict[str, Any]:
    """The configuration that a run began with, by dotted key.

    Raises:
        DataError: it cannot be read.
    """
    return _flat(read_run_config(folder / "config.yaml"))


def _check_inputs(inputs: dict[str, str], folder: Path) -> None:
    """Checks that what the configuration names has the content that it had.

    Raises:
        ConfigError: weights or data were changed in place.
    """
    if not (folder / INPUTS).exists():
        log.warning("%s: no %s (an older run): its weights and data are taken to be unchanged", folder, INPUTS)
        write_json_atomic(folder / INPUTS, inputs)
    before = read_json(folder / INPUTS)
    for name, now in inputs.items():
        if not isinstance(before, dict) or before.get(name) != now:
            expected = f"the content that it had in the run to resume ({folder})"
            raise ConfigError(name, expected, "another under the same path")


def _flat(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
