"""Plots of accuracy against parallelism and step budget, drawn with matplotlib."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from t3d.tables.curves import Panel, Point, aup, aup_d3llm, comparable, pareto, reference_accuracy

# Okabe and Ito's colours, which the colour-blind can tell apart, then darker ones.
COLOURS = (
    *("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"),
    *("#56B4E9", "#7F6000", "#7B3294", "#5A5A5A", "#8C2D04", "#238B45"),
)
MARKERS = "osD^vPX*<>ph"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "t3d",
}
STATIC = "low_confidence_static"


def pareto_plot(panels: Sequence[Panel]) -> Figure:
    """Accuracy against tokens per forward: every decoding with its standard error, each model's front as a line.

    Decodings by another strategy than the static one have an open marker.
    """

    def draw(axes: Axes, points: Sequence[Point], style: dict[str, Any]) -> None:
        front = pareto(points)
        axes.plot([p.parallelism for p in front], [p.accuracy for p in front], color=style["color"], linewidth=1.5)
        for is_static in (True, False):
            mine = [point for point in points if (point.strategy == STATIC) is is_static]
            fill = {} if is_static else {"markerfacecolor": "white", "markersize": 8}
            _error_bars(axes, [point.parallelism for point in mine], mine, style | fill)

    return _figure(panels, draw, "tokens per forward")


def budget_plot(panels: Sequence[Panel]) -> Figure | None:
    """Accuracy against the step budget, static decoding: a panel for each block size; None if nothing is static."""
    split = [
        Panel(f"{panel.title}, block {size}", curves, panel.baseline)
        for panel in panels
        for size in sorted({point.block_size for points in panel.curves.values() for point in points})
        if (curves := _static(panel, size))
    ]
    if not split:
        return None

    def draw(axes: Axes, points: Sequence[Point], style: dict[str, Any]) -> None:
        ordered = sorted(points, key=_steps)
        _error_bars(axes, [_steps(point) for point in ordered], ordered, style | {"linestyle": "-"})

    figure = _figure(split, draw, "denoising steps per block")
    for axes, panel in zip(figure.axes, split, strict=True):
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        ticks = sorted({_steps(point) for points in panel.curves.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.margins(x=0.1)
    return figure


def aup_plot(panels: Sequence[Panel]) -> Figure | None:
    """Accuracy under parallelism of each model, for the panels that have a reference; None if there is none."""
    mine = [
        (panel.title, curves, reference)
        for panel in panels
        if (reference := reference_accuracy(panel)) is not None and all((curves := comparable(panel)).values())
    ]
    if not mine:
        return None
    scores = [
        (title, {model: aup(points, reference) for model, points in curves.items()})
        for title, curves, reference in mine
    ]
    return _bars(scores, _models(panels), "AUP")


def aup_d3llm_plot(panels: Sequence[Panel]) -> Figure:
    """The same as d3LLM publishes it, which needs no baseline: its reference is the best of the models."""
    return _bars([(panel.title, aup_d3llm(panel)) for panel in panels], _models(panels), "AUP (d3LLM)")


def _bars(panels: Sequence[tuple[str, dict[str, float]]], models: Sequence[str], label: str) -> Figure:
    """A panel for each title, with a bar for each model's score."""
    with mpl.rc_context(STYLE):
        figure, grid = _subplots(len(panels), width=4.6, height=0.9 + 0.32 * len(models), sharey=False)
        for axes, (title, scores) in zip(grid, panels, strict=True):
            colours = [_colour(models.index(model)) for model in scores]
            bars = axes.barh(list(scores), list(scores.values()), color=colours, height=0.65)
            axes.bar_label(bars, fmt="%.1f", padding=3)
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.grid(visible=False, axis="y")
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(label)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG document, the same for the same figure."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _figure(panels: Sequence[Panel], draw: Callable[[Axes, Sequence[Point], dict[str, Any]], None], x: str) -> Figure:
    """A panel for each of `panels`, with one legend for the models."""
    models = _models(panels)
    with mpl.rc_context(STYLE):
        figure, grid = _subplots(len(panels), width=4.2, height=3.4, sharey=True)
        for axes, panel in zip(grid, panels, strict=True):
            for model, points in panel.curves.items():
                number = models.index(model)
                draw(axes, points, {"color": _colour(number), "marker": MARKERS[number % len(MARKERS)]})
            axes.set_title(panel.title, fontsize=10)
            axes.set_xlabel(x)
            axes.set_ylabel("accuracy (%)")
        handles = [
            Line2D([], [], color=_colour(number), marker=MARKERS[number % len(MARKERS)])
            for number in range(len(models))
        ]
        figure.legend(handles, models, loc="outside right upper")
    return figure


def _subplots(count: int, width: float, height: float, sharey: bool) -> tuple[Figure, list[Axes]]:
    """A figure with `count` plots of the size given in inches, at most four a line."""
    columns = min(count, 4)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False, sharey=sharey).flat)
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def _error_bars(axes: Axes, x: Sequence[float], points: Sequence[Point], style: dict[str, Any]) -> None:
    errors = [point.stderr for point in points]
    options: dict[str, Any] = {
        "linestyle": "none",
        "markersize": 5,
        "elinewidth": 1.2,
        "ecolor": (style["color"], 0.4),
    } | style
    axes.errorbar(x, [point.accuracy for point in points], errors, **options)


def _static(panel: Panel, block_size: int) -> dict[str, list[Point]]:
    chosen = {
        model: [point for point in points if point.strategy == STATIC and point.block_size == block_size]
        for model, points in panel.curves.items()
    }
    return {model: points for model, points in chosen.items() if points}


def _models(panels: Sequence[Panel]) -> list[str]:
    return list(dict.fromkeys(model for panel in panels for model in panel.curves))


def _steps(point: Point) -> float:
    return point.block_size / point.budget


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
