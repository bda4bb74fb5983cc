"""Where things lie: the folder that a command works in, and the data files named in a configuration."""

from pathlib import Path

from t3d.errors import DataError

SCRIPT_FOLDERS = ("sample", "data")
"""Folders that the release's commands are run from, one below the folder they work in."""


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
