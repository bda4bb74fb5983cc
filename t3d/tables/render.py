"""A laid-out table as Markdown, LaTeX and CSV, and what all formats share."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

from t3d.tables.layout import IMPROVEMENT, Entry, Grid, Section

MISSING = "--"
WIDE = 7  # columns
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "λ": r"$\lambda$"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$"},
}


def shown(entry: Entry) -> tuple[str, str]:
    """An entry's number and its standard error ("" if it has none) as people read them."""
    if entry.value is None:
        return MISSING, ""
    digits = entry.figure.digits
    if entry.figure is IMPROVEMENT:
        return f"{'↑' if entry.value >= 0 else '↓'} {abs(entry.value):.{digits}f}", ""
    return f"{entry.value:.{digits}f}", "" if entry.stderr is None else f"{entry.stderr:.{digits}f}"


def flat_heads(grid: Grid) -> list[str]:
    """One heading per number column."""
    return [", ".join(filter(None, heads)) for heads in grid.column_heads]


def head_levels(grid: Grid) -> list[list[tuple[str, int]]]:
    """The headings of the number columns from the top, each with the number of columns that it spans."""
    depth = len(grid.column_heads[0])
    levels = [
        [
            (prefix[-1], len(list(columns)))
            for prefix, columns in groupby(heads[: level + 1] for heads in grid.column_heads)
        ]
        for level in range(depth - 1)
    ]
    return [*levels, [(heads[-1], 1) for heads in grid.column_heads]]


def row_labels(section: Section) -> list[tuple[str, ...]]:
    """The labels of a section's rows, empty where the row above has the same ones up to there."""
    answer, above = [], None
    for row in section.rows:
        *groups, last = row.labels
        same = [above is not None and above[: place + 1] == row.labels[: place + 1] for place in range(len(groups))]
        answer.append((*("" if repeats else label for repeats, label in zip(same, groups, strict=True)), last))
        above = row.labels
    return answer


def markdown(grid: Grid) -> str:
    """The table in Markdown; a section's heading is a row of its own."""

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    def text(entry: Entry) -> str:
        value, error = shown(entry)
        return (f"**{value}**" if entry.best else value) + (f" ± {error}" if error else "")

    heads = [*grid.row_heads, *flat_heads(grid)]
    lines = [grid.title, "", line(heads), "|---" * len(heads) + "|"]
    for section in grid.sections:
        if section.label:
            lines.append(line([f"*{section.label}*", *[""] * (len(heads) - 1)]))
        for labels, row in zip(row_labels(section), section.rows, strict=True):
            lines.append(line([*labels, *map(text, row.entries)]))
    return "\n".join([*lines, "", grid.notes, ""])


def csv_text(grid: Grid) -> str:
    """The table as CSV: numbers to 12 digits, beside each its standard error and whether it is bold (1 or 0)."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["Section", *grid.row_heads, *_csv_heads(grid)])
    for section in grid.sections:
        for row in section.rows:
            values = [value for entry in row.entries for value in _csv_values(entry)]
            writer.writerow([section.label or "", *row.labels, *values])
    return file.getvalue()


def _csv_heads(grid: Grid) -> Iterator[str]:
    for head, entry in zip(flat_heads(grid), grid.sections[0].rows[0].entries, strict=True):
        name = head if head.endswith(entry.figure.label) else f"{head}, {entry.figure.label}"
        yield name
        if entry.figure.has_stderr:
            yield f"{name} stderr"
        if entry.figure.better:
            yield f"{name} bold"


def _csv_values(entry: Entry) -> Iterator[str]:
    yield "" if entry.value is None else f"{entry.value:.12g}"
    if entry.figure.has_stderr:
        yield "" if entry.stderr is None else f"{entry.stderr:.12g}"
    if entry.figure.better:
        yield str(int(entry.best))


def latex(grid: Grid, label: str) -> str:
    """The table in LaTeX, for the packages booktabs and (wide tables, shrunk to the text's width) graphicx."""
    width = len(grid.row_heads) + len(grid.column_heads)
    wide = width > WIDE
    body = []
    for section in grid.sections:
        body.append(r"\midrule")
        if section.label:
            body += [rf"\multicolumn{{{width}}}{{c}}{{{_tex(section.label)}}} \\", r"\midrule"]
        for number, (labels, row) in enumerate(zip(row_labels(section), section.rows, strict=True)):
            if number and len(labels) > 1 and labels[0]:
                body.append(r"\addlinespace")
            body.append(" & ".join([*map(_tex, labels), *map(_tex_entry, row.entries)]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{_tex(grid.title)}. {_tex(grid.notes)}}}",
            rf"\label{{tab:{label}}}",
            *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{{'l' * len(grid.row_heads)}{'r' * len(grid.column_heads)}}}",
            r"\toprule",
            *_tex_heads(grid),
            *body,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            r"\end{table}",
            "",
        ]
    )


def _tex_heads(grid: Grid) -> Iterator[str]:
    *upper, lowest = head_levels(grid)
    first = len(grid.row_heads) + 1
    for level in upper:
        cells, rules, column = [""] * len(grid.row_heads), [], first
        for label, span in level:
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{_tex(label)}}}")
            if label:
                rules.append(rf"\cmidrule(lr){{{column}-{column + span - 1}}}")
            column += span
        yield " & ".join(cells) + r" \\"
        yield " ".join(rules)
    yield " & ".join(_tex(label) for label in [*grid.row_heads, *(label for label, _ in lowest)]) + r" \\"


def _tex_entry(entry: Entry) -> str:
    value, error = map(_tex, shown(entry))
    bold = rf"\textbf{{{value}}}" if entry.best else value
    return bold + (rf" {{\scriptsize$\pm$ {error}}}" if error else "")


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
