"""The page of arenas: Markdown with tables and figures, every number from JSON files, which are kept beside it.

What lies there of the page's other arenas is written anew, too.

python -m t3d.arena.page toy_paper/results/methods.json --out docs/toy_results.md
"""

from t3d.entry import run_entry

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from t3d.arena.comparison import MEAN, Compared, compare, contrast
from t3d.arena.figures import cost_figure, rows_figure
from t3d.arena.markdown import accuracy, difference, table
from t3d.arena.results import ArenaResults, load, write
from t3d.arena.statistics import Estimate, holm
from t3d.arena.summary import with_table
from t3d.arguments import ArgumentParser
from t3d.errors import DataError
from t3d.storage.files import atomic_writer
from t3d.storage.folders import make_folder
from t3d.storage.paths import user_path
from t3d.tables.plots import svg

EXAMPLE = "python -m t3d.arena.page toy_paper/results/methods.json --out docs/toy_results.md"
HEAD = """# Measured at toy scale

Written by `python -m t3d.arena.page` from the results of `python -m t3d.arena`; no number is by hand.

Accuracy is in % ± its standard error over seeds *and* problems: what other seeds of training and other problems would
change. Problems with the same numbers and the same answer are a family, and errors over problems are by families. A
difference is paired by problem and seed, with its 95 % interval over both (Student's t, Satterthwaite's degrees of
freedom); it is bold where that interval leaves out 0 and there are at least three seeds (two tell too little of how
seeds differ). Intervals are not corrected for their number: of twenty true zeros one would be bold. "p of the mean" is
the probability of such a few-step mean if there were no difference, by Holm's correction for the rows that are compared
with the same one. {mean} is the mean over the few-step decodings, a decoding being block size/denoising steps per
block. A row with one training seed, and the teacher, has the uncertainty of the problems alone. Process hours leave out
students that another arena had trained; the commit is that at which the figures were put together.
"""
MARK = "<!-- arena {name} -->"
MARKS = re.compile(f"^{MARK.format(name='(.+)')}$", re.MULTILINE)


def page(parts: Mapping[str, ArenaResults], figures: str, before: str = "") -> tuple[str, dict[str, str]]:
    """The page's text, and its figures by file name.

    Args:
        parts: results by the arena's name.
        figures: the folder of the figures, as seen from the page.
        before: the page as it is; its sections of other arenas stay.
    """
    sections, drawn = _sections(before), {}
    for name, results in parts.items():
        try:
            compared = compare(results)
        except ValueError as error:
            raise DataError(f"results of {name}", "grades of problems in at least two families", error) from error
        names = {row: results.config.label(row) for row in results.config.row_names()}
        if any(" " in decoding for decoding in results.config.decodings):  # those that take as many steps as they need
            drawn[f"{name}.svg"] = svg(cost_figure(results.config, compared, names))
            lines = [_about(results), _costs(results, compared, names)]
            lines.append(f"![Accuracy against tokens per forward]({figures}/{name}.svg)")
        else:
            drawn[f"{name}.svg"] = svg(rows_figure(results.config, compared, names))
            lines = [_about(results), _accuracies(results, compared, names), f"![{MEAN}]({figures}/{name}.svg)"]
            if results.config.grids:
                lines.append(_choices(results))
            elif len(names) > 1:
                lines += _differences(results, list(names))
            if other := parts.get(results.config.beside or ""):
                lines.append(_beside(results, other))
        lines += _failures(results, names)
        sections[name] = "\n".join(["", "\n\n".join(lines), ""])
    texts = [f"{MARK.format(name=name)}{section.rstrip()}\n" for name, section in sections.items()]
    return "\n".join([HEAD.format(mean=MEAN.capitalize()), *texts]), drawn


def _sections(text: str) -> dict[str, str]:
    """A page's parts by the names of their arenas."""
    _, *marked = MARKS.split(text)
    return dict(zip(marked[::2], marked[1::2], strict=True))


def _about(results: ArenaResults) -> str:
    """What was measured, and how."""
    config = results.config
    spent = sum(student.seconds or 0.0 for student in results.students)
    evaluated = f"{len(results.problems)} problems of the {config.split} split in {len(set(results.families))} families"
    facts = (
        f"{config.world}: {config.num_rollouts} rollouts, {evaluated}, seeds {', '.join(map(str, config.seeds))};"
        f" keys of every student: {_code(config.common)}. Commit {results.environment['git_commit'] or 'unknown'},"
        f" torch {results.environment['torch']}, {spent / 3600:.1f} process hours on {results.environment['device']}."
    )
    return "\n\n".join(filter(None, [f"## {config.title or config.name}", config.text.strip(), facts]))


def _accuracies(results: ArenaResults, compared: Mapping[tuple[str, str], Compared], names: Mapping[str, str]) -> str:
    columns = [*results.config.decodings, MEAN]
    rows = []
    for row, name in names.items():
        found = [compared.get((row, column)) for column in columns]
        if not all(found):
            continue
        mean = compared[row, MEAN].accuracy
        parts = ["-" if mean.over_seeds is None else f"{100 * mean.over_seeds:.1f}", f"{100 * mean.over_problems:.1f}"]
        rows.append([name, str(mean.seeds), *(accuracy(each.accuracy) for each in found if each), " / ".join(parts)])
    return table(["", "seeds", *columns, "its error over seeds / problems"], rows)


def _costs(results: ArenaResults, compared: Mapping[tuple[str, str], Compared], names: Mapping[str, str]) -> str:
    """Accuracy at so many tokens per forward, a line for each decoding."""
    lines = [
        [decoding, *(_at_cost(compared.get((row, decoding))) for row in names)] for decoding in results.config.decodings
    ]
    return f"Accuracy, at so many tokens per forward:\n\n{table(['', *names.values()], lines)}"


def _at_cost(found: Compared | None) -> str:
    if found is None or found.tokens_per_forward is None:
        return "-"
    return f"{accuracy(found.accuracy)} at {found.tokens_per_forward:.2f}"


def _differences(results: ArenaResults, names: Sequence[str]) -> list[str]:
    """The rows' differences from the baseline, and what the arena compares beside."""
    config, columns = results.config, [*results.config.decodings, MEAN]
    first, head = config.reference_row(), [*columns, "p of the mean"]
    parts = [f"Against {config.label(first)}, in points:\n\n{table(['', *head], _against(results, first, names))}"]
    others = [
        [row, config.label(baseline), *cells]
        for baseline, compared in config.contrasts.items()
        for row, *cells in _against(results, baseline, compared)
    ]
    return parts + ([f"Further differences:\n\n{table(['', 'against', *head], others)}"] if others else [])


def _against(results: ArenaResults, baseline: str, others: Sequence[str]) -> list[list[str]]:
    """A line for each of the other rows: its differences from `baseline`, and Holm's correction of the mean's."""
    columns = [*results.config.decodings, MEAN]
    found = {row: [contrast(results, baseline, row, column) for column in columns] for row in others if row != baseline}
    return _corrected(results, found)


def _beside(results: ArenaResults, other: ArenaResults) -> str:
    """The rows' differences from those of the same names in another arena."""
    config, theirs = results.config, other.config
    title = theirs.title or theirs.name
    if (results.problems, config.decodings, config.few_step) != (other.problems, theirs.decodings, theirs.few_step):
        return f"Not compared with the same rows of “{title}”: problems or decodings are others."
    columns = [*config.decodings, MEAN]
    trained = {student.row for student in results.students if student.seed is not None}
    shared = [row for row in config.row_names() if row in trained and row in theirs.row_names()]
    found = {row: [contrast(results, row, row, column, other) for column in columns] for row in shared}
    rows = _corrected(results, found)
    if not rows:
        return f"Not compared with the same rows of “{title}”: no row has a seed in both."
    seeds = ", ".join(str(seed) for seed in config.seeds if seed in theirs.seeds)
    told = f"Against the same rows of “{title}” by the seeds of both ({seeds}), in points:"
    return f"{told}\n\n{table(['', *columns, 'p of the mean'], rows)}"


def _corrected(results: ArenaResults, found: Mapping[str, Sequence[Estimate | None]]) -> list[list[str]]:
    """A line for each row that has all its differences, and Holm's correction of the last one's, the mean's.

    Rows that differ alike everywhere are the same students by other names, and count as one.
    """
    known = {row: tuple(filter(None, differences)) for row, differences in found.items() if all(differences)}
    distinct = [*dict.fromkeys(known.values())]
    corrected = dict(zip(distinct, holm([differences[-1].p_value for differences in distinct]), strict=True))
    return [
        [results.config.label(row), *map(difference, differences), _probability(corrected[differences])]
        for row, differences in known.items()
    ]


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _failures(results: ArenaResults, names: Mapping[str, str]) -> list[str]:
    """Which students have no figures, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for student in results.students:
        if student.error:
            by_reason.setdefault(student.error, []).append(f"{names[student.row]} (seed {student.seed})")
    if not by_reason:
        return []
    told = [f"- {reason}: {', '.join(students)}" for reason, students in by_reason.items()]
    return ["\n".join(["Without figures:", "", *told])]


def _choices(results: ArenaResults) -> str:
    """What each grid chose, and what each of its combinations was."""
    tried: dict[str, list[str]] = {student.row: student.keys for student in results.students}
    rows = [
        [results.config.label(row), _code(" ".join(keys)), "chosen" if keys in results.chosen.values() else ""]
        for row, keys in tried.items()
    ]
    return table(["combination", "keys", ""], rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else "none"


def main(arguments: list[str]) -> None:
    """Writes the page of the files that the command line names."""
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("results", type=user_path, nargs="+", help="results of arenas, in the page's order")
    parser.add_argument(
        "--out", type=user_path, default=Path("docs/toy_results.md"), help="page to write; its other arenas stay"
    )
    parser.add_argument(
        "--readme", type=user_path, default=None, help="text whose table is to be of the first results' rows"
    )
    options = parser.parse_args(arguments)
    parts: dict[str, ArenaResults] = {}
    for path in options.results:
        results = load(path)
        if not any(student.scores for student in results.students):
            raise DataError(path, "at least one finished student", "none")
        if results.config.name in parts:
            raise DataError(path, "an arena of another name", f"{results.config.name} again")
        parts[results.config.name] = results
    if not options.out.suffix:
        raise DataError(
            options.out, "a page's name with an ending, as page.md: figures lie in the folder without it", "none"
        )
    first, folder = next(iter(parts.values())), options.out.with_suffix("")
    before = options.out.read_text(encoding="utf-8") if options.out.is_file() else ""
    kept = {name: folder / f"{name}.json" for name in _sections(before).keys() - parts.keys()}
    parts |= {name: load(path) for name, path in kept.items() if path.is_file()}
    text, drawn = page(parts, folder.name, before)
    texts = {options.out: text, **{folder / name: figure for name, figure in drawn.items()}}
    if options.readme is not None:
        texts[options.readme] = with_table(first, options.readme)
    make_folder(folder)
    for name, results in parts.items():
        write(results, folder / f"{name}.json")
    for path, content in texts.items():
        with atomic_writer(path) as file:
            file.write(content)
    logging.getLogger(__name__).info("%s", options.out)


if __name__ == "__main__":
    run_entry(main)
