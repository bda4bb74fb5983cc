"""What runs inside two sandboxes that are joined by a channel: a test in one, the solution that it calls in the other.

Foreign code never runs in the interpreter that knows the expected answers and says "passed".  There the solution's
functions are stand-ins: a call sends its arguments as plain data (`wire`), and gets plain data or an exception back.
Where a test needs more than that (classes, generators, functions as arguments) it says so, and is run in one
interpreter with the solution (`inside_shared`).
"""

import ast
import builtins
import functools
import json
import os
import sys
import types

from t3d.grading.wire import MUTABLE, NotPlainError, decode, encode, update

NOT_PLAIN = b"not plain data"
FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    type(functools.cache(len)),
)


class Channel:
    """Lines of JSON to and from the other sandbox.

    Attributes:
        bound: names that the test binds, which a solution in the same interpreter would see.
        give_up: ends this process, so that test and solution are run in one interpreter.
    """

    def __init__(self, descriptor, bound=frozenset(), give_up=None):
        """Opens both directions of a connected socket."""
        self.reading = open(descriptor, encoding="ascii", newline="\n")  # noqa: SIM115 - as long as the process
        self.descriptor, self.bound, self.give_up = descriptor, bound, give_up

    def send(self, *message):
        """Writes a message."""
        data = memoryview(json.dumps(message).encode("ascii") + b"\n")
        while data:
            data = data[os.write(self.descriptor, data) :]

    def receive(self):
        """The next message.

        Raises:
            EOFError: the other process has ended.
            ValueError: what it wrote is no message.
        """
        line = self.reading.readline()
        if not line.endswith("\n"):
            raise EOFError("the solution's process ended")
        message = json.loads(line)
        if type(message) is not list or not message or type(message[0]) is not str:
            raise ValueError("no message")
        return message

    def exception(self, classes, arguments):
        """What the solution raised: the nearest of Python's own exceptions."""
        arguments = decode(arguments)
        if "NameError" in classes and any(f"'{name}'" in str(said) for said in arguments for name in self.bound):
            self.give_up()
        for name in classes:
            found = vars(builtins).get(name)
            if isinstance(found, type) and issubclass(found, BaseException):
                try:
                    return found(*arguments)
                except TypeError:
                    return found()
        return Exception()


# ---- the solution's side ----


def serve_solution(request, namespace):
    """Runs the code under test, tells what it defines, and answers calls until the test is over."""
    channel = Channel(request["channel"])
    channel.send("started")
    try:
        exec(compile(request["code"], namespace["__file__"], "exec", dont_inherit=True), namespace)
        channel.send("defined", {name: kind(value) for name, value in list(namespace.items()) if type(name) is str})
    except BaseException as error:  # noqa: BLE001 - foreign code raises what it likes
        channel.send("raised", *told(error))
        return
    while True:
        try:
            _, name, given = channel.receive()
        except EOFError:
            return
        answer(channel, namespace[name], given)


def kind(value):
    """What the test's side has to know of a global: a module's name, a function, or a plain value."""
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, FUNCTIONS):
        return ["function", None]
    try:
        return ["value", encode(value)]
    except Exception:  # noqa: BLE001 - whatever a foreign object does when it is looked at
        return ["other", None]


def answer(channel, function, given):
    """Calls a function; tells its result, which of its arguments that is, and its arguments where it changed them."""
    arguments, named = decode(given)
    try:
        result = function(*arguments, **named)
    except BaseException as error:  # noqa: BLE001 - likewise
        return channel.send("raised", *told(error), changed(given, arguments, named))
    try:
        same = next((place for place, argument in enumerate(arguments) if argument is result), None)
        channel.send("returned", encode(result), same, changed(given, arguments, named))
    except NotPlainError:
        channel.send("not plain")
    return None


def changed(given, arguments, named):
    """The arguments as they are now, or None where they are as they were given."""
    try:
        now = encode(([*arguments], {**named}))
    except NotPlainError:
        return None
    return None if now == given else now


def told(error):
    """An exception as plain data: the names of its classes, nearest first, and its arguments."""
    try:
        arguments = encode([*error.args])
    except NotPlainError:
        arguments = encode([str(error)])
    return [entry.__name__ for entry in type(error).__mro__], arguments


# ---- the test's side ----


class StandIn:
    """A function of the solution's, which can be called and nothing else."""

    __doc__ = property(lambda self: self._channel.give_up())

    def __init__(self, name, channel):
        """Takes the name that the solution knows it by."""
        self.__dict__.update(_name=name, _channel=channel)

    def __call__(self, *arguments, **named):
        """Calls it there; arguments that it changes are changed here."""
        changeable = [*arguments]
        try:
            given = encode((changeable, named))
        except NotPlainError:
            self._channel.give_up()
        self._channel.send("call", self._name, given)
        word, *said = self._channel.receive()
        if word == "not plain":
            self._channel.give_up()
        if said[-1] is not None:
            now, now_named = decode(said[-1])
            update(changeable, now)
            update(named, now_named)
        if word == "raised":
            raise self._channel.exception(said[0], said[1])
        result = decode(said[0])
        same = changeable[said[1]] if said[1] is not None else None
        return same if type(same) in MUTABLE and same == result else result

    def __getattr__(self, name):
        """Whatever else a function has, this one has not."""
        self._channel.give_up()


def bound_names(tree):
    """Names that a program binds at its top: by imports, definitions and assignments."""
    found = set()
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            found.add(statement.name)
        elif isinstance(statement, ast.Assign):
            found |= {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return found


def run_test(request, namespace, nonce):
    """Runs the test against the solution in the other sandbox; its last act is to write the nonce."""
    verdict, process = os.dup(1), os.getpid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def end(word):
        if os.getpid() == process:
            os.write(verdict, word)
        os._exit(0)

    tree = ast.parse(request["test"], "<test>")
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    channel = Channel(request["channel"], bound_names(tree), lambda: end(NOT_PLAIN))
    channel.receive()
    os.write(verdict, b"\n")
    word, *said = channel.receive()
    if word == "raised":
        raise channel.exception(*said)
    namespace.update(stand_ins(said[0], used, channel))
    exec(compile(tree, "<test>", "exec", dont_inherit=True), namespace)
    end(nonce)


def stand_ins(defined, used, channel):
    """What the test sees of the solution: of the names that it uses, stand-ins, values and the library's modules.

    A test whose entry point is no builtin gets the genuine builtins, not the solution's namesakes.
    """
    names = {name for name in used & defined.keys() if not name.startswith("__")}
    shadows = names & vars(builtins).keys()
    if shadows != names:
        names -= shadows
    found: dict[str, object] = {}
    for name in names:
        kind, what = defined[name]
        if kind == "function":
            found[name] = StandIn(name, channel)
        elif kind == "value":
            found[name] = decode(what)
        elif kind == "module" and what.partition(".")[0] in sys.stdlib_module_names:
            __import__(what)
            found[name] = sys.modules[what]
        else:
            channel.give_up()
    return found
