"""Compare two evaluations of the same problems: a paired test and the paper's improvement."""

from t3d.entry import run_entry

import itertools
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from t3d.arguments import ArgumentParser
from t3d.errors import DataError
from t3d.evaluation.results import Results, read_results
from t3d.storage.files import write_json_atomic
from t3d.storage.paths import user_path
from t3d.tables.outcomes import Outcomes, load_outcomes
from t3d.tables.significance import PairedTest, improvement, paired_test

EXAMPLE = (
    "python -m t3d.tables.compare eval/results/results-eval-SDAR-4B-Chat-MATH500-b4-s1-static-t0.1-seed0-5be0c1f2.json"
    " eval/results/results-eval-optimized-MATH500-SDAR-4B-Chat-math-t3d-b4-s1-static-t0.1-seed0-1f0c9a3e.json"
)
DECODING = ("block_size", "denoising_steps", "remasking_strategy", "temperature", "seed", "draft")
"""What is said of how each side was decoded."""


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        test: the paired test.
        improvement: change of the accuracy in % of A's; None where A's is 0.
        problems: problems that both answered.
        left_out: problems that only one of them answered, the other's responses having failed.
        one_response: whether every problem has one response in both.
        only_a: problems whose share of right responses is higher in A.
        only_b: the same for B.
    """

    test: PairedTest
    improvement: float | None
    problems: int
    left_out: int
    one_response: bool
    only_a: int
    only_b: int


def compare(a: Outcomes, b: Outcomes, names: tuple[Path, Path]) -> Comparison:
    """Pairs two evaluations by problem.

    Raises:
        DataError: they were asked different problems, or answered none in common; names the first difference.
    """
    for (here, asked), (there, others) in itertools.permutations(zip(names, (a, b), strict=True)):
        lacking = [text for problem, text in asked.questions.items() if problem not in others.questions]
        if lacking:
            found = f"{len(lacking)} of them missing, the first {lacking[0]!r}"
            raise DataError(there, f"the {len(asked.questions)} problems of {here}", found)
    common = [problem for problem in a.graded if problem in b.graded]
    if not common:
        raise DataError(names[1], f"a problem that {names[0]} answered too", "none (responses failed)")
    test = paired_test(a.graded, b.graded, a.families)
    shares = [(_share(a.graded[problem]), _share(b.graded[problem])) for problem in common]
    return Comparison(
        test=test,
        improvement=improvement(test.acc_b, test.acc_a),
        problems=len(common),
        left_out=len(a.questions) - len(common),
        one_response=all(len(outcomes.graded[problem]) == 1 for outcomes in (a, b) for problem in common),
        only_a=sum(first > second for first, second in shares),
        only_b=sum(second > first for first, second in shares),
    )


def report(comparison: Comparison, a: Results, b: Results) -> str:
    """The comparison in words."""
    test = comparison.test
    units = "problems" if test.units == comparison.problems else f"{test.units} families of problems"
    kind = f"exact sign-flip test over {units}"
    if comparison.one_response and test.units == comparison.problems:
        kind = "McNemar's exact test"
    if not test.exact:
        kind = f"sign-flip test over {units}, normal approximation"
    change = "undefined (A has none right)" if comparison.improvement is None else f"{comparison.improvement:+.2f} %"
    who = "right only in" if comparison.one_response else "more often right in"
    equal = comparison.problems - comparison.only_a - comparison.only_b
    left_out = f", {comparison.left_out} left out (responses failed)" if comparison.left_out else ""
    return (
        f"A  {100 * test.acc_a:6.2f} %  {_settings(a)}\n"
        f"B  {100 * test.acc_b:6.2f} %  {_settings(b)}\n"
        f"B - A  {100 * (test.acc_b - test.acc_a):+.2f} +- {100 * test.stderr:.2f} points; improvement {change}\n"
        f"{comparison.problems} problems{left_out}: {who} A {comparison.only_a}, {who} B {comparison.only_b},"
        f" the same in both {equal}\n"
        f"p = {test.p_value:.3g} ({kind}, two-sided)\n"
    )


def _settings(results: Results) -> str:
    told = {name: value for name, value in asdict(results.decoding).items() if value is not None and name in DECODING}
    return ", ".join([results.model, results.dataset, *(f"{name} {value}" for name, value in told.items())])


def _share(grades: list[bool]) -> float:
    return sum(grades) / len(grades)


def main(arguments: list[str]) -> None:
    """Compares the two results files that the command line names."""
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("a", type=user_path, metavar="A.json", help="results file of the baseline")
    parser.add_argument("b", type=user_path, metavar="B.json", help="results file of the model to compare with it")
    parser.add_argument("--out", type=user_path, default=None, help="write the figures to this JSON file too")
    options = parser.parse_args(arguments)
    paths = (options.a, options.b)
    results = [read_results(path) for path in paths]
    outcomes = [load_outcomes(path, result) for path, result in zip(paths, results, strict=True)]
    comparison = compare(outcomes[0], outcomes[1], paths)
    if options.out is not None:
        write_json_atomic(options.out, {"a": str(options.a), "b": str(options.b), **asdict(comparison)})
        logging.getLogger(__name__).info("%s", options.out)
    sys.stdout.write(report(comparison, *results))


if __name__ == "__main__":
    run_entry(main)
