"""Where things lie: the folder that a command works in, and the data files named in a configuration."""

import os
from pathlib import Path

from t3d.errors import ConfigError, DataError, one_line

SCRIPT_FOLDERS = ("sample", "data")
"""Folders that the release's commands are run from, one below the folder they work in."""

CACHE_ROOT = "T3D_CACHE_ROOT"
DATASETS = "datasets"
"""Folder under `cache_root` of training data that is ready to be read."""

PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = ("configs", "accelerate_configs")
"""Folders of configurations that come with t3d: of its commands, and of `accelerate launch`."""
TOY_TEACHER = "t3d/toy/teacher"
"""The built-in model, under the same name from every folder."""


def cache_root() -> Path:
    """The folder of everything that is kept only to save time: $T3D_CACHE_ROOT, or ~/.cache/t3d."""
    return user_path(os.environ.get(CACHE_ROOT, "~/.cache/t3d"))


def user_path(name: str) -> Path:
    """The path that a configuration or command line means by `name`: `~` is the home folder, in and out alike."""
    return Path(os.path.expanduser(name))  # unlike Path.expanduser, no error for the home of nobody


def existing_path(name: str) -> Path:
    """The file or folder that is read under `name`: a relative path starts at the folder that the command runs in.

    In a script folder it may start at the one above too, so that a configuration holds for both.

    Raises:
        DataError: a path that may not be looked at, or cannot be one.
    """
    path = user_path(name)
    above = workspace() / path
    try:
        return above if above.exists() and not path.exists() else path
    except OSError as error:
        raise DataError(one_line(path), "a path that this process may look at", error.strerror) from error


def model_path(name: str) -> Path:
    """The folder of the model `name`: `existing_path`'s, or else, for `TOY_TEACHER`, the one that comes with t3d."""
    path = existing_path(name)
    return PACKAGE.parent / TOY_TEACHER if path == Path(TOY_TEACHER) and not path.is_dir() else path


def config_path(name: str, start: Path | None = None) -> Path:
    """The configuration called `name`: one rule for `config=`, `base:` and launchers.

    A file under that path wins.  Else it is one of those that come with t3d, by its path in the folder configs, with
    or without "configs/" in front and ".yaml" behind: t3d, toy/eval.yaml, configs/tables/table1.yaml.  Those of
    accelerate are called accelerate_configs/NAME.

    Args:
        name: as the user wrote it.
        start: folder that a relative path starts at; None: the working folder (see `existing_path`).

    Raises:
        ConfigError: there is nothing of that name.
    """
    path = existing_path(name) if start is None else start / user_path(name)
    if path.exists() and not path.is_dir():
        return path
    for candidate in (Path(name), Path(f"{name}.yaml")):
        first = candidate.parts[0] if candidate.parts else ""
        folder, inner = (first, candidate.parts[1:]) if first in CONFIG_FOLDERS else ("configs", candidate.parts)
        shipped = shipped_folder(folder).joinpath(*inner)
        if not candidate.is_absolute() and ".." not in inner and shipped.is_file():
            return shipped
    if path.exists():
        return path  # a folder, as whoever reads it will say
    elsewhere = "" if user_path(name).is_absolute() else ", nor one that comes with t3d (`t3d configs` lists them)"
    raise ConfigError(path, "a YAML file", f"none there{start_of(path)}{elsewhere}")


def shipped_folder(name: str) -> Path:
    """One of `CONFIG_FOLDERS`: inside an installed package, beside the package in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def start_of(name: str | Path) -> str:
    """For errors: where the relative path `name` starts; nothing for an absolute one."""
    return "" if user_path(str(name)).is_absolute() else f" (relative paths start at the working folder, {Path.cwd()})"


def workspace() -> Path:
    """The folder that holds data/ and receives results: the current one, or its parent in a script folder."""
    here = Path.cwd()
    return here.parent if here.name in SCRIPT_FOLDERS else here


def dataset_name(name: str) -> str:
    """What results call the data set that a configuration names by file or by name."""
    return Path(name).name.removesuffix(".json").removesuffix(".jsonl")


def model_name(name: str) -> str:
    """What files call the model that a configuration names by folder or hub id."""
    return os.path.basename(os.path.abspath(user_path(name)))  # "." is a folder with a name; links keep theirs


def find_data(name: str) -> Path:
    """The file that a configuration calls `name`: a path, or a name in the workspace's data/ (.json, then .jsonl).

    Raises:
        DataError: no such file; both places are named.
    """
    endings = ("",) if Path(name).suffix in (".json", ".jsonl") else (".json", ".jsonl")
    candidates = [existing_path(name), *(workspace() / "data" / f"{name}{ending}" for ending in endings)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    where = start_of(name) if Path(name).parent != Path() else ""  # a bare one is a name rather than a path
    lines = " (or .jsonl)" if len(endings) > 1 else ""
    places = " or ".join(dict.fromkeys(map(str, candidates[:2])))
    found = "a folder" if candidates[0].is_dir() else f"none there{where}"
    raise DataError(name, f"a data file, {places}{lines}", found)


def find_data_files(name: str) -> list[Path]:
    """The files of data that may be a folder of shards: `find_data`'s file, or all .json and .jsonl in it, by name.

    What rollouts keep beside their files (.meta.json) is no data.

    Raises:
        DataError: no such file or folder, or a folder without one.
    """
    for folder in (existing_path(name), workspace() / "data" / name):
        if folder.is_dir():
            named = [path for path in folder.iterdir() if path.suffix in (".json", ".jsonl")]
            files = sorted(path for path in named if not path.name.endswith(".meta.json"))
            if not files:
                raise DataError(folder, "a folder with .json or .jsonl files", "none")
            return files
    return [find_data(name)]
