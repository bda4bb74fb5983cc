# ruff: noqa: E501 - programs
"""Test and solution in processes of their own: what an honest program may do, and what none can."""

import json
import math
from pathlib import Path

import pytest

from t3d.grading.code_grader import Program, grade_code_many, run_stdio, run_tests
from t3d.grading.isolation import _probe
from t3d.grading.wire import NotPlainError, decode, encode, update

PROGRAMS = Path(__file__).parents[3] / "shared" / "data" / "grading" / "programs.json"
needs_bwrap = pytest.mark.skipif(_probe("bwrap").__class__ is tuple, reason="bubblewrap does not work here")


def verdicts(programs):
    return [verdict for (verdict,) in grade_code_many(programs, num_workers=2)]


@needs_bwrap
@pytest.mark.skipif(not PROGRAMS.exists(), reason="no shared data")
def test_programs_that_were_once_graded_wrong():
    programs = json.loads(PROGRAMS.read_text())
    given = [Program(program["code"], 5.0, tests=program["tests"]) for program in programs]
    found = [[verdict.passed for verdict in found] for found in grade_code_many(given, num_workers=2)]
    assert found == [program["expected"] for program in programs]


HONEST = {
    "names that are not ASCII": ("def f(\u03b1):\n    \u03c0 = \u03b1 * \u03b1\n    return \u03c0", "assert f(2) == 4"),
    "names that are normalised": ("def \ufb01(x): return x\ndef f(x): return fi(x) * x", "assert f(2) == 4"),
    "asyncio": (
        "import asyncio\nasync def g(x):\n    await asyncio.sleep(0)\n    return x * x\ndef f(x): return asyncio.run(g(x))",
        "assert f(2) == 4",
    ),
    "mocks": (
        "from unittest.mock import Mock, patch\ndef f(x):\n    with patch('math.sqrt', Mock(return_value=x * x)):\n"
        "        import math\n        return math.sqrt(9)",
        "assert f(2) == 4",
    ),
    "types.coroutine": (
        "import asyncio, types\n@types.coroutine\ndef g(x):\n    yield\n    return x * x\n"
        "async def h(x): return await g(x)\ndef f(x): return asyncio.run(h(x))",
        "assert f(2) == 4",
    ),
    "wrapped streams": (
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\n"
        "sys.stderr = open('/dev/null', 'w')\nsys.stdin = io.StringIO('2')\n"
        "def f(x):\n    print(x)\n    sys.stdout.flush()\n    return int(input()) * x",
        "assert f(2) == 4",
    ),
    "a byte order mark": ("\ufeffdef f(x): return x * x", "assert f(2) == 4"),
    "a file's name": ("import os\ndef f(x): return x * x if os.path.basename(__file__) else 0", "assert f(2) == 4"),
    "code from text": ("exec('def f(x): return eval(\"x * x\")')", "assert f(2) == 4"),
    "dataclasses and enums": (
        "import dataclasses, enum\nclass E(enum.IntEnum):\n    A = 2\n@dataclasses.dataclass\nclass D:\n    x: int\n"
        "def f(x): return D(x).x * E.A.value",
        "assert f(2) == 4",
    ),
    "threads": (
        "import concurrent.futures as c\ndef f(x):\n    with c.ThreadPoolExecutor(2) as p:\n"
        "        return sum(p.map(lambda y: y * y, [x]))",
        "assert f(2) == 4",
    ),
    "a cache": ("import functools\n@functools.lru_cache(None)\ndef f(x): return x * x", "assert f(2) == 4"),
    "a partial": ("import functools, operator\nf = functools.partial(operator.mul, 2)", "assert f(2) == 4"),
    "another name": ("def g(x): return x * x\nf = g", "assert f(2) == 4"),
    "an imported function": ("from math import sqrt as f", "assert f(16) == 4"),
    "big and odd numbers": (
        "def f(x): return [10 ** 5000, -0.0, float('inf'), 1e-320, 2 + 3j, True, None, b'\\xff', x]",
        "import math\na = f('é\\ud800')\nassert a[0] == 10 ** 5000 and math.copysign(1, a[1]) < 0 and a[2] == math.inf\n"
        "assert a[3] == 1e-320 and a[4] == 2 + 3j and a[5] is True and a[6] is None and a[7] == b'\\xff'\n"
        "assert a[8] == 'é\\ud800'",
    ),
    "containers": (
        "def f(): return {(1, 2): {3}, 'a': frozenset({4})}, [5, (6,)], bytearray(b'7')",
        "assert f() == ({(1, 2): {3}, 'a': frozenset({4})}, [5, (6,)], bytearray(b'7'))",
    ),
    "arguments changed in place": (
        "def f(x, *, y):\n    x.sort()\n    y['a'][0].append(1)\n    del y['b']",
        "x, inner = [3, 1, 2], []\ny = {'a': (inner,), 'b': 0}\nf(x, y=y)\nassert x == [1, 2, 3]\n"
        "assert y == {'a': ([1],)} and inner == [1]",
    ),
    "arguments left alone": ("def f(x): return sorted(x)", "x = [2, 1]\nassert f(x) == [1, 2] and x == [2, 1]"),
    "exceptions": (
        "class Mine(ValueError): pass\ndef f(x):\n    if x: raise Mine('no', x)\n    raise KeyError('k')",
        "for x, kind, args in ((1, ValueError, ('no', 1)), (0, KeyError, ('k',))):\n    try:\n        f(x)\n"
        "    except kind as error:\n        assert error.args == args\n    else:\n        assert False",
    ),
    "values": ("LIMIT = [1, {'a': (2,)}]\ndef f(): return LIMIT", "assert f() == LIMIT == [1, {'a': (2,)}]"),
    "what both import": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(16), 4)"),
    "a helper of the same name": (
        "def check(c): return 0\ndef f(x): return x * x",
        "def check(c):\n    assert c(2) == 4\ncheck(f)",
    ),
    "a long answer": ("def f(n): return list(range(n))", "assert f(200000) == list(range(200000))"),
    "a deep answer": (
        "def f(n):\n    x = []\n    for _ in range(n): x = [x]\n    return x",
        "x, n = f(400), 0\nwhile x: x, n = x[0], n + 1\nassert n == 400",
    ),
    "its argument as its answer": (
        "def f(x):\n    x.append(1)\n    return x",
        "x = [0]\ny = f(x)\nassert y is x == [0, 1] and f([]) is not x",
    ),
    "one object in two places": (
        "def f(x, y):\n    x[0].append(1)\n    return x is y",
        "row = []\nx = [row] * 2\nassert f(x, x) and x == [[1], [1]] and x[0] is x[1] is row",
    ),
    "a library's class as answer": ("import decimal\nf = lambda x: int(decimal.Decimal(x))", "assert f('4') == 4"),
    "a coding line": ("#!/usr/bin/python\n# coding: latin-1\ndef f(): return '\u00e9'", "assert f() == '\u00e9'"),
    "nothing but the module": ("x = 2", "assert x * x == 4"),
}
SHARED = {
    "what the test imports": ("def f(x): return math.sqrt(x)", "import math\nassert f(16) == 4"),
    "a class": ("class C:\n    def __init__(self, x): self.x = x", "assert C(2).x == 2"),
    "a class under a name that is not ASCII": ("class \u00c7:\n    \u00e9 = 2", "assert \u00c7.\u00e9 == 2"),
    "asyncio beside a class": ("import asyncio\nclass C: x = 2", "assert C.x == 2"),
    "mocks beside a class": ("import unittest.mock\nclass C: x = 2", "assert C.x == 2"),
    "a generator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
    "a function as argument": ("def f(g, x): return g(x)", "assert f(lambda x: x + 1, 1) == 2"),
    "a function as answer": ("def f(n): return lambda x: x + n", "assert f(1)(2) == 3"),
    "a class of the library": (
        "import collections\ndef f(x): return collections.Counter(x)",
        "assert f('aa')['b'] == 0",
    ),
    "an answer in a circle": ("def f():\n    x = []\n    x.append(x)\n    return x", "x = f()\nassert x[0] is x"),
    "what a function carries": ("def f(): 'said'\nf.x = 1", "assert f.__doc__ == 'said' and f.x == 1"),
}


@needs_bwrap
@pytest.mark.parametrize("code,test", HONEST.values(), ids=HONEST.keys())  # noqa: PT006 - reads better
def test_honest_programs_pass_apart(code, test):
    (verdict,) = verdicts([Program(code, 10.0, tests=[test])])
    assert (verdict.status, verdict.shared) == ("passed", False), verdict


@needs_bwrap
@pytest.mark.parametrize("code,test", SHARED.values(), ids=SHARED.keys())  # noqa: PT006
def test_what_is_no_plain_data_shares_an_interpreter(code, test):
    (verdict,) = verdicts([Program(code, 10.0, tests=[test])])
    assert (verdict.status, verdict.shared) == ("passed", True), verdict


CHECK = "def check(c):\n    assert c(2) == 4\n    assert c(3) == 9\ncheck(f)"
FORGERIES = {
    "an exit": "import os\ndef f(x): os._exit(0)",
    "an exit while it is loaded": "raise SystemExit(0)",
    "an exception for each call": "def f(x): raise SystemExit(0)",
    "answers before they are asked": (
        'import os\nfor d in range(3, 64):\n    try:\n        os.write(d, b\'["returned", "[\\\\"i\\\\", \\\\"0x4\\\\"]", null]\\n\' * 9)\n'
        "    except OSError: pass\ndef f(x): return 4"
    ),
    "noise on every descriptor": (
        "import os\nfor d in range(64):\n    try:\n        os.write(d, b'\\n' + b'0' * 64)\n    except OSError: pass\ndef f(x): return 4"
    ),
    "a name that equals what it likes": (
        "class K(str):\n    n = 0\n    __hash__ = str.__hash__\n    def __eq__(s, o):\n        K.n += str.__eq__(s, o)\n"
        "        return str.__eq__(s, o) and K.n > 2\nglobals()[K('check')] = lambda c: None\ndef f(x): return 0"
    ),
    "the name of the test's own function": "def check(c): pass\ndef f(x): return 0",
    "the caller's frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for value in frame.f_locals.values():\n"
        "            if value in (4, 9): return value\n        frame = frame.f_back\n    return 0"
    ),
    "patched builtins": "import builtins\nbuiltins.AssertionError = Warning\nbuiltins.exec = print\ndef f(x): return 0",
    "the standard library's own": "import json\njson.loads = json.dumps = lambda *_, **__: ['returned', 'null', None]\ndef f(x): return 0",
    "a planted module": "import sys\nsys.modules['ast'] = sys\ndef f(x): return 0",
    "a subclass of a number": "class N(int):\n    __eq__ = lambda *_: True\ndef f(x): return 0 if x > 2 else N(0) + 0",
}


@needs_bwrap
def test_no_forgery_passes():
    programs = [Program(code, 5.0, tests=[CHECK]) for code in FORGERIES.values()]
    found = dict(zip(FORGERIES, verdicts(programs), strict=True))
    assert {name: verdict for name, verdict in found.items() if verdict.passed or verdict.status == "error"} == {}


PLANTED = {
    "a name that equals what it likes": FORGERIES["a name that equals what it likes"],
    "another copy": "import copy\ntry:\n    copy.deepcopy.__code__ = (lambda x, memo=None, _nil=[]: 0).__code__\nexcept AssertionError: pass\ndef f(x): return 0",
    "defaults": "import copy\ntry:\n    copy.deepcopy.__defaults__ = (None, [])\nexcept AssertionError: pass\ndef f(x): return 0",
}


@needs_bwrap
@pytest.mark.parametrize("code", PLANTED.values(), ids=PLANTED.keys())
def test_what_was_planted_before_a_shared_test_is_gone(code):
    test = "import copy\ndef check(c):\n    assert copy.deepcopy([c(2)]) == [4] and Shared\ncheck(f)"
    (verdict,) = verdicts([Program(f"{code}\nclass Shared: pass", 5.0, tests=[test])])
    assert (verdict.passed, verdict.shared) == (False, True), verdict


@needs_bwrap
def test_the_freed_memory_of_a_shared_interpreter_holds_no_nonce():
    code = (
        "import io, re\nclass Shared: pass\ndef f():\n    class Raw(io.RawIOBase):\n        def readable(self): return True\n"
        "        def readinto(self, view): return len(view)\n    for size in (64, 128, 512, 1 << 13, 1 << 16, 1 << 20):\n"
        "        for _ in range(200):\n            data = io.BufferedReader(Raw(), size).read(size)\n"
        "            if re.search(rb'[0-9a-f]{64}', data or b''): return 'found'\n    return 'nothing'"
    )
    (verdict,) = verdicts([Program(code, 20.0, tests=["assert Shared and f() == 'nothing'"])])
    assert (verdict.status, verdict.shared) == ("passed", True), verdict


@needs_bwrap
def test_what_the_limits_do_not_count_is_refused():
    attributes = "import os\nopen('/tmp/x', 'w').close()\ndef f():\n    os.setxattr('/tmp/x', 'user.a', b'1' * 9999)"
    test = "try:\n    f()\nexcept PermissionError as error:\n    assert error.errno == 1\nelse:\n    assert False"
    assert run_tests(attributes, [test], 5.0) == [True]


@needs_bwrap
def test_no_installed_package_can_be_read():
    code = (
        "import os, sys\ndef f():\n    found = []\n    for base in {'/usr', '/opt', '/home', '/root', sys.prefix, sys.base_prefix}:\n"
        "        for folder, _, names in os.walk(base):\n"
        "            if folder.endswith(('site-packages', 'dist-packages')) and (os.listdir(folder)): found.append(folder)\n"
        "    return found"
    )
    assert run_tests(code, ["assert f() == [], f()"], 20.0) == [True]


@needs_bwrap
@pytest.mark.parametrize(
    "code",
    [
        "print(open('/dev/stdin').read())",
        "import sys\nprint(open('/dev/stdin').readline(), sys.stdin.read().split()[2])",
        "print(open(0).read())",
        "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read().replace(b'\\r', b'CR'))",
        "import os\nos.write(1, os.read(0, 99))",
        "import fileinput\nfor line in fileinput.input(): print(line)",
        "import asyncio, sys\nasync def main(): print(sys.stdin.read())\nasyncio.run(main())",
        "\ufeff\u03bb = input()\nprint(\u03bb, input())",
        "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(*sys.stdin)",
        "def main():\n    try:\n        while True: print(input())\n    except EOFError: pass\nif __name__ == '__main__':\n    main()",
        "import sys\nprint(sys.stdin.read()) if __file__ else 0\nsys.exit()",
        "import locale\nlocale.setlocale(locale.LC_ALL, '')\nprint(open(0).read())",
        "import io, os\nread = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\nprint(read().decode(), read().decode())",
        "import sys, threading\nthreading.stack_size(1 << 27)\nsys.setrecursionlimit(1 << 25)\nthreading.Thread(target=lambda: print(*sys.stdin)).start()",
    ],
)
def test_honest_scripts_read_their_input(code):
    assert run_stdio(code, ["1 2\r\n3\r\n"], ["1 2\n3"], 10.0) == [True]


@needs_bwrap
def test_a_pool_leaves_nothing_behind():
    program = Program("def f():\n    while True: pass", 1.0, tests=["f()"])
    assert [verdict.status for verdict in verdicts([program] * 3)] == ["timeout"] * 3


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(10**400),
        -0.0,
        math.inf,
        2j,
        "é\ud800\n",
        b"\0",
        bytearray(b"1"),
        [1, (2,)],
        {(1,): {2}},
        frozenset(),
    ],
    ids=repr,
)
def test_plain_data_survives_the_wire(value):
    text = encode(value)
    assert "\n" not in text
    assert decode(text) == value
    assert type(decode(text)) is type(value)
    assert repr(decode(text)) == repr(value)


@pytest.mark.parametrize(
    "value",
    [object(), type("S", (str,), {})("a"), range(3), len, [{1: iter([])}]],
    ids=["object", "subclass", "range", "function", "inside"],
)
def test_what_is_not_plain_is_no_data(value):
    with pytest.raises(NotPlainError):
        encode(value)


@pytest.mark.parametrize(
    "text", ["", "1", '["r", 0]', '["z", 1]', '["i", 1]', '["S", [["l", []]]]', '["f", "x"]', "[[[", '{"a": 1}']
)
def test_texts_that_are_no_data_are_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - json's is one too
        decode(text)


def test_one_object_in_two_places_is_one_on_the_other_side():
    row = [1]
    first, second, other = decode(encode([row, {"a": row}, [1]]))
    assert first is second["a"]
    assert other == first
    assert other is not first


def test_update_keeps_what_is_inside():
    inner = [1]
    old = {"a": inner, "b": 2}
    update(old, {"a": [1, 5], "c": 3})
    assert old == {"a": [1, 5], "c": 3}
    assert old["a"] is inner
