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
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from t3d.errors import UserError
from t3d.grading.seccomp import denied_system_calls

NOBODY = 65534
STARTUP_S = 60.0
NONCE_BYTES = 64  # as in t3d.grading.inside
STDIN_FILE = ("--perms", "0444", "--ro-bind-data", "{fd}", "/dev/stdin")
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
        with _pipe_holding(calls) as calls_fd:
            if calls:
                prefix[1:1] = ["--seccomp", str(calls_fd)]
                passed.append(calls_fd)
            return subprocess.Popen(
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
    nonce = secrets.token_hex(NONCE_BYTES // 2)
    with tempfile.NamedTemporaryFile() as own:
        os.chmod(own.name, 0o666)
        code = _PROBE.format(path=own.name, environment=INSIDE)
        request = {"mode": "shared", "code": code, "test": "assert sealed()"}
        run = sandbox.run(request, timeout_s=10, nonce=nonce)
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
    for path in _package_folders(libraries):
        common += ["--tmpfs", path, "--remount-ro", path]
    for path in _memory_modules():
        common += ["--ro-bind", "/dev/null", path]
    for device in ("null", "zero", "random", "urandom"):
        common += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    common += ["{stdin}", *tmp, "--chdir", "/tmp", "--remount-ro", "/"]
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
    readable = [*_without_packages(libraries), "/dev/null", "/dev/urandom"]
    launch = (
        "import sys, sandlock\n"
        "tmp, max_processes, *command = sys.argv[1:]\n"
        f"box = sandlock.Sandbox(fs_readable={readable!r},\n"
        "    fs_writable=[tmp, '/dev/null'],\n"
        "    cwd=tmp, clean_env=True, env={'HOME': tmp, 'TMPDIR': tmp, 'LANG': 'C.UTF-8'},\n"
        "    max_processes=int(max_processes), no_coredump=True)\n"
        "sys.exit(box.run_interactive(command))\n"
    )
    yield Sandbox("sandlock", (sys.executable, "-I", "-c", launch, "{tmp}", "{num_threads}"), python=python, joins=False)


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


def _package_folders(libraries: Sequence[str]) -> list[str]:
    """Folders of installed packages among what is shown."""
    patterns = ("site-packages", "dist-packages", "*/site-packages", "*/dist-packages")
    found = {str(path) for library in libraries for pattern in patterns for path in Path(library).glob(pattern)}
    return sorted(path for path in found if os.path.isdir(path) and not os.path.islink(path))


def _without_packages(libraries: Sequence[str]) -> list[str]:
    """What is shown, entry by entry where packages lie in it."""
    hidden, shown = _package_folders(libraries), []
    pending = [path for path in libraries if os.path.exists(path)]
    while pending:
        path = pending.pop()
        if any(Path(folder).is_relative_to(path) for folder in hidden):
            pending += [] if path in hidden else [entry.path for entry in os.scandir(path)]
        else:
            shown.append(path)
    return shown


def _memory_modules() -> list[str]:
    """Extension modules that no honest solution needs, and that read and write any memory."""
    folder = sysconfig.get_config_var("DESTSHARED") or ""
    return sorted(str(path) for name in ("_ctypes*", "_test*") for path in Path(folder).glob(f"{name}.so"))


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
    """Kills whatever is left; bubblewrap takes its whole process namespace with it.

    Where this is process 1 nobody else waits for what bubblewrap started.
    """
    started = _children(process.pid) if os.getpid() == 1 else []
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in started:
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
