"""Grades model-written programs against a benchmark's tests, each test in sandboxed processes of its own.

A function test passes when the whole test program ran to its end without an exception; a stdio test when the
program ended with status 0 and its output has the expected words in the expected order.

The test runs in a process that foreign code never enters: the solution's functions are stand-ins there, which send
their arguments to the solution's process as plain data and get plain data or an exception back.  So a solution can say
anything but "passed", and sees no expected value.  What remains: it knows the arguments, and may have learnt the
benchmark by heart.

Where a test needs a class, a generator or a function as an argument, test and solution share an interpreter
(`Verdict.shared`).  What cannot be caught there:
- an answer built to satisfy any comparison (an object that equals everything);
- a solution that, while the test calls it, reads the expected values out of its caller's frames, or replaces
  what the test uses next: a builtin, a module's function, a class's method. (Builtins and functions that it
  replaced before the test began are put back.)
- one that corrupts the interpreter's memory.

A test sees the names of the solution, as the benchmarks mean it to. So a solution that defines `sum` is tested by a
program that sees its `sum`; only where the test calls something else of the solution does it get the genuine builtins.
A solution may thus fail by what it shadows.
"""

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from t3d.errors import DataError
from t3d.grading.inside_apart import NOT_PLAIN
from t3d.grading.isolation import find_sandbox
from t3d.grading.sandbox import NONCE_BYTES, Limits, Run, Sandbox

Status = Literal["passed", "failed", "timeout", "output_limit", "error"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one test.

    `error` means that the sandbox or the test itself failed, so that nothing was learnt about the solution;
    `detail` is the last line of its error output. `shared` means that test and solution had one interpreter.
    """

    status: Status
    detail: str = ""
    shared: bool = False

    @property
    def passed(self) -> bool:
        """Whether the solution passed."""
        return self.status == "passed"


@dataclass(frozen=True)
class Program:
    """A solution with its tests; `timeout_s` holds for each test.

    Args:
        code: the program's source.
        timeout_s: seconds that each test may take.
        tests: assert statements or whole check programs, each run after `code`.
        inputs: standard inputs; `outputs` are the expected standard outputs, one for each.
        outputs: see `inputs`.
    """

    code: str
    timeout_s: float
    tests: Sequence[str] = ()
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.outputs):
            raise DataError("test_output", f"{len(self.inputs)} entries, as many as test_input", len(self.outputs))
        if not self.timeout_s > 0:
            raise DataError("test_time_limit", "a positive number of seconds", self.timeout_s)


def run_tests(code: str, tests: list[str], timeout_s: float, sandbox: str = "auto") -> list[bool]:
    """Runs each test after `code` in a sandbox; returns for each test whether it passed.

    Args:
        code: the solution's source.
        tests: assert statements, or whole check programs as in HumanEval.json.
        timeout_s: seconds that each test may take, start-up not counted.
        sandbox: auto, bwrap, sandlock or none.

    Raises:
        UserError: if no sandbox works on this machine.
    """
    (verdicts,) = grade_code_many([Program(code, timeout_s, tests=tests)], num_workers=1, sandbox=sandbox)
    return [verdict.passed for verdict in verdicts]


def run_stdio(code: str, inputs: list[str], outputs: list[str], timeout_s: float, sandbox: str = "auto") -> list[bool]:
    """Runs `code` once for each input; returns whether it printed the expected output (see `run_tests`)."""
    program = Program(code, timeout_s, inputs=inputs, outputs=outputs)
    (verdicts,) = grade_code_many([program], num_workers=1, sandbox=sandbox)
    return [verdict.passed for verdict in verdicts]


def grade_code_many(
    programs: Sequence[Program], num_workers: int, sandbox: str = "auto", limits: Limits | None = None
) -> list[list[Verdict]]:
    """Grades programs in parallel; returns each program's verdicts, tests first, in order.

    Args:
        programs: what to grade.
        num_workers: how many sandboxes run at a time; more than the machine's cores makes timeouts unfair.
        sandbox: auto, bwrap, sandlock or none.
        limits: what each run may use.

    Raises:
        UserError: if no sandbox works on this machine.
    """
    box = find_sandbox(sandbox)
    limits = limits or Limits()
    with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
        pending = [
            [
                *(pool.submit(_function_verdict, box, program, test, limits) for test in program.tests),
                *(
                    pool.submit(_stdio_verdict, box, program, given, expected, limits)
                    for given, expected in zip(program.inputs, program.outputs, strict=True)
                ),
            ]
            for program in programs
        ]
        return [[future.result() for future in futures] for futures in pending]


def _function_verdict(sandbox: Sandbox, program: Program, test: str, limits: Limits) -> Verdict:
    nonce = secrets.token_hex(NONCE_BYTES // 2)
    if sandbox.joins:
        run = sandbox.run_apart(_source(program), test, program.timeout_s, limits, nonce)
        if run.stdout != b"\n" + NOT_PLAIN:
            return _verdict(run, _says(run, nonce))
    request = {"mode": "shared", "code": _source(program), "test": test}
    run = sandbox.run(request, program.timeout_s, limits, nonce)
    return replace(_verdict(run, _says(run, nonce)), shared=True)


def _says(run: Run, nonce: str) -> bool:
    """Whether a run wrote that the test passed, and nothing else.

    A newline before it is the sign that foreign code was started; anything more was written by foreign code.
    """
    return secrets.compare_digest(run.stdout, b"\n" + nonce.encode())


def _source(program: Program) -> str:
    return program.code.removeprefix("\ufeff")


def _stdio_verdict(sandbox: Sandbox, program: Program, given: str, expected: str, limits: Limits) -> Verdict:
    request = {"mode": "stdio", "code": _source(program), "stdin": given.replace("\r\n", "\n")}
    run = sandbox.run(request, program.timeout_s, limits)
    printed = run.stdout[1:].decode("utf-8", "replace")
    return _verdict(run, proven=run.returncode == 0 and printed.split() == expected.split())


def _verdict(run: Run, proven: bool) -> Verdict:
    settled = partial(Verdict, detail=_last_line(run.stderr))
    match run.end:
        case "not_started":
            return settled("error")
        case "timeout":
            return settled("timeout")
        case "output_limit":
            return settled("output_limit")
        case "exit":
            return Verdict("passed") if proven else settled("failed")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:500] if lines else ""
