"""Curves of runs: every metric where it belongs, mistakes in one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t3d.errors import DataError, UserError
from t3d.training.plot import draw, load_runs, main, smoothed

STEPS = 60


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """A run with log-ratios and one without."""
    folders = []
    for name, metrics in (("t3d", ("ratio/real", "ratio/fake")), ("td", ())):
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "metrics.jsonl").open("w") as file:
            for step in range(1, STEPS + 1):
                line = {"step": step, "loss/total": 1 / step, "grad_norm": 0.5, "lr": 1e-3, "tokens_per_second": 9.0}
                file.write(json.dumps(line | dict.fromkeys(metrics, 0.1)) + "\n")
            file.write('{"step": 61, "loss/to')  # a run that is being written
        folders.append(folder)
    return folders


def test_each_metric_has_a_panel_with_raw_and_smoothed_curves_of_every_run(runs):
    figure = draw(load_runs(runs))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["loss (total)", "mean log-ratio to the reference (nats)", "gradient norm", "learning rate"]
    raw, smooth, *others = panels["loss (total)"].lines
    assert raw.get_ydata().tolist() == [1 / step for step in range(1, STEPS + 1)]
    assert raw.get_xdata().tolist() == list(range(1, STEPS + 1))
    assert smooth.get_ydata().tolist() == smoothed(raw.get_ydata()).tolist()
    assert [line.get_color() for line in others] == [others[0].get_color()] * 2 != [raw.get_color()] * 2
    assert len(panels["learning rate"].lines) == 2
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["t3d", "td"]


def test_steps_without_a_gradient_norm_are_left_out_of_its_curve(runs):
    path = runs[1] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"grad_norm": 0.5', '"grad_norm": null', 3))
    figure = draw(load_runs(runs[1:]))
    [panel] = [axes for axes in figure.axes if axes.get_title(loc="left") == "gradient norm"]
    assert [len(line.get_xdata()) for line in panel.lines] == [STEPS - 3] * 2


def test_validation_accuracy_has_a_panel_with_a_curve_for_each_decoding(runs):
    """Few steps have it, and the last one need not."""
    lines = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()[:STEPS]]
    for place in (19, 39):
        lines[place] |= {"validation/acc": 0.5, "validation/acc_4/2": 0.6, "validation/acc_4/1": 0.4}
    (runs[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    panel = draw(load_runs(runs)).axes[-1]
    assert panel.get_title(loc="left") == "validation accuracy"
    curves = [line for line in panel.lines if len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in curves] == [[20, 40]] * 3
    assert [line.get_ydata()[0] for line in curves] == [0.5, 0.4, 0.6]
    assert len({line.get_linestyle() for line in curves}) == 3
    names = [text.get_text() for text in panel.get_legend().get_texts()]
    assert names == ["validation/acc", "validation/acc_4/1", "validation/acc_4/2"]


def test_the_meters_gap_has_a_panel_with_a_curve_for_each_decoding(runs):
    lines = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()[:STEPS]]
    lines[9] |= {"meter/nats_per_block_4/2": 0.4, "meter/nats_per_block_4/1": 1.5, "meter/stderr_4/1": 0.1}
    (runs[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    panel = draw(load_runs(runs)).axes[-1]
    assert panel.get_title(loc="left") == "factorisation gap (nats per block)"
    curves = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panel.lines if len(line.get_xdata())]
    assert curves == [([10], [1.5]), ([10], [0.4])]


def test_metrics_that_no_run_has_get_no_panel(runs):
    titles = [axes.get_title(loc="left") for axes in draw(load_runs(runs[1:])).axes]
    assert titles == ["loss (total)", "gradient norm", "learning rate"]


def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tmp_path):
    (tmp_path / "other").mkdir()
    twin = runs[0].rename(tmp_path / "other" / "td")
    assert list(load_runs([runs[1], twin])) == [str(runs[1]), str(twin)]


def test_smoothing_is_a_running_mean_that_stays_within_the_run():
    values = np.arange(40.0)
    assert smoothed(values)[2:-2] == pytest.approx(values[2:-2])
    assert smoothed(values)[0] == pytest.approx(np.mean([0, 1, 2]))
    assert smoothed(np.array([3.0])) == pytest.approx([3.0])


@pytest.mark.parametrize(("name", "start"), [("curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")])
def test_pictures_are_png_or_svg(runs, tmp_path, name, start):
    main([str(runs[0]), str(runs[1]), "--out", str(tmp_path / name)])
    assert (tmp_path / name).read_bytes().startswith(start)
    assert not list(tmp_path.glob(".*"))


def test_the_picture_lies_in_the_first_run_by_default(runs):
    main([str(runs[1])])
    assert (runs[1] / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/none"], r"none: expected the folder of a training run, found no such folder"),
        (["{folder}"], r"metrics\.jsonl: expected the metrics of at least one step, found none"),
        (["{run}", "--out", "{folder}/x.pdf"], r"x\.pdf: expected a name that ends in \.png or \.svg, found \.pdf"),
        (["{run}", "--out", "{folder}/no/x.svg"], r"x\.svg: expected a place that can be written to"),
        (["{run}", "--oat", "x"], r"unrecognized arguments"),
        ([], r"required: RUN"),
    ],
)
def test_mistakes_are_named(runs, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        main([argument.format(folder=tmp_path, run=runs[0]) for argument in arguments])


def test_an_unreadable_line_is_named(runs):
    path = runs[0] / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        load_runs(runs[:1])


@pytest.mark.slow
@pytest.mark.parametrize("module", ["plot", "memory"])
def test_help_says_what_the_command_is_for(module, tmp_path):
    command = [sys.executable, "-m", f"t3d.training.{module}", "--help"]
    said = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert "training" in said
    assert f"python -m t3d.training.{module}" in said
