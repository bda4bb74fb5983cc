"""Several decoding processes on one machine, watched by the one that started them."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from t3d.errors import UserError
from t3d.rollout.worker import Done, Share, decode_share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    """A line that a worker logs, to be logged by the process that has the terminal."""

    level: int
    text: str


Message = Done | UserError | _News


@dataclass
class _Worker:
    share: Share
    process: SpawnProcess
    missing: int
    mistake: UserError | None = None


def run_workers(shares: list[Share], report: Callable[[Done], None]) -> None:
    """Decodes every share in a process of its own; the machine's cores are split among them.

    A worker that fails or dies does not stop the others. However this ends, no worker is left behind; Ctrl-C
    reaches this process only.

    Args:
        shares: one per worker.
        report: told of every stored response.

    Raises:
        UserError: the first worker's mistake, or its death (exit status, responses missing), after the other
            workers have finished their shares.
    """
    workers: dict[Connection, _Worker] = {}
    running: dict[Connection, _Worker] = {}
    try:
        with _interrupts_ignored():  # which the workers inherit, from their first instruction on
            for share in shares:
                connection, process = _start()
                workers[connection] = running[connection] = _Worker(share, process, len(share.requests))
        threads = max(1, torch.get_num_threads() // len(shares))
        for connection, worker in workers.items():
            with suppress(OSError):  # it died; what follows notices
                connection.send((worker.share, threads))
        while running:
            ready = wait(list(running))
            for connection in [one for one in running if one in ready]:
                if not _hear(connection, running[connection], report):
                    del running[connection]
    finally:
        for connection, worker in workers.items():
            worker.process.kill()
            worker.process.join()
            connection.close()
    _raise_first([error for worker in workers.values() if (error := _failure(worker, len(shares)))])


def _start() -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that reading from ours ends with the worker
    return ours, process


def _hear(connection: Connection, worker: _Worker, report: Callable[[Done], None]) -> bool:
    """Takes one message of a worker; False if there will be none any more."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        return False
    if isinstance(message, UserError):
        worker.mistake = message
    elif isinstance(message, _News):
        log.log(message.level, "%s", message.text)
    else:
        worker.missing -= 1
        report(message)
    return True


def _failure(worker: _Worker, num_workers: int) -> UserError | None:
    status = worker.process.exitcode
    if worker.mistake is not None or not status:
        return worker.mistake
    ended = f"exit status {status}" if status > 0 else f"an end by {signal.Signals(-status).name}"
    found = f"{ended}, {worker.missing} of {len(worker.share.requests)} missing (the same command goes on from there)"
    return UserError(f"rollout worker {worker.share.worker} of {num_workers}", "all of its responses", found)


def _raise_first(failures: list[UserError]) -> None:
    for failure in failures[1:]:
        log.error("%s", failure)
    if failures:
        raise failures[0]


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _work(connection: Connection) -> None:
    """A worker process, from its start to its end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        share, threads = connection.recv()
    except EOFError:  # the parent is gone already
        return
    torch.set_num_threads(threads)

    def report(message: Message) -> None:
        with suppress(BrokenPipeError):  # the parent is gone, and so will this process be
            connection.send(message)

    _log_through(report, share.worker)
    try:
        decode_share(share, report)
    except UserError as error:
        report(error)


def _log_through(report: Callable[[Message], None], worker: int) -> None:
    """Sends what this worker logs to its parent: its warnings, and the first worker's news, which are everybody's."""

    class Sender(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            name = "" if worker == 0 else f"worker {worker}: "
            report(_News(record.levelno, name + record.getMessage()))

    logger = logging.getLogger("t3d")
    logger.addHandler(Sender())
    logger.setLevel(logging.INFO if worker == 0 else logging.WARNING)
    logger.propagate = False


def _end_with_parent() -> None:
    """Ends this process with its parent, however that dies; what is decoded is in the shard."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
