"""Factorisation meter of an arena: what few steps cost its students, in nats per block, by row.

Measures every student that is trained, at the arena's decodings of several tokens per step, on its problems; writes
<folder>/results/<name>-meter.json and prints a table.  What is measured is kept: the same command later adds students.
"""

from t3d.entry import run_entry

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from t3d.arena.markdown import table
from t3d.arena.plan import Job, jobs, prepare
from t3d.arena.settings import ArenaConfig
from t3d.arena.statistics import Estimate, Families, estimate, paired
from t3d.arena.worlds import problem_families
from t3d.config import load_config
from t3d.decoding.factorisation import Gap, mean_gap
from t3d.errors import ConfigError, DataError
from t3d.evaluation.environment import environment
from t3d.evaluation.meter import measure
from t3d.storage.files import write_json_atomic
from t3d.storage.folders import make_folder
from t3d.storage.paths import user_path

log = logging.getLogger(__name__)

EXAMPLE = "python -m t3d.arena.meter config=toy/arena/paper num_problems=200"


@dataclass(frozen=True)
class Metered:
    """A student (seed None: the teacher) with the gaps of each problem, by decoding."""

    row: str
    seed: int | None
    gaps: dict[str, list[Gap]]


def run(config: ArenaConfig) -> tuple[list[Metered], Families]:
    """Measures the students that there are, and saves their figures: these, and the families of the problems.

    Raises:
        UserError: a mistake in the configuration, no student that is trained, or no decoding of several tokens per
            step.
    """
    if config.num_problems < 2:
        raise ConfigError("num_problems", "at least 2, for an error over problems", config.num_problems)
    folder, data = user_path(config.folder), prepare(config)
    if not data.answers.exists():
        raise DataError(data.answers, "an arena that has run (python -m t3d.arena, with the same keys)", "no such file")
    every = jobs(config, data)
    there = [job for job in every if job.student.is_dir()]
    parts = few_steps(every[0])
    if not there or not parts:
        expected = "a student that is trained, and a decoding of fewer steps than positions"
        raise ConfigError("folder, decodings", expected, f"{len(there)} students, {len(parts)} block sizes")
    found = []
    for number, job in enumerate(there, 1):
        log.info("%s, meter %d of %d: %s, seed %s", config.name, number, len(there), job.row, job.seed)
        gaps: dict[str, list[Gap]] = {}
        for cell, few in parts.items():
            gaps |= measure(job.cells[cell].config, few, folder / "meter").gaps
        found.append(Metered(job.row, job.seed, gaps))
    _save(config, found, folder / "results" / f"{config.name}-meter.json")
    return found, np.array(problem_families(data.evaluated, config.num_problems))


def few_steps(job: Job) -> dict[str, list[int]]:
    """For each block size the name of its first decoding, and its numbers of steps that are fewer than positions."""
    first: dict[int, str] = {}
    few: dict[int, list[int]] = {}
    for name, cell in job.cells.items():
        size, steps = cell.place["block_size"], cell.place["denoising_steps"]
        if steps < size:
            first.setdefault(size, name)
            few[size] = sorted({*few.get(size, []), steps}, reverse=True)
    return {first[size]: steps for size, steps in few.items()}


def by_row(
    found: Sequence[Metered], families: Families | None = None
) -> dict[tuple[str, str], tuple[Estimate, Estimate | None]]:
    """Each row's gap in nats per block at each decoding, and its difference from the teacher's, if that is a row.

    The gap of a seed is a ratio of sums, so a problem's value is what it adds to that: r + (g - r b) / mean(b), with g
    its gap, b its blocks and r the ratio.  The values' mean is r, and their spread gives its linearised error.
    """
    teacher = {name: _values(gaps)[None] for one in found if one.seed is None for name, gaps in one.gaps.items()}
    taught = {one.row for one in found if one.seed is not None}
    seeds: dict[tuple[str, str], list[np.ndarray]] = {}
    for one in found:
        for name, gaps in one.gaps.items():
            seeds.setdefault((one.row, name), []).append(_values(gaps))
    answer = {}
    for (row, name), each in seeds.items():
        values = np.array(each)
        difference = paired(teacher[name], values, families) if row in taught and name in teacher else None
        answer[row, name] = estimate(values, families), difference
    return answer


def _values(gaps: Sequence[Gap]) -> np.ndarray:
    nats, blocks = np.array([[gap.nats, gap.num_blocks] for gap in gaps]).T
    ratio = nats.sum() / blocks.sum()
    return ratio + (nats - ratio * blocks) / blocks.mean()


def text(found: Sequence[Metered], families: Families, labels: Mapping[str, str]) -> str:
    """The rows as a table in Markdown, and how to read it."""
    compared = by_row(found, families)
    decodings = list(dict.fromkeys(name for _, name in compared))
    of_size = {name.partition("/")[0]: name for name in decodings}
    rows = []
    for row in dict.fromkeys(one.row for one in found):
        cells = [compared[row, name] for name in decodings]
        entropies = [_entropy([one for one in found if one.row == row], name) for name in of_size.values()]
        rows.append([labels.get(row, row), str(cells[0][0].seeds), *(_cell(*cell) for cell in cells), *entropies])
    note = (
        "Gap in nats per block ± its standard error over seeds and problems (one seed: problems alone); bold where the"
        " 95 % interval of the difference from the teacher leaves out 0. Entropy: of a block's samples, in nats."
    )
    head = ["", "seeds", *decodings, *(f"entropy, blocks of {size}" for size in of_size)]
    return f"{table(head, rows)}\n\n{note}\n"


def _entropy(students: Sequence[Metered], decoding: str) -> str:
    """Mean over the seeds."""
    return f"{np.mean([mean_gap(one.gaps[decoding]).entropy_per_block for one in students]):.3f}"


def _cell(mean: Estimate, difference: Estimate | None) -> str:
    told = f"{mean.mean:.3f} ± {mean.stderr:.3f}"
    return f"**{told}**" if difference is not None and difference.is_clear else told


def _save(config: ArenaConfig, found: Sequence[Metered], path: Path) -> None:
    students = [
        {
            "row": one.row,
            "seed": one.seed,
            "figures": {name: asdict(mean_gap(gaps)) for name, gaps in one.gaps.items()},
        }
        for one in found
    ]
    make_folder(path.parent)
    write_json_atomic(path, {"config": asdict(config), "environment": environment(), "students": students})
    log.info("%s", path)


def main(arguments: list[str]) -> None:
    """Parses the configuration and measures."""
    config = load_config(ArenaConfig, arguments, __doc__ or "", EXAMPLE)
    sys.stdout.write(text(*run(config), config.labels))


if __name__ == "__main__":
    run_entry(main)
