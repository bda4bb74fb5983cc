"""Work in processes of their own, forked from a server that has loaded the libraries."""

from t3d.entry import quiet_libraries

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from t3d.rollout.pool import end_with_parent
from t3d.storage.folders import make_folder

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
PRELOADED = ["t3d.entry", "t3d.arena.work"]


def run_each(
    function: Callable[[Any], None], tasks: Sequence[tuple[Any, Path]], processes: int
) -> Iterator[tuple[int, str | None]]:
    """Runs `function` on each task, each in a fresh process of one thread; one that fails ends alone.

    The processes end with this one, however it ends.

    Args:
        function: found by its name in the process.
        tasks: its argument, and the file that takes what the process says.
        processes: that run at a time.

    Yields:
        The number of a task that has ended, and why it failed, in a line; None: it did not.
    """
    os.environ.update(ONE_THREAD)  # the server keeps this environment
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running: dict[int, tuple[int, ForkServerProcess]] = {}
    waiting = list(enumerate(tasks))
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                number, (task, log) = waiting.pop(0)
                process = context.Process(target=_child, args=(function, task, make_folder(log.parent) / log.name))
                process.start()
                running[process.sentinel] = number, process
            for ended in wait(list(running)):
                assert isinstance(ended, int)
                number, process = running.pop(ended)
                process.join()
                yield number, _failure(process.exitcode, tasks[number][1])
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _failure(status: int | None, log: Path) -> str | None:
    """Why a process failed: the last line that it said, which is its error, or the signal that ended it."""
    if status == 0:
        return None
    if status is not None and status < 0:
        return f"ended by {signal.Signals(-status).name}"
    said = log.read_text(errors="replace").strip().splitlines()
    return said[-1] if said else f"status {status}"


def _child(function: Callable[[Any], None], task: Any, log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to heed
    logging.basicConfig(format="%(message)s")
    logging.getLogger("t3d").setLevel(logging.INFO)
    quiet_libraries()
    torch.set_num_threads(1)
    function(task)
