"""Grades model-written programs against a benchmark's tests, each test in a sandboxed process of its own.

A function test passes when the whole test program ran to its end without an exception; a stdio test when the
program ended with status 0 and its output has the expected words in the expected order.

What no test of this kind can catch, as solution and test share an interpreter:
- an answer built to satisfy any comparison (an object that equals everything);
- a solution that, while the test calls it, reads the expected values out of its caller's frames, or replaces
  what the test uses next: a builtin, a module's function, a class's method. (Builtins and functions that it
  replaced before the test began are put back.)
- one that corrupts the interpreter's memory, as crafted bytecode can.

Such a program passes by persuading the test itself, not by forging the verdict.

A test runs where the solution's names are visible, as the benchmarks mean it to. So a solution that defines
`sum` is tested by a program that sees its `sum`; only where the test calls something else of the solution does
it get the genuine builtins. A solution may thus fail by what it shadows.
"""

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from t3d.errors import DataError
from t3d.grading.sandbox import Limits, Run, Sandbox, find_sandbox

Status = Literal["passed", "failed", "timeout", "output_limit", "error"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one test.

    `error` means that the sandbox or the test itself failed, so that nothing was learnt about the solution;
    `detail` is the last line of its error output.
    """

    status: Status
    detail: str = ""

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
    outputs: Sequence[str] = field(default=())

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
    nonce = secrets.token_hex(32)
    request = {"mode": "function", "code": program.code, "test": test, "nonce": nonce}
    run = sandbox.run(request, program.timeout_s, limits)
    # A leading newline is the harness's sign that it started; anything more than the nonce was written by
    # foreign code.
    return _verdict(run, proven=secrets.compare_digest(run.stdout, b"\n" + nonce.encode()))


def _stdio_verdict(sandbox: Sandbox, program: Program, given: str, expected: str, limits: Limits) -> Verdict:
    run = sandbox.run({"mode": "stdio", "code": program.code, "stdin": given}, program.timeout_s, limits)
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
