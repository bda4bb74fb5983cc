"""One HTML file, without anything to fetch, that shows tables, plots, meters, and the settings of every run."""

from t3d.entry import run_entry

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from t3d.arguments import ArgumentParser
from t3d.config import TableConfig
from t3d.errors import DataError
from t3d.evaluation.results import Results, from_json
from t3d.storage.files import atomic_writer, read_json
from t3d.storage.folders import make_folder
from t3d.storage.paths import user_path
from t3d.tables.cells import Run
from t3d.tables.curves import AUP_ALPHA, AUP_TOLERANCE, Panel, distinct, panels, reference_accuracy
from t3d.tables.fill import load_table
from t3d.tables.layout import lay_out, named
from t3d.tables.meter import Meter, read_meters
from t3d.tables.outcomes import load_outcomes
from t3d.tables.plots import aup_d3llm_plot, aup_plot, budget_plot, pareto_plot, svg
from t3d.tables.render import MISSING, head_levels, row_labels, shown

log = logging.getLogger(__name__)

EXAMPLE = (
    "python -m t3d.tables.report paper/results/table*.json paper/results/meter-*.json --out paper/results/report.html"
)
RUN_HEADS = (
    *("#", "Base", "Method", "Data set", "Block", "Steps", "Strategy", "n", "acc (%)", "avg len", "avg steps"),
    *("tokens/step", "tokens/forward", "TPS", "Checkpoint"),
)
METER_HEADS = (
    *("Model", "Data set", "Block", "Steps", "n", "gap (nats/block)", "gap (nats/token)", "entropy (nats/block)"),
    "acc (%)",
)
SHOWN_SETTINGS = (
    *("config.experiment.output_dir", "config.evaluation.checkpoint_path", "config.evaluation.eval_dataset"),
    *("config.rollout.block_size", "config.rollout.denoising_steps_per_block", "config.rollout.remasking_strategy"),
)


@dataclass(frozen=True)
class Plot:
    """One figure: its kind, its SVG document and its caption."""

    kind: str
    svg: str
    caption: str


@dataclass(frozen=True)
class PlotSet:
    """The plots of the models of one table, by its name and title."""

    name: str
    title: str
    plots: list[Plot]


def load(
    paths: Sequence[Path], baseline: str | None
) -> tuple[list[tuple[list[Run], TableConfig]], list[Run], list[Meter]]:
    """Reads tables (lists of cells), single results and meters.

    Returns:
        Each table's runs and layout; the single runs, whose method is the name of their checkpoint; the meters.

    Raises:
        DataError: a file that is none of these.
    """
    tables, singles, meters = [], [], []
    for path in paths:
        content = read_json(path)
        if isinstance(content, list):
            tables.append(load_table(path))
        elif isinstance(content, dict) and "meter" in content:
            meters += read_meters(content, path)
        else:
            singles.append(_single(path, from_json(content, path)))
    known = {run.place["model"] for run in singles}
    if baseline is not None and baseline not in known:
        raise DataError("--baseline", f"the checkpoint of a results file: {', '.join(sorted(known))}", baseline)
    return tables, singles, meters


def plot_sets(
    tables: Sequence[tuple[list[Run], TableConfig]], singles: Sequence[Run], baseline: str | None
) -> list[PlotSet]:
    """The plots of each set of models that the tables, or the single results together, show."""
    sources = [
        (table.name, table.title or table.name, named(mine, table), table.baseline and table.label(table.baseline))
        for mine, table in tables
    ]
    if singles:
        sources.append(("results", "the single results", list(singles), baseline))
    chosen = panels([(mine, reference) for _, _, mine, reference in sources])
    return [PlotSet(sources[number][0], sources[number][1], _plots(together)) for number, together in chosen.items()]


def page(
    tables: Sequence[tuple[list[Run], TableConfig]],
    singles: Sequence[Run],
    plots: Sequence[PlotSet],
    meters: Sequence[Meter] = (),
    trajectories: str | None = None,
) -> str:
    """The report as an HTML document, with a link to a page of `t3d.viewer` if there is one."""
    runs = distinct([run for mine, table in tables for run in named(mine, table)] + list(singles))
    common, varied = _settings(runs)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode("ascii")
    template = environment.from_string(files("t3d.tables").joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        title="Few-step decoding: results",
        lead=f"Tables: {len(tables)}; runs: {len(runs)}. Everything here comes from the files of these runs.",
        tables=[_table(mine, table) for mine, table in tables],
        plot_sets=plots,
        meter_heads=METER_HEADS,
        meters=[_meter_row(meter, runs) for meter in meters],
        trajectories=trajectories,
        run_heads=RUN_HEADS,
        runs=[_run_row(number, run) for number, run in enumerate(runs, 1)],
        warnings=dict.fromkeys(run.results.leakage for run in runs if run.results and run.results.leakage),
        common=common,
        varied=varied,
        shown=shown,
    )


def _table(runs: Sequence[Run], table: TableConfig) -> dict[str, Any]:
    grid = lay_out(runs, table)
    return {
        "grid": grid,
        "levels": head_levels(grid),
        "width": len(grid.row_heads) + len(grid.column_heads),
        "sections": [
            {"label": section.label, "rows": list(zip(row_labels(section), section.rows, strict=True))}
            for section in grid.sections
        ],
    }


def _plots(together: Sequence[Panel]) -> list[Plot]:
    """The plots of one set of models."""
    front = (
        "Accuracy against tokens per forward, with standard errors. Lines join the decodings that no other of the same"
        " model beats in both; open markers are of other strategies than static decoding."
    )
    plots = [Plot("pareto", svg(pareto_plot(together)), front)]
    budget = budget_plot(together)
    if budget is not None:
        plots.append(Plot("budget", svg(budget), "Accuracy against the step budget, static decoding."))
    scores = aup_plot(together)
    if scores is not None:
        references = [
            f"{panel.title}: {panel.baseline} at its fewest tokens per step, {reference:.1f} %"
            for panel in together
            if (reference := reference_accuracy(panel)) is not None
        ]
        caption = (
            "Accuracy under parallelism (AUP, arXiv:2601.07568): area under accuracy (%) against tokens per forward,"
            f" accuracy below the reference weighted by exp(-{AUP_ALPHA:g} (1 - acc / reference)), decodings more"
            f" than {AUP_TOLERANCE:g} points below the model's best left out; of the decodings that all models here"
            " have. The reference is fixed, whatever is compared with it. "
        )
        plots.append(Plot("aup", svg(scores), caption + "; ".join(references) + "."))
    published = (
        "AUP as d3LLM publishes it (arXiv:2601.07568), to be put beside its tables: the reference is the best accuracy"
        " of the models shown here, so that a score changes with its competitors, and all decodings of a model count."
    )
    plots.append(Plot("aup-d3llm", svg(aup_d3llm_plot(together)), published))
    return plots


def _single(path: Path, results: Results) -> Run:
    decoding = results.decoding
    block_size, steps = decoding.block_size, decoding.denoising_steps
    place = {
        "base": None,
        "model": results.model,
        "dataset": results.dataset,
        "strategy": decoding.remasking_strategy,
        "block_size": block_size,
        "denoising_steps": steps,
        "tokps": f"{block_size / steps:.3g}" if block_size and steps else None,
    }
    return Run(place, results.model, results, load_outcomes(path, results), path)


def _run_row(number: int, run: Run) -> list[str]:
    assert run.results is not None
    place, figures = run.place, run.results.metrics

    def text(value: float | None, digits: int) -> str:
        return MISSING if value is None else f"{value:.{digits}f}"

    return [
        *(str(number), place["base"] or "", place["model"], place["dataset"]),
        *(text(place["block_size"], 0), text(place["denoising_steps"], 0), place["strategy"] or MISSING),
        *(str(figures.n), f"{100 * figures.acc:.2f} ± {100 * figures.stderr:.2f}"),
        *(text(figures.avg_len, 1), text(figures.avg_steps, 1), text(figures.tokens_per_step, 2)),
        *(text(figures.tokens_per_forward, 2), text(figures.tokens_per_second, 0), run.results.model),
    ]


def _meter_row(meter: Meter, runs: Sequence[Run]) -> list[str]:
    """A meter's figures, with the accuracy of every run of the same model, problems, block size and steps."""
    decoding, accuracies = (meter.block_size, meter.denoising_steps), []
    for run in runs:
        assert run.results is not None
        place, results = run.place, run.results
        same = {run.model, results.checkpoint} & {meter.model, meter.checkpoint} and results.dataset == meter.dataset
        if same and (place["block_size"], place["denoising_steps"]) == decoding:
            acc, stderr = results.metrics.acc, results.metrics.stderr
            accuracies.append(f"{100 * acc:.2f} ± {100 * stderr:.2f} ({place['strategy']})")
    figures = meter.figures
    return [
        *(meter.label, meter.dataset, *map(str, decoding), str(figures.num_samples)),
        *(f"{figures.nats_per_block:.4f} ± {figures.stderr:.4f}", f"{figures.nats_per_token:.4f}"),
        *(f"{figures.entropy_per_block:.4f}", ", ".join(accuracies) or MISSING),
    ]


def _settings(runs: Sequence[Run]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Settings and environment that all runs share; and (name, value, runs) of the others."""
    values: dict[str, dict[str, list[int]]] = {}
    for number, run in enumerate(runs, 1):
        assert run.results is not None
        told = {"config": run.results.config, "environment": run.results.environment}
        for name, value in _flat(told).items():
            values.setdefault(name, {}).setdefault(str(value), []).append(number)
    common, varied = {}, []
    for name, by_value in values.items():
        if len(by_value) == 1 and len(next(iter(by_value.values()))) == len(runs):
            common[name] = next(iter(by_value))
        elif name not in SHOWN_SETTINGS:
            varied += [(name, value, ", ".join(map(str, numbers))) for value, numbers in by_value.items()]
    return common, varied


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found


def main(arguments: list[str]) -> None:
    """Writes the report of the files that the command line names."""
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "results",
        type=user_path,
        nargs="+",
        help="tables (<name>.json), results (results-<name>.json), meters (meter-<name>.json)",
    )
    parser.add_argument("--out", type=user_path, default=Path("report.html"), help="file to write")
    parser.add_argument("--baseline", default=None, help="checkpoint that AUP refers to, for results without a table")
    parser.add_argument("--trajectories", default=None, help="link to a page of t3d.viewer, as seen from the report")
    parser.add_argument("--plots", type=user_path, default=None, help="folder to write each plot to, as SVG")
    options = parser.parse_args(arguments)
    tables, singles, meters = load(options.results, options.baseline)
    sets = plot_sets(tables, singles, options.baseline)
    texts = {options.out: page(tables, singles, sets, meters, options.trajectories)}
    if options.plots is not None:
        texts |= {options.plots / f"{one.name}-{plot.kind}.svg": plot.svg for one in sets for plot in one.plots}
    for path, text in texts.items():
        make_folder(path.parent)
        with atomic_writer(path) as file:
            file.write(text)
    log.info("%s: %d tables, %d single results, %d meters", options.out, len(tables), len(singles), len(meters))


if __name__ == "__main__":
    run_entry(main)
