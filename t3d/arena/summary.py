"""The README's table of an arena: a few rows, put between two marks by script."""

import re
from pathlib import Path

from t3d.arena.comparison import MEAN, compare
from t3d.arena.markdown import accuracy, difference, table
from t3d.arena.results import ArenaResults
from t3d.errors import DataError
from t3d.storage.files import atomic_writer

MARKED = re.compile(r"(<!-- toy results[^>]*-->\n).*?(<!-- end of toy results -->)", re.DOTALL)


def summary(results: ArenaResults) -> str:
    """A table of `config.summary`'s rows: accuracy at the first decoding and over the few-step ones.

    The last column is the difference of the latter from the baseline's.
    """
    config = results.config
    compared = compare(results)
    first = next(iter(config.decodings))
    rows = []
    for row in config.summary or list(config.students()):
        if (row, MEAN) not in compared:
            continue
        few = compared[row, MEAN]
        one = compared[row, first].accuracy
        rows.append([config.label(row), accuracy(one), accuracy(few.accuracy), difference(few.difference)])
    baseline = config.label(config.reference_row())
    return table(["", first, MEAN, f"against {baseline}, with its 95 % interval"], rows)


def put(results: ArenaResults, path: Path) -> None:
    """Replaces what stands between the marks in `path` by the table.

    Raises:
        DataError: no such file, or no marks in it.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if MARKED.search(text) is None:
        raise DataError(path, "a text with <!-- toy results --> and <!-- end of toy results -->", "none")
    with atomic_writer(path) as file:
        file.write(MARKED.sub(lambda found: f"{found[1]}{summary(results)}\n{found[2]}", text))
