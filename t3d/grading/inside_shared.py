"""What runs inside a sandbox where test and solution share an interpreter, for tests that ask for more than plain data.

The order of things is the defence:
- the test is compiled, and the modules that it uses are remembered, before the code under test runs;
- the nonce that says "passed" lives in a closure that no name, frame, module or container refers to while
  foreign code runs: it waits on the value stack of `main`, which Python cannot inspect, and an audit hook
  (never removable) forbids the garbage collector's listings, tracing, crafted code objects, new code for the library's
  functions, extension modules but the standard library's, and further interpreters (which would not have the hook);
- exceptions, exits and signals unwind or end that stack, and with it the only way to say "passed".
"""

import ast
import builtins
import os
import sys
import types

FORBIDDEN_MODULES = ("_ctypes", "_test", "_xx", "xxlimited", "xxsubtype")
"""Beginnings of the extension modules that give access to memory, or to interpreters without the hook."""


def forbid_introspection(guarded):
    """Installs the audit hook.

    It fails by `assert`, which looks no name up, so that patched builtins cannot disarm it; what it needs stands in its
    constants and defaults, as the frame of a hook that failed can be looked into and changed.

    Args:
        guarded: ids of the functions whose code stays.
    """
    folders = [entry for entry in sys.path if os.path.isdir(entry)]
    extensions = frozenset(
        f"{folder}/{name}"
        for folder in folders
        for name in os.listdir(folder)
        if name.endswith(".so") and not name.startswith(FORBIDDEN_MODULES)
    )

    def hook(
        event, args, extensions=extensions, guarded=guarded, id=id, frame=sys._getframe, own=types.coroutine.__code__
    ):
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
            "os.fork",
            "os.forkpty",
            "cpython.PyInterpreterState_New",
            "sqlite3.enable_load_extension",
        }, "not available to code under test"
        if event == "code.__new__":
            # types.coroutine changes a flag, as asyncio and unittest.mock do when they are imported.
            assert frame(1).f_code is own, "code objects are not available to code under test"
        if event == "object.__setattr__" and id(args[0]) in guarded:
            assert False, "the library's functions stay as they are"  # noqa: B011, PT015 - looks no name up
        if event == "import" and args[1] is not None:
            assert "".join((args[1],)) in extensions, "not an extension module of the standard library"

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
    modules = [module for name, module in sys.modules.items() if name != "__main__"]
    spaces = [vars(module) for module in modules if isinstance(module, types.ModuleType)]  # typing.io is a class
    return [(sys.modules, dict(sys.modules)), *((space, dict(space)) for space in spaces)]


def functions_of(pristine):
    """Ids of the functions in the remembered modules, and in their classes."""
    found = set()
    for _, values in pristine[1:]:
        for value in values.values():
            members = vars(value).values() if isinstance(value, type) else (value,)
            found |= {id(member) for member in members if isinstance(member, types.FunctionType)}
    return frozenset(found)


def names_for_test(pristine, used, builtin_names, namespace, _ran):
    """Undoes patches of modules and builtins, and returns the namespace in which the test runs.

    A test whose entry point is no builtin gets the genuine builtins, not the solution's namesakes.  Names are strings:
    an object that is one too, and decides for itself what it equals, is no name.
    """
    for space, values in pristine:
        space.update(values)
    namespace["__builtins__"] = pristine[0][1]["builtins"].__dict__
    if any(type(name) is not str for name in namespace):
        namespace = {name: value for name, value in namespace.items() if type(name) is str}
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


def prepare_shared(request, namespace, nonce):
    """Returns what `main` calls, last first: see there."""
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    tree = ast.parse(request["test"], "<test>")
    used = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    pristine = remember(tree)
    steps = [
        reporter(verdict, nonce),
        exec,
        compile(tree, "<test>", "exec", dont_inherit=True),
        names_for_test,
        pristine,
        used,
        frozenset(vars(builtins)),
        namespace,
        exec,
        (request["code"], namespace),
    ]
    os.write(verdict, b"\n")
    forbid_introspection(functions_of(pristine))
    return steps[::-1]
