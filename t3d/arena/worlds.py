"""Where an arena's problems come from, and the files that hold them."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from t3d.storage.files import read_json, write_json_atomic
from t3d.storage.folders import make_folder
from t3d.toy import gsm_symbolic, problems
from t3d.toy.problems import family_of

WORLDS: dict[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    "TinyMath": problems.generate,
    "TinyMathWords": partial(problems.generate, extra_names=2000),
    "GSMSymbolic": gsm_symbolic.generate,
}
"""Name -> an endless stream of different problems of a split (train, validation or test), the same each time:
`question`, `ground_truth_answer`, and `answer`, a worked solution."""

HELD_OUT = 2000
"""Problems in a file to evaluate; an evaluation takes the first ones."""


def evaluated_problems(world: str, split: str, folder: Path) -> Path:
    """The file of problems to evaluate, written unless it is there."""
    return _file(folder / f"{world}_{split}.json", world, split, HELD_OUT, with_solutions=False)


def problem_families(path: Path, count: int) -> list[int]:
    """The family of each of the first `count` problems of a file, in the order of first appearance.

    What a family is, says `family_of`.
    """
    numbers: dict[str, int] = {}
    return [numbers.setdefault(family_of(item), len(numbers)) for item in read_json(path)[:count]]


def train_problems(world: str, count: int, folder: Path) -> Path:
    """The file of problems that the teacher answers."""
    return _file(folder / f"{world}_train_{count}.json", world, "train", count, with_solutions=False)


def worked_solutions(world: str, count: int, folder: Path) -> Path:
    """The file of the same problems with their worked solutions."""
    return _file(folder / f"{world}_train_{count}_solutions.json", world, "train", count, with_solutions=True)


def _file(path: Path, world: str, split: str, count: int, *, with_solutions: bool) -> Path:
    if not path.exists():
        items = list(itertools.islice(WORLDS[world](split), count))
        if not with_solutions:
            items = [{name: value for name, value in item.items() if name != "answer"} for item in items]
        make_folder(path.parent)
        write_json_atomic(path, items)
    return path
