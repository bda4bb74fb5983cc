"""Decoding processes on one machine, watched by the one that started them, and kept for what it decodes next."""

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
from t3d.rollout.worker import Done, Loaded, Share, decode_share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    """A line that a worker logs, to be logged by the process that has the terminal."""

    level: int
    text: str


@dataclass(frozen=True)
class _Finished:
    """A worker has no more to do for its share."""


Message = Done | UserError | _News | _Finished


@dataclass
class _Worker:
    """A process, and what became of its share.

    Attributes:
        process: which waits for a share, or works on it.
        connection: to it.
        missing: responses that it has not reported.
        mistake: why it stopped early.
        finished: it can have another share.
    """

    process: SpawnProcess
    connection: Connection
    missing: int = 0
    mistake: UserError | None = None
    finished: bool = True


class Workers:
    """Processes that decode, one share at a time, and keep their networks between shares, until the block ends.

    `with Workers() as workers: workers.decode(shares, report)`, as often as there is something to decode.  However the
    block ends, none is left behind; Ctrl-C reaches this process only.
    """

    def __init__(self) -> None:
        """Starts none: they come with the first shares."""
        self._workers: list[_Worker] = []
        self._own = Loaded()

    def __enter__(self) -> "Workers":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends them."""
        self._end()

    def decode(self, shares: list[Share], report: Callable[[Done], None]) -> None:
        """Decodes one share in this process; several in a process each, among which the machine's cores are split.

        A worker that fails or dies does not stop the others.

        Args:
            shares: one per worker.
            report: told of every stored response.

        Raises:
            UserError: the first worker's mistake, or its death (exit status, responses missing), after the other
                workers have finished their shares.
        """
        if len(shares) == 1:
            decode_share(shares[0], report, self._own)
        elif shares:
            try:
                self._start(len(shares))
                self._decode(shares, report)
            except BaseException:
                self._end()  # some may be at work
                raise

    def _start(self, number: int) -> None:
        """So many workers that wait for a share; those that died are replaced."""
        context = get_context("spawn")
        with _interrupts_ignored():  # which the workers inherit, from their first instruction on
            for place in range(number):
                if place < len(self._workers):
                    if self._workers[place].process.is_alive():
                        continue
                    self._workers[place].connection.close()
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, place), daemon=True)
                process.start()
                theirs.close()  # so that reading from ours ends with the worker
                self._workers[place : place + 1] = [_Worker(process, ours)]

    def _decode(self, shares: list[Share], report: Callable[[Done], None]) -> None:
        workers, threads = self._workers[: len(shares)], max(1, torch.get_num_threads() // len(shares))
        for worker, share in zip(workers, shares, strict=True):
            worker.missing, worker.mistake, worker.finished = len(share.requests), None, False
            with suppress(OSError):  # it died; what follows notices
                worker.connection.send((share, threads))
        running = {worker.connection: worker for worker in workers}
        while running:
            ready = wait(list(running))
            for connection in [one for one in running if one in ready]:
                if not _hear(running[connection], report):
                    del running[connection]
        failures = [_failure(worker, share, len(shares)) for worker, share in zip(workers, shares, strict=True)]
        _raise_first([failure for failure in failures if failure is not None])

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers.clear()


def _hear(worker: _Worker, report: Callable[[Done], None]) -> bool:
    """Takes one message of a worker; False if there will be none any more of its share."""
    try:
        message = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        return False
    if isinstance(message, UserError):
        worker.mistake = message
    elif isinstance(message, _News):
        log.log(message.level, "%s", message.text)
    elif isinstance(message, _Finished):
        worker.finished = True
    else:
        worker.missing -= 1
        report(message)
    return not worker.finished


def _failure(worker: _Worker, share: Share, num_workers: int) -> UserError | None:
    if worker.mistake is not None or worker.finished:
        return worker.mistake
    status = worker.process.exitcode
    ended = f"an end by {signal.Signals(-status).name}" if status and status < 0 else f"exit status {status}"
    found = f"{ended}, {worker.missing} of {len(share.requests)} missing (the same command goes on from there)"
    return UserError(f"rollout worker {share.worker} of {num_workers}", "all of its responses", found)


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


def _work(connection: Connection, worker: int) -> None:
    """A worker process of this number, from its start to its end."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    loaded = Loaded()

    def report(message: Message) -> None:
        with suppress(BrokenPipeError):  # the parent is gone, and so will this process be
            connection.send(message)

    _log_through(report, worker)
    while True:
        try:
            share, threads = connection.recv()
        except EOFError:  # the parent is gone
            return
        torch.set_num_threads(threads)
        try:
            decode_share(share, report, loaded)
        except UserError as error:
            report(error)
        report(_Finished())


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


def end_with_parent() -> None:
    """Ends this process with its parent, however that dies: else it would write where the next one does."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
