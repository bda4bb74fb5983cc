"""A grid of evaluations as one table: checkpoints by data sets by decodings."""

import logging
from dataclasses import replace
from typing import Any

from t3d.config import DecodeConfig, TableConfig
from t3d.evaluation.run import evaluate
from t3d.files import atomic_writer, write_json_atomic
from t3d.folders import make_folder
from t3d.paths import dataset_name
from t3d.rollout.run import project_folder

log = logging.getLogger(__name__)

FIGURES = ("n", "acc", "stderr", "tokens_per_step", "tokens_per_forward")


def run_table(config: DecodeConfig) -> list[dict[str, Any]]:
    """Evaluates every cell of `config.table` and writes results/table.json and results/table.md.

    Cells that an earlier, interrupted run finished are taken as they are.

    Raises:
        UserError: see `evaluate`.
    """
    table, project = config.table, project_folder(config)
    cells = []
    for model, checkpoint in table.checkpoints.items():
        for dataset in table.datasets or [config.evaluation.eval_dataset]:
            for block_size, steps in table.decodings:
                log.info("%s, %s, block %d, steps %d", model, dataset_name(dataset), block_size, steps)
                name = f"{model}-{dataset_name(dataset)}-b{block_size}-s{steps}"
                cell = replace(
                    config,
                    experiment=replace(config.experiment, output_dir=str(project / "cells" / name)),
                    rollout=replace(config.rollout, block_size=block_size, denoising_steps_per_block=steps),
                    evaluation=replace(config.evaluation, checkpoint_path=checkpoint, eval_dataset=dataset),
                    table=TableConfig(),
                )
                results = evaluate(cell)
                cells.append(
                    {
                        "model": model,
                        "dataset": results["dataset"],
                        "block_size": block_size,
                        "denoising_steps": steps,
                        **{figure: results[figure] for figure in FIGURES},
                    }
                )
    folder = make_folder(project / "results")
    write_json_atomic(folder / "table.json", cells)
    with atomic_writer(folder / "table.md") as file:
        file.write(markdown(cells))
    return cells


def markdown(cells: list[dict[str, Any]]) -> str:
    """The table in Markdown: a row per model and data set, a column per decoding, accuracy in %."""
    columns = list(dict.fromkeys((cell["block_size"], cell["denoising_steps"]) for cell in cells))
    rows = list(dict.fromkeys((cell["model"], cell["dataset"]) for cell in cells))
    by_place = {(cell["model"], cell["dataset"], cell["block_size"], cell["denoising_steps"]): cell for cell in cells}
    lines = [
        "| model | data set | " + " | ".join(f"block {block}, {steps} steps" for block, steps in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for model, dataset in rows:
        shown = [_shown(by_place[model, dataset, block, steps]) for block, steps in columns]
        lines.append(f"| {model} | {dataset} | " + " | ".join(shown) + " |")
    problems = sorted({cell["n"] for cell in cells})
    lines += ["", f"Accuracy in % ± standard error (tokens per step); n = {', '.join(map(str, problems))}."]
    return "\n".join(lines) + "\n"


def _shown(cell: dict[str, Any]) -> str:
    return f"{100 * cell['acc']:.1f} ± {100 * cell['stderr']:.1f} ({cell['tokens_per_step']:.2f})"
