"""The folder of a training run: a new one, or the one that a killed run left."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from omegaconf import OmegaConf
from yaml import YAMLError

from t3d.config import TrainConfig
from t3d.errors import CheckpointError, ConfigError, UserError
from t3d.storage.folders import make_folder, remove_leftovers
from t3d.training.checkpoint import saved_steps

FREE_GROUPS = ("experiment", "wandb")
"""Groups whose keys may change between a run and its continuation: they do not change the weights."""


def open_run_folder(config: TrainConfig, accelerator: Accelerator) -> tuple[Path, Path | None]:
    """The run's folder and the state to resume from (None: a new run); the same on every process.

    Raises:
        CheckpointError: resuming was asked for by path, and there is no state.
        ConfigError: the configuration differs from that of the run to resume, or a new run's folder holds one.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer = [_open(config)]
        except UserError as error:
            answer = [error]
    broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _open(config: TrainConfig) -> tuple[Path, Path | None]:
    folder, state = find_run(config)
    if state is None:
        return make_folder(folder), None
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
    folder = (_latest(config) if resume == "latest" else None) or Path(resume)
    if folder.parent.name == "state":
        folder, states = folder.parent.parent, [folder]
    else:
        states = list(saved_steps(folder / "state").values())
    if not states or not states[-1].is_dir():
        raise CheckpointError(folder, "a run with a saved state (state/step-N)", "none")
    _check_same(config, folder)
    return folder, states[-1]


def _runs(config: TrainConfig) -> Path:
    """Parent of this configuration's runs, as the release names it."""
    model = Path(config.model.pretrained_model).name
    return Path("experiments") / model / config.dataset.data_type / config.experiment.project


def _new_folder(config: TrainConfig) -> Path:
    if config.experiment.output_dir is not None:
        return Path(config.experiment.output_dir)
    return _runs(config) / datetime.now().strftime("%Y%m%d-%H%M%S")


def _latest(config: TrainConfig) -> Path | None:
    """The newest run of this configuration that saved a state."""
    if config.experiment.output_dir is not None:
        candidates = [Path(config.experiment.output_dir)]
    else:
        candidates = sorted(_runs(config).glob("*"))
    saved = [folder for folder in candidates if saved_steps(folder / "state")]
    return saved[-1] if saved else None


def _check_same(config: TrainConfig, folder: Path) -> None:
    try:
        before = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, YAMLError) as error:
        raise CheckpointError(folder / "config.yaml", "the run's configuration", error) from error
    if not isinstance(before, dict) or not before:
        raise CheckpointError(folder / "config.yaml", "the run's configuration", "none")
    for name, now in _flat(asdict(config)).items():
        then = _flat(before).get(name)
        if name.split(".")[0] not in FREE_GROUPS and then != now:
            raise ConfigError(name, f"{then}, as in the run to resume ({folder})", now)


def _flat(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
