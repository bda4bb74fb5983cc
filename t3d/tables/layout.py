"""A table laid out: runs at their places, averages, and what is the best of what is compared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t3d.config import TableConfig
from t3d.tables.cells import Run
from t3d.tables.significance import (
    Part,
    improvement,
    mean_stderr,
    normal_p,
    paired_test,
    shares_of_mean,
)


@dataclass(frozen=True)
class Figure:
    """How a figure of the results is shown.

    Attributes:
        label: its column's heading.
        digits: after the point.
        scale: factor to the unit shown.
        better: 1 if more is better, -1 if less is, 0 if neither.
        has_stderr: whether its standard error is known.
    """

    label: str
    digits: int = 2
    scale: float = 1.0
    better: int = 1
    has_stderr: bool = False


FIGURES = {
    "acc": Figure("acc (%)", digits=1, scale=100.0, has_stderr=True),
    "tokens_per_second": Figure("TPS"),
    "latency_s": Figure("latency (s)", digits=3, better=-1),
    "avg_steps": Figure("avg steps", better=-1),
    "avg_len": Figure("avg len", better=0),
    "tokens_per_step": Figure("tokens/step"),
    "tokens_per_forward": Figure("tokens/forward"),
}
AVERAGE = Figure("average (%)", digits=1, scale=100.0, has_stderr=True)
IMPROVEMENT = Figure("improvement (%)", better=0)

AXIS_HEADS = {
    "base": "Base model",
    "model": "Method",
    "dataset": "Data set",
    "strategy": "Strategy",
    "block_size": "Block size",
    "denoising_steps": "Steps",
    "tokps": "TokPS",
}
AXIS_LABELS = {"block_size": "block {}", "denoising_steps": "{} steps", "tokps": "TokPS {}"}


@dataclass(frozen=True)
class Entry:
    """One number of a table, in the unit of its figure; None where there is none."""

    figure: Figure
    value: float | None
    stderr: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its values on the row axes, and its numbers."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """Rows under a common heading (None: no heading)."""

    label: str | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Grid:
    """A table, ready to be written in any format.

    Attributes:
        row_heads: headings of the label columns.
        column_heads: of each number column its headings, from the top.
        notes: what a reader must know.
    """

    title: str
    row_heads: tuple[str, ...]
    column_heads: tuple[tuple[str, ...], ...]
    sections: tuple[Section, ...]
    notes: str


def in_order(runs: Sequence[Run], table: TableConfig) -> list[Run]:
    """The runs as they are read in the table: by section, row and column, each axis in order of appearance."""
    axes = [*table.sections, *table.rows, *table.columns]
    ranks = {axis: list(dict.fromkeys(run.place[axis] for run in runs)) for axis in axes}
    return sorted(runs, key=lambda run: [ranks[axis].index(run.place[axis]) for axis in axes])


def best_runs(runs: Sequence[Run], table: TableConfig, figure: str = "acc") -> list[Run]:
    """The best of each group of runs that differ in the model alone, and those that tie with it.

    An accuracy ties if a paired test against the best gives p >= `table.level`; any other figure if it is shown
    with the same digits.  A group of one is not ranked.
    """
    best = []
    for group in _groups(runs, [axis for axis in runs[0].place if axis != "model"]):
        ranked = [run for run in group if run.place["model"] not in table.unranked and _value(run, figure) is not None]
        best += _ties(
            ranked,
            [FIGURES[figure].better * (_value(run, figure) or 0.0) for run in ranked],
            lambda top, run: _acc_p(top, run) >= table.level if figure == "acc" else _equal(top, run, figure),
        )
    return best


def named(runs: Sequence[Run], table: TableConfig) -> list[Run]:
    """The runs under the names that their table gives them, for readers who do not have it beside them."""
    return [replace(run, place={**run.place, "model": table.label(run.place["model"])}) for run in runs]


def lay_out(runs: Sequence[Run], table: TableConfig) -> Grid:
    """The table of `runs`, which must fill its grid."""
    runs = in_order(runs, table)
    columns = _distinct(runs, table.columns)
    best = {figure: best_runs(runs, table, figure) for figure in table.figures}
    averages = _averages(runs, table) if table.average else {}
    sections = []
    for section in _distinct(runs, table.sections):
        mine = [run for run in runs if _at(run, table.sections) == section]
        rows = []
        for labels in _distinct(mine, table.rows):
            by_column = {_at(run, table.columns): run for run in mine if _at(run, table.rows) == labels}
            cells = [by_column.get(column) for column in columns]
            entries = [_entry(run, figure, best[figure]) for run in cells for figure in table.figures]
            names = [_name(axis, value, table) for axis, value in zip(table.rows, labels, strict=True)]
            rows.append(Row(tuple(names), (*entries, *averages.get((section, labels), ()))))
        label = ", ".join(_label(axis, value, table) for axis, value in zip(table.sections, section, strict=True))
        sections.append(Section(label or None, tuple(rows)))
    return Grid(
        title=table.title or table.name,
        row_heads=tuple(AXIS_HEADS[axis] for axis in table.rows),
        column_heads=_column_heads(columns, table),
        sections=tuple(sections),
        notes=_notes(runs, table),
    )


def _column_heads(columns: Sequence[tuple], table: TableConfig) -> tuple[tuple[str, ...], ...]:
    heads = []
    for column in columns:
        labels = [_label(axis, value, table) for axis, value in zip(table.columns, column, strict=True)]
        several = len(table.figures) > 1 or not labels
        heads += [(*labels, FIGURES[figure].label) if several else tuple(labels) for figure in table.figures]
    if table.average:
        blanks = ("",) * (len(table.columns) - 1)
        heads += [(*blanks, AVERAGE.label)]
        heads += [(*blanks, IMPROVEMENT.label)] if table.baseline else []
    return tuple(heads)


def _averages(runs: Sequence[Run], table: TableConfig) -> dict[tuple, tuple[Entry, ...]]:
    """(section, row) -> mean accuracy over the columns and, with a baseline, the improvement on its mean."""
    answer: dict[tuple, tuple[Entry, ...]] = {}
    axes = [*table.sections, *(axis for axis in table.rows if axis != "model")]
    for group in _groups(runs, axes):
        parts = {}
        for name in dict.fromkeys(run.place["model"] for run in group):
            mine = [run for run in group if run.place["model"] == name]
            if all(run.outcomes is not None for run in mine):
                parts[name] = shares_of_mean(
                    [(run.place["dataset"], run.outcomes.graded, run.outcomes.families) for run in mine]  # type: ignore[union-attr]
                )
        means = {name: sum(part.value for part in values.values()) for name, values in parts.items()}
        ranked = [name for name in parts if name not in table.unranked]
        best = _ties(
            ranked,
            [means[name] for name in ranked],
            lambda top, name, parts=parts: _parts_p(parts[top], parts[name]) >= table.level,  # type: ignore[misc]
        )
        for run in group:
            name = run.place["model"]
            entries = [Entry(AVERAGE, None)]
            if name in means:
                entries = [Entry(AVERAGE, 100 * means[name], 100 * mean_stderr(parts[name]), name in best)]
            if table.baseline:
                known = name in means and table.baseline in means and name != table.baseline
                entries.append(Entry(IMPROVEMENT, improvement(means[name], means[table.baseline]) if known else None))
            answer[_at(run, table.sections), _at(run, table.rows)] = tuple(entries)
    return answer


def _ties(candidates: Sequence[Any], values: Sequence[float], ties: Callable[[Any, Any], bool]) -> list[Any]:
    """The candidate of the highest value and those that tie with it; none where there is no choice."""
    if len(candidates) < 2:
        return []
    top = candidates[max(range(len(values)), key=values.__getitem__)]
    return [candidate for candidate in candidates if candidate is top or ties(top, candidate)]


def _acc_p(a: Run, b: Run) -> float:
    """P of the paired test; 1 where no problem was answered by both, so that nothing tells them apart."""
    assert a.outcomes is not None
    assert b.outcomes is not None
    common = a.outcomes.graded.keys() & b.outcomes.graded.keys()
    return paired_test(a.outcomes.graded, b.outcomes.graded, a.outcomes.families).p_value if common else 1.0


def _parts_p(a: dict[tuple[str, str], Part], b: dict[tuple[str, str], Part]) -> float:
    return normal_p([a[unit].value - b[unit].value for unit in a if unit in b])


def _equal(a: Run, b: Run, figure: str) -> bool:
    digits = FIGURES[figure].digits
    return round(_value(a, figure) or 0.0, digits) == round(_value(b, figure) or 0.0, digits)


def _entry(run: Run | None, figure: str, best: list[Run]) -> Entry:
    shown = FIGURES[figure]
    value = None if run is None else _value(run, figure)
    if run is None or run.results is None or value is None:
        return Entry(shown, None)
    stderr = run.results.metrics.stderr * shown.scale if shown.has_stderr else None
    is_best = shown.better != 0 and any(run is one for one in best)
    return Entry(shown, value * shown.scale, stderr, is_best)


def _value(run: Run, figure: str) -> float | None:
    """A figure (of `FIGURES`, each a field of the metrics) of a run; None where it has none."""
    return None if run.results is None else getattr(run.results.metrics, figure)


def _at(run: Run, axes: Iterable[str]) -> tuple:
    return tuple(run.place[axis] for axis in axes)


def _distinct(runs: Sequence[Run], axes: Sequence[str]) -> list[tuple]:
    return list(dict.fromkeys(_at(run, axes) for run in runs))


def _groups(runs: Sequence[Run], axes: Sequence[str]) -> list[list[Run]]:
    return [[run for run in runs if _at(run, axes) == values] for values in _distinct(runs, axes)]


def _name(axis: str, value: Any, table: TableConfig) -> str:
    return table.label(value) if axis == "model" else str(value)


def _label(axis: str, value: Any, table: TableConfig) -> str:
    """A value that is read without its axis beside it."""
    return AXIS_LABELS.get(axis, "{}").format(_name(axis, value, table))


def _notes(runs: Sequence[Run], table: TableConfig) -> str:
    counts: dict[str, set[int]] = {}
    for run in runs:
        if run.results is not None:
            counts.setdefault(run.place["dataset"], set()).add(run.results.metrics.n)
    sizes = ", ".join(f"{name} {'/'.join(map(str, sorted(values)))}" for name, values in counts.items())
    notes = [
        f"Accuracy is in % ± standard error. Graded responses: {sizes or 'none'}.",
        "Methods are compared with each other, each setting by itself: the best one is bold.",
    ]
    if any(run.outcomes is not None and run.outcomes.families for run in runs):
        notes.append("Problems of one family count together in errors and tests.")
    if "acc" in table.figures:
        notes.append(
            "An accuracy is bold too if a paired test on the same problems does not find it lower than the best"
            f" (two-sided, level {table.level:g})."
        )
    if table.unranked:
        notes.append(f"Shown for reference and never bold: {', '.join(map(table.label, table.unranked))}.")
    if any(run.results is None for run in runs):
        notes.append("-- means that there is no checkpoint.")
    return " ".join(notes)
