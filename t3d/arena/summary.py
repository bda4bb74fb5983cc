"""The README's table of an arena: a few rows, put between two marks by script."""

import re
from pathlib import Path

from t3d.arena.comparison import MEAN, compare, contrast
from t3d.arena.markdown import accuracy, difference, table
from t3d.arena.results import ArenaResults
from t3d.errors import DataError

MARKED = re.compile(r"(<!-- toy results[^>]*-->\n).*?(<!-- end of toy results -->)", re.DOTALL)


def summary(results: ArenaResults) -> str:
    """A table of `config.summary`'s rows: accuracy at the first decoding and over the few-step ones.

    The last column is the difference of the latter from the baseline's.
    """
    config = results.config
    compared, reference = compare(results), config.reference_row()
    first = next(iter(config.decodings))
    rows = []
    for row in config.summary or config.row_names():
        if (row, MEAN) not in compared:
            continue
        figures = [accuracy(compared[row, name].accuracy) for name in (first, MEAN)]
        other = None if row == reference else contrast(results, reference, row, MEAN)
        rows.append([config.label(row), *figures, difference(other)])
    return table(["", first, MEAN, f"against {config.label(reference)}, with its 95 % interval"], rows)


def with_table(results: ArenaResults, path: Path) -> str:
    """The text of `path` with the table in place of what stands between the marks.

    Raises:
        DataError: no such file, or no marks in it.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if MARKED.search(text) is None:
        raise DataError(path, "a text with <!-- toy results --> and <!-- end of toy results -->", "none")
    return MARKED.sub(lambda found: f"{found[1]}{summary(results)}\n{found[2]}", text)
