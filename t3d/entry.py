"""What every entry point does around its work: logging, cache folders, and one line for a user's mistake.

An entry imports this before anything else (the linter's order of imports sees to it), because torch's thread library
reads the environment as it is loaded: see `wait_briefly`.
"""

import ctypes
import errno
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from t3d.errors import DataError, DeviceFullError, Terminated, UserError, one_line
from t3d.storage.paths import cache_root

CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}

NOISY_LIBRARIES = ("accelerate", "DeepSpeed")

REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.ESTALE),
}
"""What a file system answers to a user's mistake, or for want of rights or room: wherever it comes from, one line says
it."""
BROKEN_PIPE, INTERRUPTED, TERMINATED = (128 + number for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM))
"""Status of a process whose reader has gone, and of those that a signal ends, as a shell gives it."""
PR_SET_PDEATHSIG = 1
LAUNCHER = re.compile(r"(.*/)?accelerate(-launch)?|accelerate\.commands\..*")
"""A word of the command line that starts processes."""

SPINS = "1000"
"""Rounds that an idle thread waits awake, some 20 microseconds: most operations of a layer come sooner."""


def wait_briefly() -> None:
    """Lets GNU's OpenMP, which torch brings along, put idle threads to sleep soon, where nothing is set.

    By default they wait awake for milliseconds, and take the cores from whatever else runs: training beside busy
    neighbours was ten times slower.  Child processes inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


wait_briefly()


def run_entry(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point on the command line: status 0 on success, 2 with one line for a user's mistake.

    Ctrl-C gives one line and status 130, SIGTERM the same and 143, a reader of the output that is gone (`| head`) none
    and 141. Under torchrun only local rank 0 tells news and prints the line: every process meets the same mistake, but
    for a device that is full. A process of a launch of several that fails ends at once (`_end`), by SIGTERM too.
    """
    logging.basicConfig(format="%(message)s")
    for ours in ("t3d", "__main__"):  # the libraries' own news is not the user's
        logging.getLogger(ours).setLevel(logging.INFO if _is_first() else logging.WARNING)
    quiet_libraries()
    use_cache_root()
    reproducible_products()
    end_with_launcher()
    if not _is_launched():
        raise_terminated()
    try:
        main(sys.argv[1:])
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, KeyboardInterrupt | Terminated):
            _ignore_further_signals()
        verdict = _verdict(error)
        if verdict is None:
            if not _is_launched():
                raise
            traceback.print_exc()
            _end(1)
        status, line = verdict
        if line and (_is_first() or isinstance(error, DeviceFullError)):
            sys.stderr.write(f"{line}\n")
        _end(status)


def _verdict(error: BaseException) -> tuple[int, str] | None:
    """Status and line of what ended an entry; None of a fault of the program."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, ImportError):  # entries import their stage where they run it
        expected = "Python packages that load (python -m t3d.doctor examines them)"
        return 2, f"error: {error.name or 'import'}: expected {expected}, found {one_line(error)}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted: {error}" if str(error) else "interrupted"
    if isinstance(error, Terminated):
        return TERMINATED, f"terminated: {error}" if str(error) else "terminated"
    if isinstance(error, BrokenPipeError) and _has_lost_its_reader():
        return BROKEN_PIPE, ""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        place = error.filename or "output"
        return 2, f"error: {DataError(place, 'a place that this process may use, with room', error.strerror)}"
    return None


def _has_lost_its_reader() -> bool:
    """Whether nobody reads the standard output any more; what is left to write then goes nowhere."""
    output, states = sys.stdout.fileno(), select.poll()
    states.register(output, select.POLLOUT)
    lost = any(state & select.POLLERR for _, state in states.poll(0))
    if lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return lost


def _end(status: int) -> NoReturn:
    """Ends this process; in a launch without leaving the others' group.

    NCCL's group is left by all together: one that failed alone would wait for the others, which wait for it, and no
    launcher would know.  A process that is gone ends them.
    """
    if _is_launched():
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    sys.exit(status)


def end_with_launcher() -> None:
    """Lets this process end with the `accelerate launch` that started it, if one did (on Linux).

    That hands a signal on to no single process: killed alone it would leave one behind that goes on training.
    """
    launcher = os.getppid()
    with suppress(OSError):  # another system than Linux, or one that hides processes
        words = Path(f"/proc/{launcher}/cmdline").read_text(errors="replace").split("\0")
        if any(LAUNCHER.fullmatch(word) for word in words):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != launcher:  # it has ended meanwhile
                os.kill(os.getpid(), signal.SIGTERM)


def raise_terminated() -> None:
    """Lets SIGTERM, which a scheduler sends, raise `Terminated`, unless something else is made of it."""
    owner = os.getpid()

    def handle(number: int, _frame: object) -> None:
        if os.getpid() == owner:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)  # a copy of this process that a library made
        os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle)


def _ignore_further_signals() -> None:
    """Lets an end that has begun come to its end: libraries would tell of every further Ctrl-C in many lines."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _is_launched() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def use_cache_root() -> None:
    """Points the compilers' caches under $T3D_CACHE_ROOT (~/.cache/t3d), where they are not set one by one.

    In a launch of several machines each has its own: they replace files in a way that a network's file system shows
    to other machines as stale.
    """
    own = socket.gethostname() if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" else ""
    for variable, folder in CACHES.items():
        os.environ.setdefault(variable, str(cache_root() / folder / own))


def quiet_libraries() -> None:
    """Drops what libraries tell of themselves in a normal run ("Removed shared tensor", "Setting accelerator to CPU").

    Their errors stay.  What matters of their warnings is checked and told by this project.
    """
    for name in NOISY_LIBRARIES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.addFilter(_is_error)  # DeepSpeed sets its level, and a handler of its own, when it is imported


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def reproducible_products() -> None:
    """Asks MKL, the matrix library of CPU builds, to add up every product in the same order, where it is not set.

    By default the order depends on the number of rows and threads.  Linear layers that decode do not use MKL (see
    `t3d.sdar.products`), attention does.  MKL reads this at its first product, and heeds it on Intel's processors.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
