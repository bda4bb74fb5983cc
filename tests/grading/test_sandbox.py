# ruff: noqa: E501  (a hostile program per line reads best)
import os
import shutil
import subprocess
import sys
import time

import pytest

from t3d.errors import UserError
from t3d.grading import isolation
from t3d.grading import sandbox as module
from t3d.grading.code_grader import Program, grade_code_many, run_stdio, run_tests
from t3d.grading.isolation import find_sandbox
from t3d.grading.sandbox import Limits
from t3d.grading.seccomp import denied_system_calls

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

# Each defines f, which the test wants to be the identity, and gets it wrong.
HOSTILE = {
    "sys.exit on import": "import sys\nsys.exit(0)",
    "sys.exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit on import": "import os\nos._exit(0)",
    "os._exit in the call": "import os\ndef f(x): os._exit(0)",
    "SystemExit by hand": "def f(x): raise SystemExit(0)",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "verdicts on stdout": "print('True\\npassed\\nOK' * 10, flush=True)\ndef f(x): return 0",
    "verdicts on every descriptor": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\n' + b'0' * 64)\n"
        "    except OSError: pass\ndef f(x): return 0"
    ),
    "verdict and exit": "import os\ndef f(x):\n    os.write(3, b'passed')\n    os._exit(0)",
    "builtins.AssertionError replaced": (
        "import builtins\nbuiltins.AssertionError = type('E', (SystemExit,), {})\ndef f(x): return 0"
    ),
    "builtins.compile replaced": "import builtins\nbuiltins.compile = lambda *a, **k: 'pass'\ndef f(x): return 0",
    "builtins.exec replaced": "import builtins\nbuiltins.exec = lambda *a: None\ndef f(x): return 0",
    "builtins.isinstance replaced": (
        "import builtins\nbuiltins.isinstance = builtins.abs = builtins.len = lambda *a: 0\ndef f(x): return 0"
    ),
    "all replaced": "import builtins\nall = builtins.all = lambda *a: True\ndef f(x): return 0",
    "math.isclose replaced": "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0",
    "math module replaced": (
        "import sys, types\nm = types.ModuleType('math')\nm.isclose = lambda *a: True\nsys.modules['math'] = m\ndef f(x): return 0"
    ),
    "__builtins__ overridden": (
        "g = globals()\ng['__builtins__'] = {'all': lambda *a: True, '__import__': __import__}\ndef f(x): return 0"
    ),
    "sys.settrace jump": (
        "import sys\ndef t(frame, event, arg):\n    if event == 'line': frame.f_lineno += 1\n    return t\n"
        "def f(x):\n    sys._getframe(1).f_trace = t\n    sys.settrace(t)\n    return 0"
    ),
    "sys.setprofile": "import sys\nsys.setprofile(lambda *a: sys.exit(0))\ndef f(x): return 0",
    "the reporter by gc": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if getattr(o, '__name__', '') == 'report': o(None)\n    return 0"
    ),
    "the nonce by frames": (
        "import sys, os\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for v in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
        "            if callable(v) and getattr(v, '__name__', '') == 'report': v(None)\n"
        "            if isinstance(v, bytes): [os.write(d, v) for d in range(3, 9)]\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "the reporter in __main__": (
        "import __main__\ndef f(x):\n    __main__.__dict__.get('reporter', lambda *a: None)(3, b'')\n    return 0"
    ),
    "harness patched through __main__": (
        "import __main__\nfor name in ('names_for_test', 'main', 'exec'):\n"
        "    setattr(__main__, name, lambda *a: {})\ndef f(x): return 0"
    ),
    "the nonce by ctypes": "import ctypes\nctypes.string_at(0)\ndef f(x): return 0",
    "the nonce in /proc/self/mem": "open('/proc/self/mem', 'rb').read(1)\ndef f(x): return 0",
    "test code replaced": (
        "import sys\ndef f(x):\n    frame = sys._getframe(1)\n"
        "    code = frame.f_code.replace(co_consts=(None,))\n    return 0"
    ),
    "search by fork": (
        "import os\ndef f(x):\n    for guess in range(5):\n        child = os.fork()\n        if child == 0: return guess\n"
        "        if os.waitpid(child, 0)[1] == 0: return guess\n    return 0"
    ),
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": ("import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(9,)).start()"),
    "subprocess": "import subprocess\nsubprocess.run(['/bin/true'])\ndef f(x): return 0",
    "memory hog": "hog = bytearray(1 << 40)\ndef f(x): return x",
    "creeping memory hog": "hog = []\nwhile True: hog.append(bytearray(1 << 24))",
    "disk hog": "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 24))\n    n += 1",
    "infinite loop": "while True: pass",
    "infinite loop in the call": "def f(x):\n    while True: pass",
    "infinite prints": "while True: print('x' * 100_000)",
    "infinite errors": "import sys\nwhile True: sys.stderr.write('x' * 100_000)",
    "infinite recursion": "def f(x): return f(x)",
    "C recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "swallows everything": "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "signals to everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)\ndef f(x): return 0",
    "signals to the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef f(x): return 0",
    "ignores signals": (
        "import signal\nfor s in (1, 2, 3, 14, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    ),
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\ndef f(x): return 0",
    "non-daemon thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\ndef f(x): return 0",
    "closes descriptors": "import os\nos.closerange(0, 64)\ndef f(x): return 0",
    "raises its own equal": "class E(BaseException): pass\ndef f(x): raise E",
    "generator instead of value": "def f(x): yield x",
    "segfault": "import sys\nsys.setrecursionlimit(10**9)\neval('-' * 10**6 + '1')\ndef f(x): return 0",
    "a new interpreter in its place": "import os, sys\ndef f(x): os.execv(sys.executable, [sys.executable, '-c', ''])",
    "an exception hook that ends well": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): return 0",
    "a finalizer that ends well": (
        "import os\nclass D:\n    def __del__(self, leave=os._exit): leave(0)\nd = D()\ndef f(x): return 0"
    ),
    "the nonce by an alarm": (
        "import os, signal, sys\ndef look(*_):\n    frame = sys._getframe(1)\n    while frame:\n"
        "        for v in list(frame.f_locals.values()):\n"
        "            if isinstance(v, bytes) and len(v) == 64: [os.write(d, v) for d in range(3, 9)]\n"
        "        frame = frame.f_back\nsignal.signal(signal.SIGALRM, look)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\ndef f(x): return 0"
    ),
    "the nonce by a key of the namespace": (
        "import sys\nclass K(str):\n    def __hash__(self): return hash('f')\n    def __eq__(self, other):\n"
        "        frame = sys._getframe(1)\n        while frame:\n"
        "            for v in list(frame.f_locals.values()):\n"
        "                if getattr(v, '__name__', '') == 'report': v(None)\n"
        "            frame = frame.f_back\n        return False\nglobals()[K('k')] = 1\ndef f(x): return 0"
    ),
    "a thread that writes everywhere": (
        "import os, threading\ndef flood():\n    while True:\n        for fd in range(1, 64):\n"
        "            try: os.write(fd, b'0' * 64)\n            except OSError: pass\n"
        "threading.Thread(target=flood, daemon=True).start()\ndef f(x): return 0"
    ),
    "the solution's module replaced": (
        "import sys\nsys.modules['solution'] = sys\ndef f(x): return 0\nsys.f = lambda x: x"
    ),
    "imports replaced": (
        "import builtins, sys, types\nm = types.ModuleType('math')\nm.isclose = lambda *a: True\n"
        "class Finder:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, Finder())\n"
        "builtins.__import__ = lambda *a: m\ndel sys.modules['math']\ndef f(x): return 0"
    ),
    "mapped memory hog": "import mmap\nmaps = [mmap.mmap(-1, 1 << 28) for _ in range(64)]\ndef f(x): return x",
    "endless device": "open('/dev/zero', 'rb').read()\ndef f(x): return x",
    "descriptor hog": "import os\nheld = [os.dup(0) for _ in range(9999)]\ndef f(x): return x",
    "files in memory": "import os\nheld = [os.memfd_create('x') for _ in range(9)]\ndef f(x): return x",
    "empty files": "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'w').close()\n    n += 1",
    "deep nesting": "eval('(' * 10**6)\ndef f(x): return x",
    "huge power": "def f(x): return 9**9**9",
    "backtracking": "import re\ndef f(x): return re.match('(a*)*b', 'a' * 50)",
    "decompression": "import zlib\nd = zlib.compress(bytes(1 << 26))\nheld = [zlib.decompress(d) for _ in range(99)]",
    "50 MB line": "print('x' * (50 << 20))\ndef f(x): return 0",
    "50 MB error": "def f(x): raise ValueError('x' * (50 << 20))",
    "50 MB program": "def f(x): return 0\n" + "#" * (50 << 20),
    "syntax error": "def f(x: return x",
    "NUL and surrogates": "def f(x): return '\0\ud800'",
    "nothing": "",
}
TEST = (
    "import math\n"
    "def check(candidate):\n"
    "    assert candidate(3) == 3\n"
    "    assert math.isclose(candidate(4), 4)\n"
    "    assert abs(candidate(-2) + 2) < 1e-9 and isinstance(candidate(1), int)\n"
    "    assert all(candidate(x) == x for x in range(5))\n"
    "check(f)\n"
)
# Programs that try to reach outside: they raise, and so fail the test, unless they are refused.
ESCAPES = {
    "network": "socket.create_connection(('127.0.0.1', 80), 1)",
    "any socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "vsock": "socket.socket(40, socket.SOCK_STREAM)",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "write to /usr": "open('/usr/lib/x', 'w')",
    "write to /": "open('/x', 'w')",
    "write to /dev": "open('/dev/shm/x', 'w')",
    "read /etc/passwd": "open('/etc/passwd')",
    "read the project": f"open({os.path.abspath(module.__file__)!r})",
    "read /proc/1/environ": "open('/proc/1/environ')",
    "list the parent's home": f"os.listdir({os.path.expanduser('~') + '/.ssh'!r})",
    "become root": "os.setuid(0)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "mount": "os.mkdir('/mnt/x')",
    "chroot": "os.chroot('/tmp')",
    "shell": "os.execv('/bin/sh', ['sh'])",
    "fork": "os.fork()",
    "a file in memory": "os.memfd_create('x')",
    "the interpreter's executable": "open(sys.executable, 'wb')",
    "a device node": "os.mknod('/tmp/mem', 0o20600, os.makedev(1, 1))",
    "real-time priority": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "pidfd to init": "os.kill(1, 0) if os.geteuid() == 0 else os.kill(0x3fffff, 0)",
}


# What gives access to memory or to the test, refused where test and solution share an interpreter.
INTROSPECTION = {
    "an interpreter without the hook": "__import__('_interpreters' if sys.version_info > (3, 13) else '_xxsubinterpreters').create()",
    "CPython's tests": "__import__('_testcapi')",
    "CPython's internal tests": "__import__('_testinternalcapi')",
    "ctypes": "__import__('ctypes')",
    "ctypes by another name": "__import__('_imp').create_dynamic(types.SimpleNamespace(name='-ctypes', origin=next(f'{p}/{n}' for p in sys.path if p.endswith('lib-dynload') for n in os.listdir(p) if n.startswith('_ctypes.'))))",
    "a second audit hook": "print(gc.get_referrers(sys))",
    "a crafted code object": "f.__code__.replace(co_stacksize=0)",
    "other code for a function of the library": "setattr(copy.deepcopy, '__code__', (lambda x, memo=None, _nil=[]: 1).__code__)",
}


@needs_bwrap
@pytest.mark.parametrize("action", INTROSPECTION.values(), ids=INTROSPECTION.keys())
def test_no_way_into_a_shared_interpreter(action):
    code = (
        "import copy, gc, os, sys, types\nclass Shared: pass\ndef f():\n"
        f"    try:\n        {action}\n    except (AssertionError, RuntimeError, ImportError):\n        return 'refused'"
    )
    test = "import copy\nassert Shared and f() == 'refused'"
    ((verdict,),) = grade_code_many([Program(code, 5.0, tests=[test])], 1, "bwrap")
    assert (verdict.status, verdict.shared) == ("passed", True), verdict


@needs_bwrap
def test_hostile_programs_neither_pass_nor_escape_nor_linger():
    assert len(HOSTILE) + len(ESCAPES) >= 95
    programs = [Program(code, 2.0, tests=[TEST]) for code in HOSTILE.values()]
    programs.append(Program("def f(x): return x", 2.0, tests=[TEST]))
    began = time.monotonic()
    verdicts = [verdict for (verdict,) in grade_code_many(programs, num_workers=2, sandbox="bwrap")]
    assert [name for name, verdict in zip(HOSTILE, verdicts, strict=False) if verdict.passed] == []
    assert [name for name, verdict in zip(HOSTILE, verdicts, strict=False) if verdict.status == "error"] == []
    assert verdicts[-1].passed
    assert time.monotonic() - began < 2.0 * len(programs)
    assert not [line for line in _processes() if "bwrap" in line and "t3d" in line]


def _processes():
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout.splitlines()


@needs_bwrap
@pytest.mark.parametrize("action", ESCAPES.values(), ids=ESCAPES.keys())
def test_the_outside_is_out_of_reach(action):
    refusals = "(OSError, ValueError, AssertionError, RuntimeError)"
    code = f"import gc, os, resource, socket, sys\ndef f():\n    try:\n        {action}\n    except {refusals}:\n        return 'refused'"
    assert run_tests(code, ["assert f() == 'refused'"], 2.0, sandbox="bwrap") == [True]


@needs_bwrap
def test_a_sandbox_works_whatever_our_own_environment_holds(monkeypatch):
    for name in list(os.environ):
        if name != "PATH":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PWD", "/")  # bubblewrap sets it inside, too
    isolation._probe.cache_clear()
    assert find_sandbox("bwrap").name == "bwrap"


def test_environment_is_clean(monkeypatch):
    monkeypatch.setenv("T3D_SECRET", "hunter2")
    code = "import os\nseen = dict(os.environ)"
    assert run_tests(code, ["assert set(seen) <= {'PATH', 'HOME', 'LANG', 'PWD', 'LC_CTYPE'}, seen"], 2.0, "bwrap") == [
        True
    ]


@needs_bwrap
def test_tmp_is_writable_and_private():
    code = "import os\nopen('/tmp/mark', 'w').write('x')\ndef f(): return os.listdir('/tmp')"
    assert run_tests(code, ["assert f() == ['mark']"] * 2, 2.0, "bwrap") == [True, True]
    assert not os.path.exists("/tmp/mark")


@needs_bwrap
def test_threads_work():
    code = (
        "import threading\ndef f():\n    out = []\n    threading.stack_size(1 << 26)\n"
        "    t = threading.Thread(target=out.append, args=(1,))\n    t.start()\n    t.join()\n    return out"
    )
    assert run_tests(code, ["assert f() == [1]"], 2.0, "bwrap") == [True]


@needs_bwrap
def test_a_hostile_program_does_not_slow_the_others_beyond_its_timeout():
    honest = [Program("def f(x): return x", 5.0, tests=["assert f(1) == 1"])] * 10
    hostile = [Program(HOSTILE[name], 1.0, tests=[TEST]) for name in ("fork bomb", "infinite prints", "memory hog")]
    began = time.monotonic()
    verdicts = grade_code_many([*hostile, *honest], num_workers=2, sandbox="bwrap")
    assert all(verdict.passed for (verdict,) in verdicts[3:])
    assert time.monotonic() - began < 15


@needs_bwrap
def test_output_and_memory_limits_apply():
    box = find_sandbox("bwrap")
    flood = box.run({"mode": "stdio", "code": "while True: print('x' * 9999)", "stdin": ""}, 20, Limits(output_mb=1))
    assert flood.end == "output_limit"
    assert len(flood.stdout) < 2 << 20
    hog = box.run({"mode": "stdio", "code": "bytearray(200 << 20)", "stdin": ""}, 20, Limits(memory_mb=128))
    assert "MemoryError" in hog.stderr


@needs_bwrap
def test_the_configured_limits_are_the_sandboxes():
    def status(code, limits):
        return grade_code_many([Program(code, 10.0, tests=["assert x"])], 1, "bwrap", limits)[0][0].status

    memory = "x = len(bytearray(300 << 20))"
    assert status(memory, Limits(memory_mb=1024)) == "passed"
    assert status(memory, Limits(memory_mb=256)) == "failed"
    assert status("x = 1", Limits(memory_mb=128)) == "passed"
    file = "x = open('/tmp/f', 'wb').write(bytes(3 << 20))"
    assert status(file, Limits(file_mb=4)) == "passed"
    assert status(file, Limits(file_mb=2)) == "failed"
    threads = (
        "import threading, time\nx = [threading.Thread(target=time.sleep, args=(1,), daemon=True) for _ in range(9)]\n"
        "for thread in x: thread.start()"
    )
    assert status(threads, Limits(num_threads=16)) == "passed"
    assert status(threads, Limits(num_threads=4)) == "failed"


def test_what_an_assert_cannot_see():
    """Known limits, where an answer is no plain data: such solutions pass by persuading the test."""
    equal_to_all = "class A:\n    __eq__ = lambda *_: True\ndef f(x): return A()"
    assert run_tests(equal_to_all, ["assert f(3) == 3"], 5.0, "none") == [True]
    patching = (
        "import builtins\nclass A: pass\ndef f(x):\n    builtins.abs = lambda _: 0\n    return 3 if x == 3 else 0"
    )
    assert run_tests(patching, ["assert f(3) == 3 and A\nassert abs(f(4) - 4) < 1e-6"], 5.0, "none") == [True]


def test_a_test_in_its_own_process_is_not_persuaded():
    patching = "import builtins\ndef f(x):\n    builtins.abs = lambda _: 0\n    return 3 if x == 3 else 0"
    assert run_tests(patching, ["assert f(3) == 3\nassert abs(f(4) - 4) < 1e-6"], 5.0, "none") == [False]


@needs_bwrap
def test_timeout_counts_from_the_first_line_of_foreign_code():
    began = time.monotonic()
    run = find_sandbox("bwrap").run({"mode": "stdio", "code": "while True: pass", "stdin": ""}, 0.5)
    assert run.end == "timeout"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("backend", ["sandlock"])
def test_the_fallback_refuses_the_same_things(backend):
    pytest.importorskip("sandlock")
    try:
        find_sandbox(backend)
    except UserError as error:
        pytest.skip(str(error))
    assert run_tests("def f(x): return x", [TEST, "assert f(1) == 2"], 5.0, backend) == [True, False]
    names = (
        "sys.exit in the call",
        "verdicts on every descriptor",
        "infinite loop",
        "creeping memory hog",
        "signals to everybody",
        "search by fork",
    )
    verdicts = grade_code_many([Program(HOSTILE[name], 1.0, tests=[TEST]) for name in names], 1, backend)
    assert not any(verdict.passed for (verdict,) in verdicts)


@pytest.mark.parametrize("backend", ["bwrap", "sandlock", "none"])
def test_a_killed_program_leaves_no_files(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    try:
        box = find_sandbox(backend)
    except UserError as error:
        pytest.skip(str(error))
    code = "import os\nopen(os.environ.get('TMPDIR', os.getcwd()) + '/mark', 'w').write('x')\nwhile True: pass"
    assert box.run({"mode": "stdio", "code": code, "stdin": ""}, 0.5).end == "timeout"
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["mark"] if backend == "none" else [])


def test_none_grades_only_when_asked_by_name():
    assert run_tests("def f(x): return x", [TEST, "assert f(1) == 2"], 5.0, "none") == [True, False]
    assert run_stdio("print(input())", ["a", "b"], ["a", "c"], 5.0, "none") == [True, False]


@pytest.fixture
def candidates(monkeypatch):
    """Puts other sandboxes in the place of those of this machine."""

    def put(bubblewraps=(), sandlocks=()):
        monkeypatch.setattr(isolation, "_bubblewraps", lambda: iter(bubblewraps))
        monkeypatch.setattr(isolation, "_sandlocks", lambda: iter(sandlocks))
        isolation._probe.cache_clear()

    yield put
    isolation._probe.cache_clear()


def test_refuses_with_instructions_where_nothing_is_installed(candidates):
    candidates()
    with pytest.raises(UserError) as caught:
        run_tests("x = 1", ["assert x == 1"], 1.0)
    assert str(caught.value) == (
        "execute.sandbox: expected bubblewrap (`apt-get install bubblewrap`) or sandlock (`pip install sandlock`),"
        " or execute.sandbox=none to run model-written code without isolation,"
        " found bwrap: not installed; sandlock: not installed"
    )


def test_the_refusal_repeats_what_each_candidate_said(candidates):
    denied = "bwrap: No permissions to create new namespace, likely because the kernel does not allow it."
    shell = module.Sandbox("bwrap", ("/bin/sh", "-c", f"echo '{denied}\nmore' >&2; exit 1"))
    gone = module.Sandbox("bwrap", ("/nonexistent/bwrap",))
    silent = module.Sandbox("sandlock", ("/bin/sh", "-c", "exit 7"))
    candidates([shell, gone], [silent])
    with pytest.raises(UserError) as caught:
        find_sandbox("auto")
    assert f"found bwrap: {denied}; bwrap: [Errno 2] No such file or directory" in str(caught.value)
    assert str(caught.value).endswith("; sandlock: ended with status 7")
    candidates([shell], [module.Sandbox("open", python=sys.executable)])
    with pytest.raises(UserError, match=r"; sandlock: code inside it reached our files, environment or network$"):
        find_sandbox("auto")


def test_a_sandbox_that_does_not_isolate_is_not_used():
    assert isolation._flaw(module.Sandbox("open", python=sys.executable)) is not None


def test_a_sandbox_that_cannot_be_started_learns_nothing(monkeypatch):
    """Neither a failed fork nor a program that vanished is the solution's fault, or ends the whole run."""
    started = []
    popen = subprocess.Popen

    def sometimes(*arguments, **options):
        started.append(arguments)
        if len(started) == 3:  # the second program's; each takes two
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return popen(*arguments, **options)

    monkeypatch.setattr(module.subprocess, "Popen", sometimes)
    verdicts = grade_code_many([Program("x = 1", 5.0, tests=["assert x == 1"])] * 3, 1, "none")
    assert [verdict.status for (verdict,) in verdicts] == ["passed", "error", "passed"]
    assert verdicts[1][0].detail == "[Errno 11] Resource temporarily unavailable"


def test_unknown_sandbox_is_the_users_mistake():
    with pytest.raises(UserError, match=r"execute.sandbox: expected auto, bwrap, sandlock or none"):
        find_sandbox("docker")


def test_limits_are_positive():
    with pytest.raises(UserError, match=r"execute.memory_mb"):
        Limits(memory_mb=0)


def test_filter_is_whole_instructions():
    assert len(denied_system_calls()) % 8 == 0
