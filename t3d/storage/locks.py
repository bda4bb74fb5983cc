"""Marks on files in use, which other processes see, and which end with the process that set them."""

import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


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
