"""Which sandbox works on this machine: bubblewrap or sandlock, tried out before anything is trusted to it.

It shows the standard library of the base interpreter, and no installed packages.
"""

import functools
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from t3d.errors import UserError
from t3d.grading.sandbox import NOBODY, NONCE_BYTES, Sandbox

# What a sandbox sets for itself; bubblewrap adds PWD, the C library LC_CTYPE.
INSIDE = {"PATH", "HOME", "LANG", "PWD", "TMPDIR", "LC_CTYPE"}
INSTALL = "bubblewrap (`apt-get install bubblewrap`) or sandlock (`pip install sandlock`)"


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
    yield Sandbox(
        "sandlock", (sys.executable, "-I", "-c", launch, "{tmp}", "{num_threads}"), python=python, joins=False
    )


@functools.lru_cache(maxsize=1)
def _runtime() -> tuple[list[str], str]:
    """Returns what the sandbox must show for the base interpreter to run, and its real path."""
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    wanted = [
        *_system_libraries(),
        "/etc/ld.so.cache",
        sysconfig.get_config_var("LIBDIR") or f"{sys.base_prefix}/lib",
        sysconfig.get_path("stdlib"),
        os.path.realpath(sysconfig.get_path("stdlib")),
        os.path.dirname(sysconfig.get_config_var("DESTSHARED") or sysconfig.get_path("stdlib")),
        "/usr/lib/locale",
    ]
    shown: list[str] = []
    for path in wanted:
        if not any(Path(path).is_relative_to(parent) for parent in shown):
            shown.append(path)
    return [*shown, python], python


def _system_libraries() -> list[str]:
    """Where the C library and its like lie; where they have a folder of their own, not what lies beside it."""
    machine = sysconfig.get_config_var("MULTIARCH") or ""
    own = [f"{folder}/{machine}" for folder in ("/usr/lib", "/lib")]
    apart = bool(machine) and any(next(Path(folder).glob("libc.so*"), None) for folder in own)
    return [*(own if apart else ("/usr/lib", "/lib")), "/usr/lib64", "/lib64"]


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
