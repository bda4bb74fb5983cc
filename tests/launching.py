"""Scripts in processes of their own, forked from a server that has loaded the libraries.

What runs is what `python SCRIPT ...` and `torchrun` run, with the same environment, folder and status; only the four
seconds of each process's imports are paid once.  (A few tests start the real commands: test_entries, test_launch,
test_docs.)
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]

PRELOADED = ["t3d.entry", "deepspeed", "t3d.training.loop", "t3d.rollout.run", "t3d.evaluation.run"]
LOADED_WITH = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", "PYTHONPATH": str(ROOT)}
"""The environment that libraries read as they are loaded."""

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(PRELOADED)


def run(command: list[str], environment: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs what stands after `python` on a command line, a script or `-m module`, and returns what it said."""
    [ended] = _run([command], [_environment(environment or {})], cwd)
    return ended


def launch(processes: int, command: list[str], **environment: str) -> list[subprocess.CompletedProcess]:
    """Runs it in processes that know of each other as torchrun's do; one that fails ends the others."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, **environment}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return _run([command] * processes, [_environment(shared | rank) for rank in ranks], ROOT)


def _environment(changes: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **LOADED_WITH, **changes}


def _run(commands: list[list[str]], environments: list[dict[str, str]], cwd: Path) -> list[subprocess.CompletedProcess]:
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            said = (f"{folder}/{number}.out", f"{folder}/{number}.err")
            started.append((_start(command, environment, cwd, said), said))
        _wait([process for process, _ in started])
        return [
            subprocess.CompletedProcess(command, process.exitcode, *(Path(path).read_text() for path in said))
            for command, (process, said) in zip(commands, started, strict=True)
        ]


def _start(command: list[str], environment: dict[str, str], cwd: Path, said: tuple[str, str]) -> ForkServerProcess:
    before = dict(os.environ)
    os.environ.update(LOADED_WITH)  # the first start makes the server, which keeps this environment
    try:
        process = server.Process(target=_child, args=(command, environment, cwd, said))
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def _wait(processes: list[ForkServerProcess]) -> None:
    """Until all have ended; when one fails the others are ended, as torchrun does."""
    try:
        while running := [process for process in processes if process.exitcode is None]:
            if any(process.exitcode for process in processes):
                for process in running:
                    process.join(1)
                    process.kill()
            time.sleep(0.02)
    finally:  # none outlives a test that is stopped
        for process in processes:
            process.kill()


def _child(command: list[str], environment: dict[str, str], cwd: Path, said: tuple[str, str]) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    module = command[0] == "-m"
    sys.argv = command[1:] if module else command
    try:
        if module:
            sys.path.insert(0, str(cwd))
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(command[0]).resolve().parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without
