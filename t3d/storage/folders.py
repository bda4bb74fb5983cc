"""Folders that appear whole or not at all."""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from t3d.errors import CheckpointError, DataError, named

log = logging.getLogger(__name__)


def make_folder(folder: Path) -> Path:
    """Returns `folder`, made if missing, with its parents.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(folder, "a folder that can be written to", error.strerror or error) from error
    return folder


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Turns what the libraries raise when they cannot write into one error that names `target`.

    Raises:
        CheckpointError: the block failed; what was saved before is untouched.
    """
    try:
        yield
    # torch.save has no error of its own for a full disk: its writer fails with a RuntimeError.
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(make_folder(target.parent)).free / 1e9
        found = f"{named(error)} ({free:.1f} GB free)"
        log.debug("%s", found, exc_info=error)
        raise CheckpointError(target, "room to save (all that was saved before is intact)", found) from error


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside `target` that takes its place once the block has ended without an error."""
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, target: Path) -> None:
    """Renames a finished folder to `target`, with every byte of it on the disk before; an older one goes.

    Whoever may read the folder may read its files: safetensors keeps those that it writes to their owner.
    """
    readers = temporary.stat().st_mode & 0o666
    for folder, _, names in os.walk(temporary):
        for path in (Path(folder, name) for name in names):
            with suppress(OSError):  # a file system without modes
                path.chmod(path.stat().st_mode | readers)
            sync(path)
        sync(Path(folder))
    old = _aside(target) if target.exists() else None
    temporary.rename(target)
    sync(target.parent)
    if old is not None:
        _tidy(old)


def remove_folder(folder: Path) -> None:
    """Removes a folder so that nobody ever finds a part of it under its name.

    Raises:
        OSError: it is still there, or under a name that `remove_leftovers` knows.
    """
    shutil.rmtree(_aside(folder))


def remove_leftovers(parent: Path) -> None:
    """Removes what killed processes left of folders under `parent` that were being written or removed."""
    for path in parent.glob(".*"):
        if path.suffix in (".tmp", ".old") and path.is_dir():
            _tidy(path)


def _tidy(folder: Path) -> None:
    """Removes a folder that nobody looks for any more.

    A network's file system holds back what a process still has open.  That is nothing to fail for: `remove_leftovers`
    comes again.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s cannot be removed yet (%s)", folder, error.strerror or error)


def _aside(folder: Path) -> Path:
    return folder.rename(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old"))


def sync(path: Path) -> None:
    """Makes a file's bytes, or what a folder lists, outlive the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
