"""Where things lie: the folder that a command works in, and the data files named in a configuration."""

import os
from pathlib import Path

from t3d.errors import DataError

SCRIPT_FOLDERS = ("sample", "data")
"""Folders that the release's commands are run from, one below the folder they work in."""

CACHE_ROOT = "T3D_CACHE_ROOT"


def cache_root() -> Path:
    """The folder of everything that is kept only to save time: $T3D_CACHE_ROOT, or ~/.cache/t3d."""
    return Path(os.environ.get(CACHE_ROOT, "~/.cache/t3d")).expanduser()


def workspace() -> Path:
    """The folder that holds data/ and receives results: the current one, or its parent in a script folder."""
    here = Path.cwd()
    return here.parent if here.name in SCRIPT_FOLDERS else here


def dataset_name(name: str) -> str:
    """What results call the data set that a configuration names by file or by name."""
    return Path(name).name.removesuffix(".json")


def find_data(name: str) -> Path:
    """The file that a configuration calls `name`: a path, or a name in the workspace's data/.

    Raises:
        DataError: no such file; both places are named.
    """
    candidates = [Path(name).expanduser(), workspace() / "data" / f"{name}.json"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(name, f"a data file, {candidates[0]} or {candidates[1]}", "none there")


def find_data_files(name: str) -> list[Path]:
    """The files of data that may be a folder of shards: `find_data`'s file, or every .json of the folder, by name.

    Raises:
        DataError: no such file or folder, or a folder without one.
    """
    for folder in (Path(name).expanduser(), workspace() / "data" / name):
        if folder.is_dir():
            files = sorted(folder.glob("*.json"))
            if not files:
                raise DataError(folder, "a folder with .json files", "none")
            return files
    return [find_data(name)]
