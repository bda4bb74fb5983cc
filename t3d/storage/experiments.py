"""Where training runs lie, and what they record: experiments/<model>/<data type>/<method>/[<timestamp>/]ckpt/<name>.

Training writes there, and tables and evaluations look there.
"""

import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from t3d.errors import DataError
from t3d.storage.folders import make_folder
from t3d.storage.paths import existing_path

EXPERIMENTS = Path("experiments")
_TIMESTAMP = re.compile(r"\d{8}-\d{6}")


def method_folder(model: str, data_type: str, method: str | Path) -> Path:
    """The folder of a method's runs.

    Args:
        model: the name of the model that is trained, without its organisation.
        data_type: math, code or option.
        method: what tells the method from others, `experiment.project`.
    """
    return EXPERIMENTS / model / data_type / method


def new_run(folder: Path) -> Path:
    """A run's folder under its method's, named by this moment."""
    return folder / datetime.now().strftime("%Y%m%d-%H%M%S")


def claim_run(folder: Path) -> Path:
    """Makes a run's folder under its method's; two that begin in the same second get one each."""
    while True:
        path = new_run(make_folder(folder))
        try:
            path.mkdir()
            return path
        except FileExistsError:
            time.sleep(0.1)
        except OSError as error:
            raise DataError(path, "a folder that can be made", error.strerror) from error


def runs(folder: Path) -> list[Path]:
    """The runs of a method, oldest first: the folder itself, as one without a timestamp writes, before all others."""
    return [folder, *sorted(path for path in folder.glob("*") if _TIMESTAMP.fullmatch(path.name))]


def newest_checkpoint(name: str) -> str:
    """The model folder that a configuration means by `name`.

    Where there is no folder <method>/ckpt/<name>, it is that of the method's newest finished run; any other name is
    returned as it is.
    """
    folder = existing_path(name)
    if folder.parent.name != "ckpt" or folder.is_dir():
        return name
    found = [run / "ckpt" / folder.name for run in runs(folder.parent.parent)[1:]]
    finished = [path for path in found if path.is_dir()]
    return str(finished[-1]) if finished else name


def run_config(checkpoint: str) -> tuple[Path, dict[str, Any]] | None:
    """The configuration that a checkpoint of this project was trained with, and its file; None for any other model.

    Raises:
        DataError: the file is there and is no configuration.
    """
    folder = existing_path(checkpoint).resolve()
    source = folder.parent.parent / "config.yaml"
    if folder.parent.name != "ckpt" or not source.is_file():
        return None
    return source, read_run_config(source)


def read_run_config(source: Path) -> dict[str, Any]:
    """The configuration that a training run keeps, nested.

    Raises:
        DataError: the file cannot be read, or is no configuration.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(source))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise DataError(source, "the configuration of a training run", error) from error
    if not isinstance(values, dict) or not values:
        found = f"a {type(values).__name__}" if values else "none"
        raise DataError(source, "the configuration of a training run", found)
    return values  # type: ignore[return-value]


def recorded(values: dict[str, Any], path: str) -> Any:
    """One entry of a `run_config`, by its dotted key; None if it lacks it."""
    value: Any = values
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
