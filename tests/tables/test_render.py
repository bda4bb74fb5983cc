import csv
import io
import re

import pytest

from t3d.config import TableConfig
from t3d.tables.cells import Run
from t3d.tables.layout import IMPROVEMENT, Entry, Grid, lay_out
from t3d.tables.render import csv_text, head_levels, latex, markdown, shown


@pytest.fixture
def grid(make_run) -> Grid:
    """Two sections of two groups of two rows; two blocks by two data sets, an average and an improvement."""
    layout = TableConfig(
        checkpoints={"Original": "x", "T3D_1 & co": "y"},
        decodings=[[4, 2]],
        title="Table 1: 100% few-step",
        sections=["base"],
        rows=["tokps", "model"],
        columns=["block_size", "dataset"],
        average=True,
        baseline="Original",
    )
    runs = [
        make_run(model, answers, base=base, dataset=dataset, block_size=block, denoising_steps=round(block / tokps))
        for base in ("1.7B", "4B")
        for model, answers in (("Original", "x..x" * 5), ("T3D_1 & co", "xxx." * 5))
        for dataset in ("MATH500", "MBPP")
        for block in (4, 8)
        for tokps in (2, 4)
    ]
    runs[-1] = Run(runs[-1].place)
    return lay_out(runs, layout)


def test_markdown(make_run):
    layout = TableConfig(
        checkpoints={"teacher": "x", "student": "y"}, decodings=[[4, 2]], title="A | B", columns=["block_size"]
    )
    runs = [
        make_run(model, text, block_size=block)
        for block, answers in ((4, {"teacher": "x...", "student": "xxxx"}), (8, {"teacher": "xx..", "student": "...."}))
        for model, text in answers.items()
    ]
    text = markdown(lay_out([*runs[:3], Run(runs[3].place)], layout))
    assert text.startswith(
        "A | B\n\n"
        "| Method | Data set | block 4 | block 8 |\n"
        "|---|---|---|---|\n"
        "| teacher | A | **25.0** ± 21.7 | 50.0 ± 25.0 |\n"
        "| student | A | **100.0** ± 0.0 | -- |\n"
        "\n"
        "Accuracy is in % ± standard error. Graded responses: A 4. Methods are compared"
    )


def test_markdown_has_a_line_per_row_and_section(grid):
    lines = [line for line in markdown(grid).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * (1 + 4)
    assert {line.count("|") for line in lines} == {2 + 6 + 1}
    assert lines[2].startswith("| *1.7B* |  |")
    assert [line.split("|")[1].strip() for line in lines[3:7]] == ["2", "", "4", ""]


def test_csv_holds_every_number_unrounded(grid):
    rows = list(csv.DictReader(io.StringIO(csv_text(grid))))
    assert len(rows) == 8
    assert (rows[0]["Section"], rows[0]["TokPS"], rows[0]["Method"]) == ("1.7B", "2", "Original")
    name = "block 8, MBPP, acc (%)"
    assert float(rows[1][name]) == 75.0
    assert float(rows[1][f"{name} stderr"]) == pytest.approx(100 * (0.75 * 0.25 / 20) ** 0.5, rel=1e-11)
    assert rows[1][f"{name} bold"] == "1"
    assert float(rows[1]["improvement (%)"]) == pytest.approx(50)
    assert (rows[7][name], rows[7][f"{name} stderr"], rows[7]["average (%)"]) == ("", "", "")


def test_the_csv_of_other_figures_has_no_errors(make_run):
    layout = TableConfig(
        checkpoints={"m": "x"}, decodings=[[4, 2]], columns=[], figures=["latency_s", "avg_len", "acc"]
    )
    heads = csv_text(lay_out([make_run("m", "x.")], layout)).splitlines()[0]
    assert heads == "Section,Method,Data set,latency (s),latency (s) bold,avg len,acc (%),acc (%) stderr,acc (%) bold"


def test_headings_span_their_columns(grid):
    assert head_levels(grid) == [
        [("block 4", 2), ("block 8", 2), ("", 2)],
        [("MATH500", 1), ("MBPP", 1), ("MATH500", 1), ("MBPP", 1), ("average (%)", 1), ("improvement (%)", 1)],
    ]


class TestLatex:
    def test_every_line_fills_the_columns(self, grid):
        text = latex(grid, "table1")
        (columns,) = re.findall(r"\\begin\{tabular\}\{(l+r+)\}", text)
        assert columns == "llrrrrrr"
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 2 + 2 * (1 + 4)
        for line in lines:
            spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == len(columns)

    def test_it_is_well_formed_booktabs(self, grid):
        text = latex(grid, "table1")
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
        assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [1, 4, 1, 0]
        assert r"\cmidrule(lr){3-4} \cmidrule(lr){5-6}" in text
        assert text.count("$") % 2 == 0

    def test_special_characters_are_escaped(self, grid):
        text = latex(grid, "table1")
        assert r"T3D\_1 \& co" in text
        assert r"\caption{Table 1: 100\% few-step." in text
        assert text.isascii()

    def test_the_best_is_bold(self, grid):
        assert r"\textbf{75.0} {\scriptsize$\pm$ 9.7}" in latex(grid, "table1")

    def test_a_narrow_table_is_not_stretched(self, make_run, grid):
        layout = TableConfig(checkpoints={"λ = 0.2": "x"}, decodings=[[4, 2]])
        text = latex(lay_out([make_run("λ = 0.2", "x.")], layout), "t")
        assert r"$\lambda$ = 0.2" in text
        assert "resizebox" not in text
        assert "resizebox" in latex(grid, "t")


@pytest.mark.parametrize(("value", "expected"), [(12.434, "↑ 12.43"), (-5.0, "↓ 5.00"), (0.0, "↑ 0.00"), (None, "--")])
def test_improvements_have_an_arrow(value, expected):
    assert shown(Entry(IMPROVEMENT, value)) == (expected, "")
