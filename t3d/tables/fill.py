"""A table by one command: its grid evaluated cell by cell, and written in every format."""

import logging
from pathlib import Path
from typing import Any

from t3d.config import EvalConfig, TableConfig, load_config, save_config
from t3d.config.table import TABLE_AXES
from t3d.errors import DataError
from t3d.evaluation.results import to_json
from t3d.rollout.pool import Workers
from t3d.rollout.ranks import join_ranks
from t3d.rollout.run import project_folder
from t3d.storage.files import atomic_writer, read_json, write_json_atomic
from t3d.storage.folders import make_folder
from t3d.tables.cells import Place, Run, load_run, measure, plan
from t3d.tables.layout import best_runs, in_order, lay_out
from t3d.tables.render import csv_text, latex, markdown

log = logging.getLogger(__name__)

SHOWN = (
    *("checkpoint", "n", "acc", "stderr", "avg_len", "avg_steps", "tokens_per_step", "tokens_per_forward"),
    *("tokens_per_second", "latency_s"),
)


def run_table(config: EvalConfig) -> str:
    """Evaluates every cell of `config.table`, writes results/<name>.{md,csv,tex,json}, and returns the first.

    A cell is evaluated once for its content (weights, problems, settings, versions), whatever table asks for
    it; a killed table goes on where it was.  In a launch of several processes the first one writes, and the others
    return nothing.

    Raises:
        UserError: see `plan` and `evaluate`.
    """
    table, project = config.table, project_folder(config)
    runs = []
    cells = plan(config)
    with Workers() as workers:  # the cells of one model follow each other
        for number, cell in enumerate(cells, 1):
            log.info("%s, cell %d of %d: %s", table.name, number, len(cells), _words(cell.place))
            runs.append(measure(cell, project, workers))
    ranks = join_ranks()
    text = ranks.on_first(lambda: _write(runs, config, make_folder(project / "results")))
    return text if ranks.rank == 0 else ""


def _write(runs: list[Run], config: EvalConfig, folder: Path) -> str:
    """Writes the table's files, and returns it in Markdown."""
    table = config.table
    grid = lay_out(runs, table)
    texts = {"md": markdown(grid), "csv": csv_text(grid), "tex": latex(grid, table.name)}
    for suffix, text in texts.items():
        with atomic_writer(folder / f"{table.name}.{suffix}") as file:
            file.write(text)
    save_config(config, folder / f"{table.name}.config.yaml")
    write_json_atomic(folder / f"{table.name}.json", _records(runs, table, folder))
    return texts["md"]


def load_table(path: Path) -> tuple[list[Run], TableConfig]:
    """Reads a table that `run_table` wrote: its cells, and its layout from the configuration beside it.

    Raises:
        DataError: not such a file, or a file that it names is gone.
    """
    settings = path.with_suffix(".config.yaml")
    if not settings.is_file():
        raise DataError(path, f"a table, with its settings beside it in {settings.name}", "none there")
    config = load_config(EvalConfig, [f"config={settings}"], "", "")
    runs = []
    for index, record in enumerate(read_json(path)):
        if not isinstance(record, dict) or not {*TABLE_AXES, "cell"} <= record.keys():
            raise DataError(f"{path}, record {index}", "a cell of a table", "something else")
        place = {axis: record[axis] for axis in TABLE_AXES}
        runs.append(Run(place) if record["cell"] is None else load_run(path.parent / record["cell"], place))
    return runs, config.table


def _records(runs: list[Run], table: TableConfig, folder: Path) -> list[dict[str, Any]]:
    """The cells in the table's order, as JSON."""
    best = best_runs(runs, table)
    records = []
    for run in in_order(runs, table):
        told = {} if run.results is None else to_json(run.results)
        figures = {name: told.get(name) for name in SHOWN}
        cell = None if run.path is None else str(Path("..") / run.path.relative_to(folder.parent))
        records.append({**run.place, **figures, "bold": any(run is one for one in best), "cell": cell})
    return records


def _words(place: Place) -> str:
    decoding = f"block {place['block_size']}, {place['denoising_steps']} steps, {place['strategy']}"
    return ", ".join(filter(None, [place["base"], place["model"], place["dataset"], decoding]))
