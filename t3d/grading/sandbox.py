"""Runs code that nobody trusts: one isolated, limited process per run.

Backends, best first: `bwrap` (bubblewrap: no network, a read-only system without /proc, a private /tmp, no
environment, an unprivileged user, no new processes), `sandlock` (PyPI, Landlock and seccomp, needs no root;
weaker: it keeps the caller's user, and files in memory are not counted), and `none` (limits and a process
group only), which is never chosen unless it is asked for by name. The sandbox offers Python's standard
library and nothing else: that is what the benchmarks need. What no limit bounds, only the timeout: the number
of (empty) files in bubblewrap's /tmp.
"""

import functools
import importlib.resources
import importlib.util
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from t3d.errors import UserError
from t3d.grading.seccomp import denied_system_calls

NOBODY = 65534
STARTUP_S = 60.0
STDERR_TAIL = 4096
# What a sandbox sets for itself; bubblewrap adds PWD, the C library LC_CTYPE.
INSIDE = {"PATH", "HOME", "LANG", "PWD", "TMPDIR", "LC_CTYPE"}
INSTALL = "bubblewrap (`apt-get install bubblewrap`) or sandlock (`pip install sandlock`)"


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

    `not_started` means that the sandbox or the harness failed before foreign code ran: nothing was learnt
    about that code.
    """

    end: Literal["exit", "timeout", "output_limit", "not_started"]
    returncode: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Sandbox:
    """A way to isolate a Python process: `prefix` goes before the interpreter's command line.

    `drop_inside` leaves it to the harness to give up root (it must bind an interpreter that only root can
    read); `drop_outside` starts the prefix itself as nobody.
    """

    name: str
    prefix: tuple[str, ...] = ()
    python: str = sys.executable
    drop_inside: bool = False
    drop_outside: bool = False
    filters_calls: bool = False
    counts_processes: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, request: dict[str, Any], timeout_s: float, limits: Limits | None = None) -> Run:
        """Serves one harness request; `timeout_s` starts when the foreign code does."""
        limits = limits or Limits()
        rlimits = limits.rlimits(timeout_s)
        if self.counts_processes:
            rlimits["RLIMIT_NPROC"] = limits.num_threads
        request = {**request, "limits": rlimits, "uid": None, "gid": NOBODY}
        if self.drop_inside:
            request["uid"] = _private_uid()
        try:
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp,
                _memory_file(json.dumps(request).encode()) as stdin,
                self._start(stdin, tmp, limits) as process,
            ):
                try:
                    return _watch(process, timeout_s, limits.output_mb << 20)
                finally:
                    _kill_group(process)
        except OSError as error:  # no process or descriptor to be had: that is not the fault of foreign code
            return Run("not_started", 0, b"", str(error))

    def _start(self, stdin: int, tmp: str, limits: Limits) -> "subprocess.Popen[bytes]":
        python = [self.python, "-I", "-S", "-X", "utf8", "-c", _harness_source()]
        values = {"{file_bytes}": limits.file_mb << 20, "{num_threads}": limits.num_threads, "{tmp}": tmp}
        prefix = [str(values.get(part, part)) for part in self.prefix]
        pass_fds: tuple[int, ...] = ()
        calls = denied_system_calls() if self.filters_calls else b""
        with _pipe_holding(calls) as calls_fd:
            if calls:
                prefix[1:1], pass_fds = ["--seccomp", str(calls_fd)], (calls_fd,)
            return subprocess.Popen(
                prefix + python,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment,
                cwd="/" if prefix else tempfile.gettempdir(),
                pass_fds=pass_fds,
                start_new_session=True,
                user=NOBODY if self.drop_outside else None,
                group=NOBODY if self.drop_outside else None,
                extra_groups=[] if self.drop_outside else None,
            )


def find_sandbox(name: str = "auto") -> Sandbox:
    """Returns the best sandbox that works here, or the one called `name`.

    Args:
        name: auto, bwrap, sandlock or none (no isolation: only ever by this name).

    Raises:
        UserError: if `name` is unknown or no such sandbox works on this machine.
    """
    if name not in ("auto", "bwrap", "sandlock", "none"):
        raise UserError("execute.sandbox", "auto, bwrap, sandlock or none", repr(name))
    found = _probe(name)
    if isinstance(found, Sandbox):
        return found
    expected = INSTALL if name == "auto" else f"a working {name}; install {INSTALL}"
    expected += ", or execute.sandbox=none to run model-written code without isolation"
    raise UserError("execute.sandbox", expected, "; ".join(found))


@functools.lru_cache(maxsize=4)
def _probe(name: str) -> Sandbox | tuple[str, ...]:
    """Returns the first sandbox that isolates, or why each one that was tried does not."""
    if name == "none":
        return Sandbox("none")
    candidates = {"bwrap": _bubblewraps, "sandlock": _sandlocks}
    reasons: list[str] = []
    for kind in candidates if name == "auto" else [name]:
        sandboxes = list(candidates[kind]())
        if not sandboxes:
            reasons.append(f"{kind}: not installed")
        for sandbox in sandboxes:
            reason = _flaw(sandbox)
            if reason is None:
                return sandbox
            reasons.append(f"{kind}: {reason}")
    return tuple(dict.fromkeys(reasons))


_PROBE = """
import os, socket
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return True
def escape():
    socket.socket().connect(("127.0.0.1", 9))
def spoil():
    with open({path!r}, "w") as file:
        file.write("spoilt")
def sealed():
    hidden = refused(open, {path!r})
    refused(spoil)
    return hidden and refused(escape) and set(os.environ) <= {environment!r}
"""


def _flaw(sandbox: Sandbox) -> str | None:
    """Tries the sandbox out: honest code runs; our files, environment and network stay out of reach.

    Returns:
        What is wrong, in its own words where it has any; None if nothing is.
    """
    nonce = secrets.token_hex(16)
    with tempfile.NamedTemporaryFile() as own:
        os.chmod(own.name, 0o666)
        code = _PROBE.format(path=own.name, environment=INSIDE)
        request = {"mode": "function", "code": code, "test": "assert sealed()", "nonce": nonce}
        run = sandbox.run(request, timeout_s=10)
        untouched = os.stat(own.name).st_size == 0
    if untouched and run.stdout == b"\n" + nonce.encode():
        return None
    if run.end == "not_started":
        return next(iter(run.stderr.strip().splitlines()), f"ended with status {run.returncode}")
    return "code inside it reached our files, environment or network" if run.end == "exit" else run.end


def _bubblewraps() -> Iterator[Sandbox]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return
    libraries, python = _runtime()
    options = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout
    tmp = ["--size", "{file_bytes}", "--tmpfs", "/tmp"] if "--size BYTES" in options else ["--tmpfs", "/tmp"]
    if "--perms OCTAL" in options:
        tmp = ["--perms", "1777", *tmp]
    common = ["--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin"]
    common += ["--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8", "--cap-drop", "ALL"]
    # bubblewrap makes the parents of a bind unreadable to others unless they exist before.
    parents = {str(parent) for path in [*libraries, "/dev/null"] for parent in Path(path).parents}
    for parent in sorted(parents - {"/"}):
        common += ["--dir", parent]
    for path in libraries:
        common += ["--ro-bind-try", path, path]
    for device in ("null", "zero", "random", "urandom"):
        common += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    common += [*tmp, "--chdir", "/tmp", "--remount-ro", "/"]
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    user = ["--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    bubblewrap = partial(Sandbox, "bwrap", python=python, filters_calls=True, counts_processes=True)
    is_root = os.geteuid() == 0
    if is_root:
        keep = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        yield bubblewrap((bwrap, *spaces, *common, *keep), drop_inside=True)
    yield bubblewrap((bwrap, *user, *common), drop_outside=is_root)


def _sandlocks() -> Iterator[Sandbox]:
    if importlib.util.find_spec("sandlock") is None:
        return
    libraries, python = _runtime()
    readable = [path for path in libraries if os.path.exists(path)] + ["/dev/null", "/dev/urandom"]
    launch = (
        "import sys, sandlock\n"
        "tmp, max_processes, *command = sys.argv[1:]\n"
        f"box = sandlock.Sandbox(fs_readable={readable!r},\n"
        "    fs_writable=[tmp, '/dev/null'],\n"
        "    cwd=tmp, clean_env=True, env={'HOME': tmp, 'TMPDIR': tmp, 'LANG': 'C.UTF-8'},\n"
        "    max_processes=int(max_processes), no_coredump=True)\n"
        "sys.exit(box.run_interactive(command))\n"
    )
    yield Sandbox("sandlock", (sys.executable, "-I", "-c", launch, "{tmp}", "{num_threads}"), python=python)


@functools.lru_cache(maxsize=1)
def _runtime() -> tuple[list[str], str]:
    """Returns what the sandbox must show for the base interpreter to run, and its real path."""
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    wanted = [
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        sysconfig.get_config_var("LIBDIR") or f"{sys.base_prefix}/lib",
        sysconfig.get_path("stdlib"),
        os.path.realpath(sysconfig.get_path("stdlib")),
        os.path.realpath(sysconfig.get_path("platstdlib")),
    ]
    shown: list[str] = []
    for path in wanted:
        if not any(Path(path).is_relative_to(parent) for parent in shown):
            shown.append(path)
    return [*shown, python], python


@functools.lru_cache(maxsize=1)
def _harness_source() -> str:
    return importlib.resources.files("t3d.grading").joinpath("inside.py").read_text(encoding="utf-8")


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

    The harness writes one byte when foreign code starts: until then the start-up allowance runs, not the
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
