"""The figures of an arena, by matplotlib."""

from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.figure import Figure

from t3d.arena.comparison import MEAN, Compared
from t3d.arena.settings import ArenaConfig
from t3d.tables.plots import COLOURS, MARKERS, STYLE

STATIC = "static"


def rows_figure(config: ArenaConfig, compared: Mapping[tuple[str, str], Compared], names: Mapping[str, str]) -> Figure:
    """Each row's mean accuracy over the few-step decodings with its 95 % interval, in the order of the rows."""
    rows = [row for row in names if (row, MEAN) in compared]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            found = compared[row, MEAN].accuracy
            reach = [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]]
            colour = COLOURS[0 if row == config.baseline else 1]
            axes.errorbar([100 * found.mean], [place], xerr=reach, fmt="o", color=colour, capsize=2)
        if (config.baseline, MEAN) in compared:
            axes.axvline(100 * compared[str(config.baseline), MEAN].accuracy.mean, color="#999999", linewidth=1)
        axes.set_yticks(range(len(rows)), [names[row] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(f"{MEAN} accuracy (%), {', '.join(config.averaged())};\n95 % interval over seeds and problems")
    return figure


def cost_figure(config: ArenaConfig, compared: Mapping[tuple[str, str], Compared], names: Mapping[str, str]) -> Figure:
    """Accuracy against tokens per forward: a line for each row and kind of decoding, with standard errors.

    The kind is the decoding's name without its last word: `4/4 raw` of `4/4 raw 0.9`; all of a single word are static.
    """
    series: dict[tuple[str, str], list[Compared]] = {}
    for (row, decoding), found in compared.items():
        if decoding != MEAN and found.tokens_per_forward is not None:
            kind = decoding.rpartition(" ")[0] or STATIC
            series.setdefault((row, kind), []).append(found)
    kinds = list(dict.fromkeys(kind for _, kind in series))
    rows = list(dict.fromkeys(row for row, _ in series))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for (row, kind), points in series.items():
            ordered = sorted(points, key=lambda point: point.tokens_per_forward or 0.0)
            axes.errorbar(
                [point.tokens_per_forward or 0.0 for point in ordered],
                [100 * point.accuracy.mean for point in ordered],
                [100 * point.accuracy.stderr for point in ordered],
                color=COLOURS[rows.index(row) % len(COLOURS)],
                marker=MARKERS[kinds.index(kind) % len(MARKERS)],
                linestyle="none" if kind == STATIC else "-",
                label=f"{names[row]}, {kind}",
            )
        axes.set_xlabel("tokens per forward")
        axes.set_ylabel("accuracy (%)")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure
