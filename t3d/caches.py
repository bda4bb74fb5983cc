"""What lies under $T3D_CACHE_ROOT to save time: list it, and remove what has not been used for long.

`prune` says what it would remove, and removes it with --yes.  What a running process uses stays.
"""

from t3d.entry import CACHES, run_entry

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from t3d.arguments import ArgumentParser
from t3d.errors import DataError
from t3d.storage.folders import remove_folder
from t3d.storage.locks import unused
from t3d.storage.paths import DATASETS, cache_root

log = logging.getLogger(__name__)

EXAMPLE = "python -m t3d.caches prune --days 30 --yes"
KINDS = (DATASETS, *CACHES.values())
DAY_S = 24 * 60 * 60
BEING_BUILT_S = 60 * 60
"""What was written to so lately may be under construction."""
LOCK = ".lock"
"""Ending of the empty files that builders of training data wait for each other with.  They stay: whoever waits for one
must not find another in its place."""


@dataclass(frozen=True)
class Entry:
    """Something that can be removed by itself, and is built again when it is missed.

    Attributes:
        path: a file of training data, or a compiler's file or folder.
        kind: of `KINDS`.
        size: bytes.
        used: seconds since the epoch, when it was read or written last.
        in_use: whether a running process may need it.
    """

    path: Path
    kind: str
    size: int
    used: float
    in_use: bool


def entries(root: Path) -> list[Entry]:
    """Everything that this project and its compilers keep under `root`, and nothing else that lies there."""
    opened, now = opened_files(), time.time()
    paths = [(kind, path) for kind in KINDS if (root / kind).is_dir() for path in sorted((root / kind).iterdir())]
    return [_entry(path, kind, opened, now) for kind, path in paths if path.suffix != LOCK]


def opened_files() -> set[Path]:
    """What processes of this machine have open or mapped, as far as the system lets this user see it."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            found.update(Path(file.path) for file in process.open_files())
            if psutil.LINUX:
                found.update(_mapped(process.pid))
        except (psutil.Error, OSError):  # another user's, or one that has just ended
            continue
    return found


def prune(found: list[Entry], days: float, remove: bool) -> list[Entry]:
    """The entries that have not been used for so many days and are not in use; removes them if told to.

    Raises:
        DataError: one cannot be removed.
    """
    oldest = time.time() - days * DAY_S
    chosen = [entry for entry in found if not entry.in_use and entry.used <= oldest]
    return [entry for entry in chosen if _remove(entry)] if remove else chosen


def main(arguments: list[str]) -> None:
    """Lists the caches, or removes what is old.

    Raises:
        UserError: wrong arguments, or something that cannot be removed.
    """
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("action", choices=("list", "prune"), help="what to do")
    parser.add_argument("--days", type=float, default=30.0, help="prune: what was not used for so long")
    parser.add_argument("--yes", action="store_true", default=False, help="prune: remove it, do not only say so")
    asked = parser.parse_args(arguments)
    root = cache_root()
    found = entries(root)
    if asked.action == "prune":
        found = prune(found, asked.days, asked.yes)
    sys.stdout.write("".join(f"{line}\n" for line in _lines(found, root)))
    if asked.action == "prune":
        log.info("%s", "removed" if asked.yes else "nothing is removed without --yes")


def _entry(path: Path, kind: str, opened: set[Path], now: float) -> Entry:
    """One entry; what ends while it is looked at counts for nothing."""
    size, used, written = 0, 0.0, 0.0
    for part in (path, *path.rglob("*")):
        try:
            facts = part.lstat()
        except FileNotFoundError:
            continue
        written = max(written, facts.st_mtime)
        used = max(used, facts.st_mtime, facts.st_atime if part.is_file() else 0.0)
        size += facts.st_size if part.is_file() else 0
    real = path.resolve()
    in_use = written > now - BEING_BUILT_S or any(file == real or real in file.parents for file in opened)
    return Entry(path, kind, size, used, in_use or not _is_unmarked(path))


def _is_unmarked(path: Path) -> bool:
    if not path.is_file():
        return True
    try:
        with unused(path) as nobody:
            return nobody
    except FileNotFoundError:  # gone meanwhile
        return True
    except PermissionError:  # another user's
        return False


def _mapped(pid: int) -> Iterator[Path]:
    """Files that a process has in its memory without having them open: libraries, training data."""
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        _, _, name = line.partition("/")
        if name:
            yield Path(f"/{name}")


def _remove(entry: Entry) -> bool:
    """Removes an entry that nobody uses by now either; returns whether it did."""
    try:
        if entry.path.is_dir():
            remove_folder(entry.path)
            return True
        with unused(entry.path) as nobody:
            if nobody:
                entry.path.unlink()
            return nobody
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataError(entry.path, "something that can be removed", error.strerror or error) from error


def _lines(found: list[Entry], root: Path) -> Iterator[str]:
    """The entries by kind, as people read them."""
    now = time.time()
    for entry in found:
        days = max(0.0, now - entry.used) / DAY_S
        state = ", in use or just written" if entry.in_use else ""
        yield f"{entry.size / 1e6:10.1f} MB  {days:5.0f} days  {entry.path.relative_to(root)}{state}"
    yield f"{sum(entry.size for entry in found) / 1e6:10.1f} MB  in {len(found)} of {root}"


if __name__ == "__main__":
    run_entry(main)
