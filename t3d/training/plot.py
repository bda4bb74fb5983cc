"""Curves of training runs, side by side: loss, log-ratios, gradient norm, learning rate, validation, meter over steps.

python -m t3d.training.plot RUN [RUN ...] [--out FILE.png|.svg]
"""

from t3d.entry import run_entry

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from t3d.arguments import ArgumentParser
from t3d.errors import DataError
from t3d.storage.paths import user_path
from t3d.training.metrics import GAP, METRICS, SCORE, read_metrics

log = logging.getLogger(__name__)

FORMATS = (".png", ".svg")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart; more runs than colours begin again."""


@dataclass(frozen=True)
class Panel:
    """One set of axes: the metrics that it shows, each with a line style, and its label."""

    label: str
    metrics: Mapping[str, str]
    smooth: bool = True
    zero: bool = True
    """Draw a line at 0, where there are several metrics."""


PANELS = (
    Panel("loss (total)", {"loss/total": "-"}),
    Panel("mean log-ratio to the reference (nats)", {"ratio/real": "-", "ratio/fake": "--"}),
    Panel("gradient norm", {"grad_norm": "-"}),
    Panel("learning rate", {"lr": "-"}, smooth=False),
)

VALIDATION_STYLES = ("o-", "o--", "o:", "o-.")
"""Of the score and of each decoding; more decodings than styles begin again."""

Run = list[dict[str, Any]]


def load_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """The metrics of each run under its name: that of its folder, or its path where names repeat.

    Raises:
        DataError: no such run, no metrics of it, or an unreadable line.
    """
    names = [folder.resolve().name for folder in folders]
    runs = {}
    for name, folder in zip(names, folders, strict=True):
        if not folder.is_dir():
            raise DataError(folder, "the folder of a training run", "no such folder")
        lines = read_metrics(folder / METRICS)
        if not lines:
            raise DataError(folder / METRICS, "the metrics of at least one step", "none")
        runs[name if names.count(name) == 1 else str(folder)] = lines
    return runs


def draw(runs: Mapping[str, Run]) -> Figure:
    """One panel per metric that any run has: its values in a pale colour, their smoothed course in a strong one."""
    known = {name for run in runs.values() for line in run for name in line}
    measured = validation_panel(known), meter_panel(known)
    panels = [panel for panel in (*PANELS, *measured) if known.intersection(panel.metrics)]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3.4 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, min(2, len(panels)), squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, runs)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = [Line2D([], [], color=_color(place), lw=2, label=name) for place, name in enumerate(runs)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(runs)), frameon=False)
    return figure


def validation_panel(known: Collection[str]) -> Panel:
    """Validation accuracy: the score that decides which checkpoint is the best, and that of each decoding.

    Args:
        known: names of the metrics of all runs.
    """
    names = [SCORE, *sorted(name for name in known if name.startswith(f"{SCORE}_"))]
    return _panel_of_decodings("validation accuracy", names)


def meter_panel(known: Collection[str]) -> Panel:
    """The factorisation gap of each decoding (`training.meter_every`).

    Args:
        known: names of the metrics of all runs.
    """
    return _panel_of_decodings("factorisation gap (nats per block)", sorted(n for n in known if n.startswith(GAP)))


def _panel_of_decodings(label: str, names: Sequence[str]) -> Panel:
    styles = (VALIDATION_STYLES[place % len(VALIDATION_STYLES)] for place in range(len(names)))
    return Panel(label, dict(zip(names, styles, strict=True)), smooth=False, zero=False)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over a twentieth of the run on either side, over fewer steps near the ends."""
    reach = len(values) // 20
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def save(figure: Figure, path: Path) -> None:
    """Writes the picture, whole or not at all.

    Raises:
        DataError: a name that ends in neither .png nor .svg, or a place that cannot be written to.
    """
    if path.suffix not in FORMATS:
        raise DataError(path, f"a name that ends in {' or '.join(FORMATS)}", path.suffix or "none")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(path, "a place that can be written to", error.strerror or error) from error


def _draw_panel(axes: Axes, panel: Panel, runs: Mapping[str, Run]) -> None:
    for place, run in enumerate(runs.values()):
        for name, style in panel.metrics.items():
            steps, values = _series(run, name)
            if not panel.smooth:
                axes.plot(steps, values, style, color=_color(place), lw=1.6, ms=3)
                continue
            axes.plot(steps, values, style, color=_color(place), lw=0.7, alpha=0.3)
            axes.plot(steps, smoothed(values), style, color=_color(place), lw=1.8)
    axes.set_title(panel.label, fontsize=10, loc="left")
    axes.set_xlabel("global step")
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.metrics) > 1:
        if panel.zero:
            axes.axhline(0, color="grey", lw=0.8, zorder=0)
        styles = [
            Line2D([], [], color="grey", ls=style.lstrip("o"), label=name) for name, style in panel.metrics.items()
        ]
        axes.legend(handles=styles, fontsize=8, loc="upper left", framealpha=0.85, edgecolor="none")


def _series(run: Run, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [(line["step"], line[name]) for line in run if line.get(name) is not None]
    columns = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def main(arguments: list[str]) -> None:
    """Parses the command line, draws and saves."""
    parser = ArgumentParser(
        "Draws loss, log-ratios, gradient norm and learning rate of training runs over their global steps.",
        "python -m t3d.training.plot toy_paper/train/t3d toy_paper/train/td --out curves.svg",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=user_path, help="folder of a run (holds metrics.jsonl)")
    parser.add_argument(
        "--out", type=user_path, help="picture to write, .png or .svg (default: RUN/curves.png of the first)"
    )
    given = parser.parse_args(arguments)
    out = vars(given).get("out", given.runs[0] / "curves.png")
    figure = draw(load_runs(given.runs))
    save(figure, out)
    log.info("%s", out)


if __name__ == "__main__":
    run_entry(main)
