"""Runs code that nobody trusts: one isolated, limited process per run, or two that are joined by a channel.

Backends, best first: `bwrap` (bubblewrap: no network, a read-only system without /proc, a private /tmp, no
environment, an unprivileged user, no new processes), `sandlock` (PyPI, Landlock and seccomp, needs no root;
weaker: it keeps the caller's user, and files in memory are not counted), and `none` (limits and a process
group only), which is never chosen unless it is asked for by name. The sandbox offers the standard library of the
base interpreter and nothing else, no installed packages: that is what the benchmarks need. What no limit bounds, only
the timeout: the number of (empty) files in bubblewrap's /tmp.
"""

import functools
import importlib.resources
import importlib.util
import json
import os
import re
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from t3d.errors import UserError
from t3d.grading.seccomp import denied_system_calls

NOBODY = 65534
_running: set[int] = set()  # sandboxes that somebody waits for
_starting = threading.Lock()
STARTUP_S = 60.0
NONCE_BYTES = 64  # as in t3d.grading.inside
STDIN_FILE = ("--perms", "0444", "--ro-bind-data", "{fd}", "/dev/stdin")
STDERR_TAIL = 4096


@dataclass(frozen=True)
class Limits:
    """What one run may use; `output_mb` bounds standard output, `file_mb` each file and all of /tmp."""

    memory_mb: int = 1024
    num_threads: int = 64
    file_mb: int = 64
    output_mb: int = 16

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"execute.{name}", "a positive number", value)

    def rlimits(self, timeout_s: float) -> dict[str, int]:
        """Returns the resource limits, CPU seconds being the second line behind the wall-clock timeout."""
        return {
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_FSIZE": self.file_mb << 20,
            "RLIMIT_CPU": int(timeout_s) + 5,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Run:
    """How a run ended: what it wrote, its exit status, and whether it was stopped.

    `not_started` means that the sandbox or what runs inside it failed before foreign code ran: nothing was learnt
    about that code.
    """

    end: Literal["exit", "timeout", "output_limit", "not_started"]
    returncode: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Sandbox:
    """A way to isolate a Python process: `prefix` goes before the interpreter's command line.

    `drop_inside` leaves it to what runs inside to give up root (the sandbox must bind an interpreter that only root can
    read); `drop_outside` starts the prefix itself as nobody; `joins` means that two runs can share a channel.
    """

    name: str
    prefix: tuple[str, ...] = ()
    python: str = sys.executable
    drop_inside: bool = False
    drop_outside: bool = False
    filters_calls: bool = False
    counts_processes: bool = False
    joins: bool = True
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, request: dict[str, Any], timeout_s: float, limits: Limits | None = None, nonce: str = "") -> Run:
        """Serves one request of `t3d.grading.inside`; `timeout_s` starts when the foreign code does."""
        limits = limits or Limits()
        try:
            with self._started(request, timeout_s, limits, nonce) as process:
                return _watch(process, timeout_s, limits.output_mb << 20)
        except OSError as error:  # no process or descriptor to be had: that is not the fault of foreign code
            return Run("not_started", 0, b"", str(error))

    def run_apart(self, code: str, test: str, timeout_s: float, limits: Limits, nonce: str) -> Run:
        """Runs a test in one sandbox and the solution that it calls in another, see `t3d.grading.inside_apart`.

        Returns:
            How the test's run ended; nothing that the solution writes is looked at.
        """
        try:
            ours, theirs = socket.socketpair()
            with (
                closing(ours),
                closing(theirs),
                self._started(
                    {"mode": "solution", "code": code, "channel": theirs.fileno()}, timeout_s, limits, shared=theirs
                ),
                self._started(
                    {"mode": "test", "test": test, "channel": ours.fileno()}, timeout_s, limits, nonce, shared=ours
                ) as process,
            ):
                ours.close()
                theirs.close()  # so that either process notices the other's end
                return _watch(process, timeout_s, limits.output_mb << 20)
        except OSError as error:
            return Run("not_started", 0, b"", str(error))

    @contextmanager
    def _started(
        self,
        request: dict[str, Any],
        timeout_s: float,
        limits: Limits,
        nonce: str = "",
        shared: socket.socket | None = None,
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A running sandbox; whatever is left of it is killed in the end."""
        rlimits = limits.rlimits(timeout_s)
        if self.counts_processes:
            rlimits["RLIMIT_NPROC"] = limits.num_threads
        request = {**request, "limits": rlimits, "uid": _private_uid() if self.drop_inside else None, "gid": NOBODY}
        written = json.dumps(request).encode()
        content = len(written).to_bytes(8, "little") + written + nonce.encode().ljust(NONCE_BYTES)
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp,
            _memory_file(content) as stdin,
            _stdin_file(request.get("stdin"), "{stdin}" in self.prefix) as given,
            self._start(stdin, tmp, limits, given, shared, quiet=request["mode"] == "solution") as process,
        ):
            try:
                yield process
            finally:
                _kill_group(process)

    def _start(
        self, stdin: int, tmp: str, limits: Limits, given: int | None, shared: socket.socket | None, quiet: bool
    ) -> "subprocess.Popen[bytes]":
        python = [self.python, "-I", "-S", "-X", "utf8", "-c", _inside_source()]
        values = {"{file_bytes}": limits.file_mb << 20, "{num_threads}": limits.num_threads, "{tmp}": tmp}
        passed = [] if shared is None else [shared.fileno()]
        stdin_file: list[str] = []
        if given is not None:
            stdin_file = [part.format(fd=given) for part in STDIN_FILE]
            passed.append(given)
        prefix: list[str] = []
        for part in self.prefix:
            prefix += stdin_file if part == "{stdin}" else [str(values.get(part, part))]
        calls = denied_system_calls() if self.filters_calls else b""
        output = subprocess.DEVNULL if quiet else subprocess.PIPE
        with _pipe_holding(calls) as calls_fd, _starting:
            if calls:
                prefix[1:1] = ["--seccomp", str(calls_fd)]
                passed.append(calls_fd)
            process = subprocess.Popen(
                prefix + python,
                stdin=stdin,
                stdout=output,
                stderr=output,
                env=self.environment,
                cwd="/" if prefix else tempfile.gettempdir(),
                pass_fds=passed,
                start_new_session=True,
                user=NOBODY if self.drop_outside else None,
                group=NOBODY if self.drop_outside else None,
                extra_groups=[] if self.drop_outside else None,
            )
            _running.add(process.pid)
            return process


@functools.lru_cache(maxsize=1)
def _inside_source() -> str:
    """What runs inside as one source: `inside` with what it imports from here in place of the imports."""
    folder = importlib.resources.files("t3d.grading")
    names = ("wire", "inside_shared", "inside_apart", "inside")
    sources = [folder.joinpath(f"{name}.py").read_text(encoding="utf-8") for name in names]
    return re.sub(r"^from t3d\.grading.*\n", "", "\n".join(sources), flags=re.MULTILINE)


def _private_uid() -> int:
    """Returns a user id of this run alone, as RLIMIT_NPROC counts per user, where ids that high exist."""
    mapped = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return (1 << 30) + secrets.randbelow(1 << 29) if mapped >= (1 << 32) - 1 else NOBODY


@contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("request")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _stdin_file(text: str | None, wanted: bool) -> Iterator[int | None]:
    """What /dev/stdin is made from: opened by its name, it is read from its start."""
    if text is None or not wanted:
        yield None
    else:
        with _memory_file(text.encode("utf-8", "surrogatepass")) as descriptor:
            yield descriptor


@contextmanager
def _pipe_holding(data: bytes) -> Iterator[int]:
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _watch(process: "subprocess.Popen[bytes]", timeout_s: float, output_limit: int) -> Run:
    """Collects output until the process ends, the time is up or the output is too long.

    What runs inside writes one byte when foreign code starts: until then the start-up allowance runs, not the
    timeout.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    deadline, started = time.monotonic() + STARTUP_S, False

    def result(end: Literal["exit", "timeout", "output_limit", "not_started"]) -> Run:
        text = stderr.decode("utf-8", "replace")
        return Run(end if stdout else "not_started", process.returncode or 0, bytes(stdout), text)

    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, stdout)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                _read_into(key.data, key.fileobj, selector)
            del stderr[:-STDERR_TAIL]
            if stdout and not started:
                deadline, started = time.monotonic() + timeout_s, True
            if len(stdout) > output_limit:
                return result("output_limit")
            if time.monotonic() >= deadline:
                return result("timeout")
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return result("timeout")
    return result("exit")


def _read_into(sink: bytearray, source: Any, selector: selectors.BaseSelector) -> None:
    stream: IO[bytes] = source
    chunk = os.read(stream.fileno(), 1 << 16)
    if chunk:
        sink += chunk
    else:
        selector.unregister(stream)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kills whatever is left; bubblewrap takes its whole process namespace with it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _running.discard(process.pid)
    if os.getpid() == 1:
        _reap_orphans()


def _reap_orphans() -> None:
    """Waits for what bubblewrap left behind, as nobody else does where this is process 1 of a container.

    Only bubblewrap's are: other parts of the program may wait for children of their own.
    """
    with _starting:
        children = {
            int(child) for path in Path("/proc/1/task").glob("*/children") for child in path.read_text().split()
        }
        orphans = children - _running
    for child in orphans:
        with suppress(OSError):  # another thread was faster
            if Path(f"/proc/{child}/comm").read_text() == "bwrap\n":
                os.waitpid(child, 0)  # its end came with its parent's
