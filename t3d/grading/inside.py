"""What runs inside the sandbox, one process per test; never imported, its source is handed to `python -c`.

The code under test shares this interpreter, so the order of things is the defence:
- the test is compiled, and the modules that it uses are remembered, before the code under test runs;
- the nonce that says "passed" lives in a closure that no name, frame, module or container refers to while
  foreign code runs: it waits on the value stack of `main`, which Python cannot inspect, and an audit hook
  (never removable) forbids the garbage collector's listings, tracing, ctypes, foreign extension modules and
  further interpreters (which would not have the hook);
- exceptions, exits and signals unwind or end that stack, and with it the only way to say "passed".
"""

import ast
import builtins
import json
import os
import resource
import site
import sys
import types


def read_request():
    """Reads the request from standard input, which is closed before foreign code can look at it."""
    chunks = []
    while chunk := os.read(0, 1 << 20):
        chunks.append(chunk)
    return json.loads(b"".join(chunks))


def confine(uid, gid, limits):
    """Gives up root (RLIMIT_NPROC does not bind it) if the sandbox still has it, then sets limits."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def redirect(descriptor, data):
    """Makes `descriptor` read `data`, from a file that has no name any more."""
    path = f"{os.environ.get('TMPDIR', '/tmp')}/{os.urandom(16).hex()}"
    source = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.unlink(path)
    view = memoryview(data)
    while view:
        view = view[os.write(source, view) :]
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, descriptor)
    os.close(source)


def fresh_module(name):
    """Returns the namespace of a new module `name`, registered as dataclasses and pickle expect."""
    sys.modules[name] = types.ModuleType(name)
    return vars(sys.modules[name])


def forbid_introspection():
    """Installs the audit hook.

    It fails by `assert`, which looks no name up, so that patched builtins cannot disarm it.
    """
    libraries = tuple(entry + "/" for entry in sys.path)

    def hook(event, args):
        assert event not in {
            "gc.get_objects",
            "gc.get_referrers",
            "gc.get_referents",
            "sys.settrace",
            "sys.setprofile",
            "sys.monitoring.register_callback",
            "sys._current_frames",
            "sys._current_exceptions",
            "sys.addaudithook",
            "code.__new__",
            "os.fork",
            "os.forkpty",
            "cpython.PyInterpreterState_New",
            "sqlite3.enable_load_extension",
        }, "not available to code under test"
        if event == "import":
            name = "".join((args[0],))
            assert "_ctypes" not in name, "ctypes is not available to code under test"
            assert "_test" not in name, "CPython's own tests are not available to code under test"
            if args[1] is not None:
                path = "".join((args[1],))
                assert path.startswith(libraries), "foreign extension module"
                assert ".." not in path, "foreign extension module"

    sys.addaudithook(hook)


def remember(tree):
    """Imports what the test imports and returns every loaded module's namespace with a copy of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted = [node.module]
        else:
            continue
        for name in wanted:
            try:
                __import__(name)
            except ImportError:
                continue
    spaces = [vars(module) for name, module in sys.modules.items() if name != "__main__"]
    return [(sys.modules, dict(sys.modules)), *((space, dict(space)) for space in spaces)]


def names_for_test(pristine, used, builtin_names, namespace, _ran):
    """Undoes patches of modules and builtins, and returns the namespace in which the test runs.

    A test whose entry point is no builtin gets the genuine builtins, not the solution's namesakes.
    """
    for space, values in pristine:
        space.update(values)
    namespace["__builtins__"] = pristine[0][1]["builtins"].__dict__
    defined = used & namespace.keys()
    shadows = defined & builtin_names
    if not shadows or shadows == defined:
        return namespace
    return {name: value for name, value in namespace.items() if name not in shadows}


def reporter(descriptor, nonce):
    """Returns the function that says "passed" and ends the process."""
    write, leave, process, mine = os.write, os._exit, os.getpid, os.getpid()

    def report(_ran):
        if process() == mine:
            write(descriptor, nonce)
        leave(0)

    return report


def prepare_function(request):
    """Returns what `main` calls, last first: see there."""
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    tree = ast.parse(request["test"], "<test>")
    used = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    namespace = fresh_module("solution")
    steps = [
        reporter(verdict, request["nonce"].encode()),
        exec,
        compile(tree, "<test>", "exec", dont_inherit=True),
        names_for_test,
        remember(tree),
        used,
        frozenset(vars(builtins)),
        namespace,
        exec,
        (request["code"], namespace),
    ]
    os.write(verdict, b"\n")
    forbid_introspection()
    return steps[::-1]


def run_script(request):
    """Runs the code under test as a program that reads standard input."""
    redirect(0, request["stdin"].encode("utf-8", "surrogatepass"))
    namespace = fresh_module("__main__")
    os.write(1, b"\n")
    exec(compile(request["code"], "<solution>", "exec", dont_inherit=True), namespace)


def main():
    """Serves one request."""
    site.setquit()
    request = read_request()
    confine(request["uid"], request["gid"], request["limits"])
    if request["mode"] == "stdio":
        return run_script(request)
    steps = prepare_function(request)
    del request
    pop = steps.pop
    globals().clear()
    # report(exec(test, names(pristine, used, builtin_names, namespace, exec(code, namespace)))): everything
    # is loaded on the value stack before the innermost call, the first to run foreign code.
    pop()(pop()(pop(), pop()(pop(), pop(), pop(), pop(), pop()(*pop()))))


if __name__ == "__main__":
    main()
