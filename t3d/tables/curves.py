"""Accuracy against parallelism: points, Pareto fronts, and accuracy under parallelism (AUP)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t3d.tables.cells import Run

AUP_ALPHA = 3.0
AUP_TOLERANCE = 5.0
"""Constants of AUP: the penalty factor, and the points of accuracy that a counted decoding may lose."""


@dataclass(frozen=True)
class Point:
    """One decoding of one model on one data set.

    Attributes:
        parallelism: tokens per forward.
        accuracy: in %.
        stderr: of the accuracy, in points.
        budget: nominal tokens per step.
        block_size: positions per block.
        strategy: remasking strategy.
    """

    parallelism: float
    accuracy: float
    stderr: float
    budget: float
    block_size: int
    strategy: str


@dataclass(frozen=True)
class Panel:
    """The models of one table on one data set: what one plot shows.

    Attributes:
        title: base model and data set.
        curves: model -> its points.
        baseline: the model that AUP refers to, if the table names one.
    """

    title: str
    curves: dict[str, list[Point]]
    baseline: str | None


def panels(tables: Sequence[tuple[Sequence[Run], str | None]]) -> dict[int, list[Panel]]:
    """What to plot for tables, given as their runs and baseline: number of the table -> a panel per data set.

    A model brings its decodings from every table (it is known by its weights), and a table whose models
    another one shows as well gets no plots of its own.
    """
    tables = [(distinct(runs), baseline) for runs, baseline in tables]
    everything = distinct([run for runs, _ in tables for run in runs])
    models = [{_identity(run) for run in runs} for runs, _ in tables]
    answer = {}
    for number, (runs, baseline) in enumerate(tables):
        repeated = any(
            models[number] < other or (models[number] == other and place < number) for place, other in enumerate(models)
        )
        found = [] if repeated else _panels(runs, everything, baseline)
        if found:
            answer[number] = found
    return answer


def distinct(runs: Sequence[Run]) -> list[Run]:
    """The finished runs, each once, as the first table calls it."""
    found: dict[Path | None, Run] = {}
    for run in runs:
        if run.results is not None:
            found.setdefault(run.path, run)
    return list(found.values())


def _panels(runs: Sequence[Run], everything: Sequence[Run], baseline: str | None) -> list[Panel]:
    found = []
    for base, dataset in dict.fromkeys((run.place["base"], run.place["dataset"]) for run in runs):
        labels = {_identity(run): run.place["model"] for run in runs if run.place["base"] == base}
        curves: dict[str, list[Point]] = {label: [] for label in labels.values()}
        for run in everything:
            point = _point(run)
            if run.place["dataset"] == dataset and _identity(run) in labels and point is not None:
                curves[labels[_identity(run)]].append(point)
        shown = {label: points for label, points in curves.items() if points}
        if shown:
            found.append(Panel(", ".join(filter(None, (base, dataset))), shown, baseline))
    return found


def _identity(run: Run) -> tuple:
    return run.place["base"], run.model


def _point(run: Run) -> Point | None:
    """The run as a point; None if its file does not tell how it was decoded, or in how many forwards."""
    assert run.results is not None
    figures = run.results.metrics
    if figures.tokens_per_forward is None or run.place["block_size"] is None:
        return None
    return Point(
        figures.tokens_per_forward,
        100 * figures.acc,
        100 * figures.stderr,
        run.place["block_size"] / run.place["denoising_steps"],
        run.place["block_size"],
        run.place["strategy"],
    )


def _decoding(point: Point) -> tuple:
    return point.strategy, point.block_size, point.budget


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in accuracy at as much parallelism, by rising parallelism."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.parallelism, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front[::-1]


def comparable(panel: Panel) -> dict[str, list[Point]]:
    """The decodings that every model of the panel has, as curves."""
    shared = set.intersection(*({_decoding(point) for point in points} for points in panel.curves.values()))
    return {model: [point for point in points if _decoding(point) in shared] for model, points in panel.curves.items()}


def reference_accuracy(panel: Panel) -> float | None:
    """AUP's reference: accuracy of the baseline at its fewest tokens per step (None without a baseline)."""
    if panel.baseline not in panel.curves:
        return None
    return min(panel.curves[panel.baseline], key=lambda point: (point.budget, point.block_size)).accuracy


def aup(points: Sequence[Point], reference: float) -> float:
    r"""Accuracy under parallelism of one model, from its Pareto front.

    Implements the metric of d3LLM (arXiv:2601.07568): with parallelism rho (tokens per forward) and accuracy y
    (%) of the points in order of rho,

        AUP = rho_1 y_1 + sum_{i>1} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2,
        W(y) = min(exp(-alpha (1 - y / y_max)), 1),  alpha = 3,

    counting points with y_i >= y_1 - 5 only.  Two departures: there y_max is the best accuracy of all compared
    models, here it is a fixed reference (see `reference_accuracy`), so that a model's AUP does not change with
    its competitors; and points that another decoding of the same model beats in both are left out.

    Args:
        points: the model's decodings, at least one.
        reference: y_max, in %.

    Returns:
        The score; 100 at one token per forward without a mistake, more with more parallelism.
    """
    return _area(pareto(points), reference)


def aup_d3llm(panel: Panel) -> dict[str, float]:
    """Accuracy under parallelism of each model of a panel as d3LLM publishes it: see `aup` for the formula.

    Its reference y_max is the best accuracy of all models in the panel, at any decoding, and all of a model's
    decodings count, those too that another one beats in both.  (d3LLM's script refuses a model whose last decoding
    is more than 5 points below its first; here it is left out, as the paper says.)
    """
    best = max(point.accuracy for points in panel.curves.values() for point in points)
    by_parallelism = {
        model: sorted(points, key=lambda point: (point.parallelism, -point.accuracy))
        for model, points in panel.curves.items()
    }
    return {model: _area(points, best) for model, points in by_parallelism.items()}


def _area(points: Sequence[Point], reference: float) -> float:
    """AUP of points by rising parallelism, those more than the tolerance below the first left out."""
    counted = [point for point in points if point.accuracy >= points[0].accuracy - AUP_TOLERANCE]

    def weighted(point: Point) -> float:
        lost = 1 - point.accuracy / reference if reference else 0.0
        return point.accuracy * min(math.exp(-AUP_ALPHA * lost), 1.0)

    score = counted[0].parallelism * counted[0].accuracy
    for before, after in itertools.pairwise(counted):
        score += (after.parallelism - before.parallelism) * (weighted(after) + weighted(before)) / 2
    return score
