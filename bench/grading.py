"""Grades the gold answers of the benchmarks at hand against themselves, rewritten, and against mutated gold.

`python bench/grading.py FOLDER` reads every JSON file of FOLDER (a list of records with `ground_truth_answer`, as
`data/download_data.py` writes them) and prints a line for each: the share of gold answers that are right as an answer
in a text, the share that is right in other LaTeX, the share of mutated gold that is right (which should be none), and
pairs a second. Then the same of plain math-verify, with `--math-verify`.
"""

import argparse
import json
import logging
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from t3d.grading.math_grader import GradeResult, grade_math_many

log = logging.getLogger("bench.grading")

_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d.])")
Pairs = list[tuple[str, str]]


def rewritten(answer: str) -> Iterator[str]:
    """Yields the answer in other LaTeX of the same meaning."""
    for size in ("dfrac", "tfrac"):
        yield re.sub(r"\\[dt]?frac(?![a-z])", rf"\\{size}", answer)
    yield answer.replace(r"\left", "").replace(r"\right", "")
    yield f"${answer}$"
    yield rf"\displaystyle {answer}"
    yield rf"\textbf{{{answer}}}" if re.fullmatch(r"-?[\d.]+", answer) else rf"\mathbf{{{answer}}}"


def mutated(answer: str, source: random.Random) -> Iterator[str]:
    """Yields answers that are wrong: one number is another one, the sign is, or a term is added."""
    numbers = list(_NUMBER.finditer(answer))
    if numbers:
        chosen = source.choice(numbers)
        other = int(chosen.group()) + source.choice((1, 2, 10))
        yield answer[: chosen.start()] + str(other) + answer[chosen.end() :]
    if re.fullmatch(r"[\d.]+", answer) and float(answer):
        yield f"-{answer}"
        yield f"{answer}+10^{{-12}}"
        yield f"{answer}x"


def gold(path: Path) -> list[str]:
    """The different gold answers of a benchmark file; none if it holds no mathematics."""
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        return []
    answers = [record.get("ground_truth_answer") for record in records]
    return list(dict.fromkeys(answer for answer in answers if isinstance(answer, str) and answer))


def share(pairs: Pairs, results: Sequence[GradeResult], plain: bool) -> str:
    """The share of right verdicts, in words."""
    right = sum((result.math_verify if plain else result.correct) is True for result in results)
    return f"{right} of {len(pairs)} ({100 * right / len(pairs):.2f} %)"


def report(path: Path, num_workers: int, math_verify: bool) -> None:
    """Logs the figures of one file, and the mutated answers that pass."""
    answers, source = gold(path), random.Random(0)
    if not answers:
        return
    kinds: dict[str, Pairs] = {
        "gold": [(rf"Therefore, the answer is $\boxed{{{answer}}}$.", answer) for answer in answers],
        "rewritten": [(other, answer) for answer in answers for other in rewritten(answer) if other != answer],
        "mutated": [(other, answer) for answer in answers for other in mutated(answer, source)],
    }
    for kind, pairs in kinds.items():
        began = time.perf_counter()
        results = grade_math_many(pairs, num_workers, math_verify=math_verify)
        speed = len(pairs) / (time.perf_counter() - began)
        plain = f"; math-verify {share(pairs, results, True)}" if math_verify else f"; {speed:.0f} pairs/s"
        log.info("%s, %s: right %s%s", path.stem, kind, share(pairs, results, False), plain)
        odd = [pair for pair, result in zip(pairs, results, strict=True) if result.correct == (kind == "mutated")]
        for prediction, truth in odd[:20]:
            log.info("    %s for %s", prediction, truth)


def main() -> None:
    """Reads the command line and reports on every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("data"))
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--math-verify", action="store_true", help="plain math-verify's figures beside ours")
    arguments = parser.parse_args()
    for path in sorted(arguments.folder.glob("*.json")):
        report(path, arguments.num_workers, arguments.math_verify)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    main()
