"""Child processes that compare answers, so that no expression can hang or crash the caller."""

import importlib
import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import psutil

BUSY = 4
"""How many times its limit a comparison may take by the clock: where other programs have the cores, nobody's grade
depends on them."""

Status = Literal["graded", "timeout", "crashed", "error"]


@dataclass(frozen=True)
class Reply:
    """What became of one comparison; `same` is False unless it was "graded"."""

    same: bool
    status: Status = "graded"
    detail: str = ""


class Worker:
    """A child process that makes one comparison at a time, replaced when it hangs or dies.

    A fresh interpreter over pipes and not multiprocessing's spawn, which would import the caller's main
    module again.
    """

    def __init__(self, memory_mb: int, *modules: str) -> None:
        """Prepares a worker, whose process starts with the first comparison.

        Args:
            memory_mb: its address space.
            modules: with a function `same(prediction, truth)` each; imported before the first comparison.
        """
        self.memory_mb = memory_mb
        self.modules = modules
        self.process: subprocess.Popen[bytes] | None = None

    def compare(self, module: str, pair: tuple[str, str], timeout_s: float) -> Reply:
        """Returns what the module's `same` says of a (prediction, truth) pair, `timeout_s` being computing time."""
        try:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([module, *pair]).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            self.stop()
            return Reply(False, "error", f"no math worker: {error}")
        if not _answers(process, timeout_s):
            self.stop()
            return Reply(False, "timeout")
        reply = process.stdout.readline()
        if not reply.strip():
            self.stop()
            return Reply(False, "crashed")
        return Reply(**json.loads(reply))

    def stop(self) -> None:
        """Ends the process; the next comparison starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is None or self.process.poll() is not None:
            self.stop()
            code = f"from {__name__} import serve; serve({self.memory_mb}, {self.modules})"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            assert self.process.stdout is not None
            self.process.stdout.readline()
        return self.process


def _answers(process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
    """Whether a process answers before it has computed for `timeout_s`; on a busy machine it may take longer."""
    assert process.stdout is not None
    last, spent = time.monotonic() + BUSY * timeout_s, _computing_s(process.pid)
    left = timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not selector.select(max(left, 0.01)):
            left = timeout_s - (_computing_s(process.pid) - spent)
            if left <= 0 or time.monotonic() > last:
                return False
    return True


def _computing_s(pid: int) -> float:
    """Seconds that a process has spent on a core; none if it is gone, which its closed pipe tells."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def serve(memory_mb: int, modules: tuple[str, ...]) -> None:
    """Compares the pairs that standard input brings, one JSON line each, until it closes: a worker's life."""
    import resource

    same = {module: importlib.import_module(module).same for module in modules}
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing else may write where the replies go

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({})
    for line in sys.stdin:
        module, prediction, truth = json.loads(line)
        try:
            reply({"same": same[module](prediction, truth)})
        except (RecursionError, OverflowError, MemoryError):
            reply({"same": False, "status": "crashed"})
