"""Locks between processes, which end with the process that holds them: files in use, and work for one at a time."""

import errno
import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from t3d.errors import DataError

log = logging.getLogger(__name__)

UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


@dataclass
class _Claim:
    """This process's claim of a file."""

    descriptor: int
    num_owners: int = 0


_claims: dict[Path, _Claim] = {}


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Lets one process after the other into the block, by a lock on the file `path`.

    Where the file system has no locks, or each machine its own, several may be in it: what they do must come to the
    same.

    Raises:
        OSError: the file cannot be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNKNOWN:
            raise
        log.warning("%s cannot be locked (%s): processes may do the same work beside each other", path, error)
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, owner: object) -> bool:
    """Claims the file `path`, which is made if missing, for this process as long as `owner` lives.

    A process may claim a file for several owners; the last one's end ends the claim.

    Returns:
        False if another process has claimed it.  Where the file system has no locks nobody knows, and it is True.

    Raises:
        DataError: the file cannot be made.
    """
    place = path.resolve()
    if place not in _claims:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(path, "a file that can be written to", error.strerror) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return False
        except OSError as error:
            log.debug("%s: cannot be claimed (%s)", path, error)
        _claims[place] = _Claim(descriptor)
    _claims[place].num_owners += 1
    weakref.finalize(owner, _give_up, place)
    return True


def _give_up(place: Path) -> None:
    """One owner's claim; a lock of this kind goes with the first descriptor of its file that the process closes."""
    _claims[place].num_owners -= 1
    if not _claims[place].num_owners:
        os.close(_claims.pop(place).descriptor)


def mark_in_use(path: Path, owner: object) -> None:
    """Marks a file as in use as long as `owner` lives.

    A file system without such marks has none: there, only the time of the last use tells.

    Raises:
        OSError: no readable file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        log.debug("%s: cannot be marked as in use (%s)", path, error)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Whether no mark is on a file; if so, whoever wants to set one waits for the end of the block."""
    free = True
    with path.open("r+b") as file:  # some network file systems want that for this kind of lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:
            log.debug("%s: cannot be marked as in use (%s)", path, error)
        yield free
