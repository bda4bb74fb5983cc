"""Where an arena's problems come from, and the files that hold them."""

import itertools
from collections.abc import Callable, Iterable, Iterator
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
    """The file of problems to evaluate, each with its `family`, by which tables count; written unless it is there."""
    items = ({**item, "family": family_of(item)} for item in _asked(world, split, HELD_OUT))
    return _file(folder / f"{world}_{split}.json", items)


def problem_families(path: Path, count: int) -> list[int]:
    """The family of each of the first `count` problems of a file, in the order of first appearance.

    What a family is, says `family_of`.
    """
    numbers: dict[str, int] = {}
    return [numbers.setdefault(family_of(item), len(numbers)) for item in read_json(path)[:count]]


def train_problems(world: str, count: int, folder: Path) -> Path:
    """The file of problems that the teacher answers."""
    return _file(folder / f"{world}_train_{count}.json", _asked(world, "train", count))


def worked_solutions(world: str, count: int, folder: Path) -> Path:
    """The file of the same problems with their worked solutions."""
    return _file(folder / f"{world}_train_{count}_solutions.json", itertools.islice(WORLDS[world]("train"), count))


def _asked(world: str, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The first problems of a split without their solutions."""
    for item in itertools.islice(WORLDS[world](split), count):
        yield {name: value for name, value in item.items() if name != "answer"}


def _file(path: Path, items: Iterable[dict[str, Any]]) -> Path:
    if not path.exists():
        make_folder(path.parent)
        write_json_atomic(path, list(items))
    return path
