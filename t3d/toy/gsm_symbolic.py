"""GSM-Symbolic: a world of word problems that nobody here wrote, from the package `reasoning-gym` (extra `world`).

Its generators fill the templates of 100 grade-school problems (arXiv:2410.05229) with names, things and numbers, and
work the solution out, each template's in one wording.  `TEMPLATES` are few and small enough for a model of a million
weights.

    python -m t3d.toy.gsm_symbolic --split test --limit 50 --out data/GSMSymbolic.json
"""

from t3d.entry import run_entry

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from random import Random
from typing import Any
from zlib import crc32

import numpy as np

from t3d.errors import DataError, UserError
from t3d.toy.problems import SEED, SHARES, SPLITS, write_problems

TEMPLATES = (10, 16, 31, 43, 48, 72)
"""Those of at most 51 words, signs and digits in the question and 66 in the solution, with whole numbers up to 125,
whose 1,000 draws have 100 to 900 different tuples of numbers and 900 different questions (a test holds it)."""

DIFFICULTY = 1.0
"""The only one that there is."""
STATED = "\n#### "

Problem = dict[str, Any]


@cache
def package() -> Any:
    """`reasoning-gym`'s GSM-Symbolic data set: its generators by number, and `score_answer`.

    Raises:
        UserError: the package is not installed.
    """
    try:
        module = import_module("reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic")
    except ModuleNotFoundError as error:
        expected = "the package reasoning-gym (pip install -e '.[world]')"
        raise UserError("GSM-Symbolic", expected, f"no module {error.name}") from None
    return module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=SEED, size=1))


def generate(split: str, seed: int = 0) -> Iterator[Problem]:
    """Yields an endless stream of problems of one split, no two alike.

    A question's text decides which split it is in.  Its numbers may be in another split with other names and things:
    a template has a few hundred tuples of numbers.

    Args:
        split: train, validation or test.
        seed: another seed, other problems (of the same split); no stream is shared between splits.

    Yields:
        `question`, `ground_truth_answer`, and `answer`: the generator's worked solution, its last line in our words.

    Raises:
        UserError: the package is not installed, or has other templates.
    """
    generators = package().generators
    stream = np.random.default_rng([SEED, SPLITS.index(split), seed])
    seen = set()
    while True:
        template = TEMPLATES[stream.integers(len(TEMPLATES))]
        problem = _problem(generators[template], template, Random(int(stream.integers(1 << 62))))
        if split_of(problem["question"]) == split and problem["question"] not in seen:
            seen.add(problem["question"])
            yield problem


def split_of(question: str) -> str:
    """The split of a problem: a checksum of its question, in the shares of TinyMath's splits."""
    place = crc32(question.encode()) % sum(SHARES)
    return SPLITS[int(np.searchsorted(np.cumsum(SHARES), place, side="right"))]


def _problem(generator: Callable[[Random, float], Problem], template: int, stream: Random) -> Problem:
    """One problem in the project's form."""
    drawn = generator(stream, DIFFICULTY)
    steps, _, stated = drawn["metadata"]["answer_cot"].rpartition(STATED)
    if not steps or stated != drawn["answer"]:
        expected = f"a worked solution that ends in '#### {drawn['answer']}'"
        raise DataError(f"reasoning-gym, GSM-Symbolic's template {template}", expected, repr(stated))
    return {
        "question": drawn["question"],
        "ground_truth_answer": drawn["answer"],
        "answer": f"{steps}\nThe answer is \\boxed{{{stated}}}.",
    }


def main(arguments: list[str]) -> None:
    """Writes GSM-Symbolic problems as a data set file."""
    write_problems("GSM-Symbolic", "t3d.toy.gsm_symbolic", generate, arguments)


if __name__ == "__main__":
    run_entry(main)
