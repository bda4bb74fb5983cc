"""What runs inside a sandbox; its source is handed to `python -c`, together with what it imports from here."""

import json
import os
import resource
import site
import sys
import types

from t3d.grading.inside_apart import run_test, serve_solution
from t3d.grading.inside_shared import prepare_shared

NONCE_BYTES = 64
"""Length of the nonce, as the grader makes it."""


def read_request():
    """Reads the request from standard input, which is closed before foreign code can look at it.

    Returns:
        The request, and the nonce that says "passed", of which no other copy was ever made: it stands behind the
        request, and is read on its own.
    """
    size = int.from_bytes(os.read(0, 8), "little")
    chunks = []
    while size:
        chunks.append(os.read(0, min(size, 1 << 20)))
        size -= len(chunks[-1])
    nonce = bytearray(NONCE_BYTES)
    os.readv(0, [nonce])
    return json.loads(b"".join(chunks)), nonce


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
    """Returns the namespace of a new module `name`, registered as dataclasses and pickle expect, with a file's name."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name])["__file__"] = f"{os.environ.get('TMPDIR', '/tmp')}/{name.strip('_')}.py"
    return vars(sys.modules[name])


def run_script(request):
    """Runs the code under test as a program that reads standard input."""
    redirect(0, request["stdin"].encode("utf-8", "surrogatepass"))
    namespace = fresh_module("__main__")
    os.write(1, b"\n")
    exec(compile(request["code"], namespace["__file__"], "exec", dont_inherit=True), namespace)


def main():
    """Serves one request."""
    site.setquit()
    request, nonce = read_request()
    confine(request["uid"], request["gid"], request["limits"])
    if request["mode"] == "stdio":
        return run_script(request)
    if request["mode"] == "solution":
        return serve_solution(request, fresh_module("solution"))
    if request["mode"] == "test":
        return run_test(request, fresh_module("solution"), nonce)
    steps = prepare_shared(request, fresh_module("solution"), nonce)
    del request, nonce
    pop, names = steps.pop, globals()
    kept = names["__builtins__"]
    names.clear()
    names["__builtins__"] = kept  # which the parser needs for names that are not ASCII
    # report(exec(test, names(pristine, used, builtin_names, namespace, exec(code, namespace)))): everything
    # is loaded on the value stack before the innermost call, the first to run foreign code.
    return pop()(pop()(pop(), pop()(pop(), pop(), pop(), pop(), pop()(*pop()))))


if __name__ == "__main__":
    main()
