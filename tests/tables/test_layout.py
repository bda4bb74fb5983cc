from dataclasses import replace

import pytest

from t3d.config import TableConfig
from t3d.tables.cells import Run
from t3d.tables.layout import AVERAGE, IMPROVEMENT, best_runs, in_order, lay_out


def table(**keys) -> TableConfig:
    models = keys.pop("models", ("Original", "SFT", "ReDi", "T3D"))
    return TableConfig(checkpoints=dict.fromkeys(models, "x"), decodings=[[4, 2]], **keys)


def bold(runs, layout, figure="acc") -> set[str]:
    return {run.place["model"] for run in best_runs(runs, layout, figure)}


class TestBest:
    def test_what_is_not_significantly_below_the_best_ties_with_it(self, make_run):
        best = "x" * 20 + "." * 10
        runs = [
            make_run("ReDi", best),
            make_run("SFT", "x" * 15 + "." * 15),  # 5 pairs lost, none won: p = 0.0625
            make_run("T3D", "x" * 14 + "." * 16),  # 6 lost: p = 0.03125
        ]
        assert bold(runs, table()) == {"ReDi", "SFT"}
        assert bold(runs, table(level=0.07)) == {"ReDi"}
        assert bold(runs, table(level=0.03)) == {"ReDi", "SFT", "T3D"}

    def test_the_test_is_paired(self, make_run):
        """As many right answers less, but on other problems: no longer significant."""
        runs = [make_run("ReDi", "x" * 20 + "." * 10), make_run("T3D", "." * 10 + "x" * 4 + "." * 6 + "x" * 10)]
        assert bold(runs, table()) == {"ReDi", "T3D"}

    def test_unranked_rows_are_neither_bold_nor_the_mark(self, make_run):
        runs = [make_run("Original", "x" * 30), make_run("ReDi", "x" * 10 + "." * 20), make_run("T3D", "." * 30)]
        assert bold(runs, table(unranked=["Original"])) == {"ReDi"}

    def test_nothing_is_best_alone(self, make_run):
        runs = [make_run("Original", "x..."), make_run("T3D", "xx..")]
        assert bold(runs, table(unranked=["Original"])) == set()

    def test_only_what_differs_in_the_model_is_compared(self, make_run):
        runs = [make_run("ReDi", "x" * 20, block_size=4), make_run("T3D", "." * 20, block_size=8)]
        assert bold(runs, table()) == set()

    def test_less_is_better_for_latency_and_digits_decide(self, make_run):
        runs = [make_run(name, "x.", {"latency_s": value}) for name, value in (("ReDi", 0.5), ("T3D", 0.25))]
        assert bold(runs, table(), "latency_s") == {"T3D"}
        assert bold([*runs, make_run("SFT", "x.", {"latency_s": 0.2504})], table(), "latency_s") == {"T3D", "SFT"}

    def test_runs_that_answered_no_problem_in_common_tie(self, make_run):
        runs = [make_run("ReDi", "xx"), make_run("T3D", "..")]
        assert runs[1].outcomes is not None
        for problem in list(runs[1].outcomes.graded):
            runs[1].outcomes.graded[f"other {problem}"] = runs[1].outcomes.graded.pop(problem)
        assert bold(runs, table()) == {"ReDi", "T3D"}

    def test_missing_runs_do_not_count(self, make_run):
        missing = make_run("SFT", "x")
        runs = [make_run("ReDi", "x.x"), make_run("T3D", "x.x"), Run(missing.place)]
        assert bold(runs, table()) == {"ReDi", "T3D"}


class TestLayout:
    def test_rows_and_columns_follow_the_axes_in_order_of_appearance(self, make_run):
        layout = table(models=("b", "a"), rows=["tokps", "model"], columns=["block_size", "dataset"])
        runs = [
            make_run(model, "x.", dataset=dataset, block_size=block, denoising_steps=steps)
            for model in ("b", "a")
            for dataset in ("Z", "A")
            for block, steps in ((4, 2), (8, 4), (4, 1), (8, 2))
        ]
        grid = lay_out(runs, layout)
        assert grid.row_heads == ("TokPS", "Method")
        assert grid.column_heads == (("block 4", "Z"), ("block 4", "A"), ("block 8", "Z"), ("block 8", "A"))
        (section,) = grid.sections
        assert section.label is None
        assert [row.labels for row in section.rows] == [("2", "b"), ("2", "a"), ("4", "b"), ("4", "a")]
        places = [(run.place["tokps"], run.place["model"], run.place["dataset"]) for run in in_order(runs, layout)]
        assert places[:4] == [("2", "b", "Z"), ("2", "b", "A"), ("2", "b", "Z"), ("2", "b", "A")]

    def test_a_section_for_each_value(self, make_run):
        runs = [make_run("T3D", answers, dataset=dataset) for dataset, answers in (("A", "x."), ("B", "xx"))]
        grid = lay_out(runs, table(sections=["dataset"], rows=["model"], columns=[], figures=["avg_len", "acc"]))
        assert grid.column_heads == (("avg len",), ("acc (%)",))
        assert [(section.label, [entry.value for entry in section.rows[0].entries]) for section in grid.sections] == [
            ("A", [30.0, 50.0]),
            ("B", [30.0, 100.0]),
        ]

    def test_a_missing_run_leaves_its_place_empty(self, make_run):
        runs = [make_run("ReDi", "xx"), Run(make_run("T3D", "x").place)]
        grid = lay_out(runs, table())
        assert [row.entries[0].value for row in grid.sections[0].rows] == [100.0, None]
        assert "-- means that there is no checkpoint." in grid.notes

    def test_people_read_the_rows_labels(self, make_run):
        runs = [make_run("t3d", "xx"), make_run("sft", "x.")]
        layout = table(models=("t3d", "sft"), labels={"t3d": "T3D, λ = 0.2"}, unranked=["t3d"], rows=["model"])
        grid = lay_out(runs, layout)
        assert [row.labels for row in grid.sections[0].rows] == [("T3D, λ = 0.2",), ("sft",)]
        assert "never bold: T3D, λ = 0.2." in grid.notes
        across = lay_out(runs, replace(layout, rows=["dataset"], columns=["model"]))
        assert across.column_heads == (("T3D, λ = 0.2",), ("sft",))
        assert (
            lay_out(runs, replace(layout, rows=["dataset"], columns=[], sections=["model"])).sections[1].label == "sft"
        )

    def test_the_notes_state_level_sizes_and_what_is_not_ranked(self, make_run):
        notes = lay_out([make_run("SFT", "x.x")], table(level=0.01, unranked=["SFT"])).notes
        assert "Graded responses: A 3" in notes
        assert "level 0.01" in notes
        assert "never bold: SFT" in notes

    def test_the_notes_explain_a_test_only_where_accuracies_are_shown(self, make_run):
        runs = [make_run("SFT", "x.x", {"latency_s": 0.25})]
        assert "paired test" in lay_out(runs, table()).notes
        assert "paired test" not in lay_out(runs, table(figures=["latency_s"])).notes


class TestAverage:
    @pytest.fixture
    def grid(self, make_run):
        answers = {"Original": ("x...", "xx.."), "ReDi": ("....", "x..."), "T3D": ("xxxx", "xxx.")}
        runs = [
            make_run(model, text * 10, block_size=block, denoising_steps=block // 2)
            for model, texts in answers.items()
            for block, text in zip((4, 8), texts, strict=True)
        ]
        layout = table(
            rows=["tokps", "model"],
            columns=["block_size"],
            average=True,
            baseline="Original",
            unranked=["Original"],
        )
        return lay_out(runs, layout)

    def test_it_is_the_mean_over_the_columns(self, grid):
        averages = [row.entries[-2] for row in grid.sections[0].rows]
        assert [entry.figure for entry in averages] == [AVERAGE] * 3
        assert [entry.value for entry in averages] == pytest.approx([37.5, 12.5, 87.5])
        assert [entry.best for entry in averages] == [False, False, True]
        assert grid.column_heads[-2:] == (("average (%)",), ("improvement (%)",))

    def test_its_error_knows_that_columns_share_problems(self, grid):
        # Of T3D, a problem adds (1 + 1) / 2 / 40 or (1 + 0) / 2 / 40 to the mean: with probability 3/4 and 1/4.
        variance = 0.25 * 0.75 * 0.5**2
        assert grid.sections[0].rows[2].entries[-2].stderr == pytest.approx(100 * (variance / 40) ** 0.5)

    def test_the_improvement_is_measured_from_the_baselines_average(self, grid):
        changes = [row.entries[-1] for row in grid.sections[0].rows]
        assert [entry.figure for entry in changes] == [IMPROVEMENT] * 3
        assert changes[0].value is None
        assert [entry.value for entry in changes[1:]] == pytest.approx([-200 / 3, 400 / 3])

    def test_a_row_with_a_missing_cell_has_none(self, make_run):
        runs = [make_run("Original", "x."), make_run("Original", "x.", block_size=8), make_run("T3D", "xx")]
        runs.append(Run(make_run("T3D", "x", block_size=8).place))
        grid = lay_out(runs, table(rows=["model"], columns=["block_size"], average=True, baseline="Original"))
        assert [entry.value for entry in grid.sections[0].rows[1].entries] == [100.0, None, None, None]
