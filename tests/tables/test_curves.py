import math

import pytest

from t3d.tables.cells import Run
from t3d.tables.curves import Panel, Point, aup, aup_d3llm, comparable, panels, pareto, reference_accuracy


def point(parallelism: float, accuracy: float, budget: float = 1, block_size: int = 4) -> Point:
    return Point(parallelism, accuracy, 1.0, budget, block_size, "low_confidence_static")


class TestPareto:
    def test_beaten_points_are_left_out(self):
        kept = [point(1, 90), point(2, 80), point(4, 40)]
        assert pareto([kept[2], point(1.5, 75), kept[0], point(3, 40), kept[1], point(2, 60)]) == kept

    def test_a_point_is_its_own_front(self):
        assert pareto([point(1, 0)]) == [point(1, 0)]


class TestAup:
    def test_constant_accuracy_gives_the_plain_area(self):
        assert aup([point(1, 80), point(2, 80), point(4, 80)], reference=80) == 4 * 80

    def test_it_is_the_published_formula(self):
        """rho 1, 2 at 90 and 86 with the reference 90: 90 + (90 + 86 exp(-3 (1 - 86/90))) / 2."""
        expected = 90 + (90 + 86 * math.exp(-3 * (1 - 86 / 90))) / 2
        assert aup([point(2, 86), point(1, 90)], reference=90) == pytest.approx(expected)

    def test_more_than_five_points_below_the_best_is_not_counted(self):
        assert aup([point(1, 90), point(3, 84.9)], reference=90) == 90
        assert aup([point(1, 90), point(3, 85)], reference=90) > 90

    def test_the_first_area_is_not_weighted_and_no_accuracy_is_weighted_up(self):
        assert aup([point(1, 40)], reference=80) == 40
        assert aup([point(1, 90), point(2, 90)], reference=80) == 180

    def test_a_reference_without_a_right_answer_weighs_nothing(self):
        assert aup([point(1, 4), point(2, 4)], reference=0) == 8


class TestAupOfD3llm:
    def test_it_refers_to_the_best_accuracy_of_all_models_at_any_decoding(self):
        """Best 95: a has 80 + (80 W(80) + 80 W(80)) / 2 with W(80) = exp(-3 (1 - 80/95)); b's first area is 2 * 95."""
        panel = Panel("", {"a": [point(2, 80), point(1, 80)], "b": [point(2, 95)]}, "a")
        expected = 80 + 80 * math.exp(-3 * (1 - 80 / 95))
        assert aup_d3llm(panel) == {"a": pytest.approx(expected), "b": 190}
        assert aup(panel.curves["a"], reference=80) == 160

    def test_decodings_that_another_one_beats_count(self):
        """rho 1, 1.5, 2 at 90, 86, 90: its dip takes area away, where the Pareto front has none."""
        points, dip = [point(1, 90), point(1.5, 86), point(2, 90)], 86 * math.exp(-3 * (1 - 86 / 90))
        assert aup_d3llm(Panel("", {"a": points}, None)) == {"a": pytest.approx(90 + 0.5 * (90 + dip))}
        assert aup(points, reference=90) == 180

    def test_more_than_five_points_below_the_first_is_not_counted(self):
        panel = Panel("", {"a": [point(1, 90), point(2, 84.9), point(3, 90)]}, None)
        assert aup_d3llm(panel) == {"a": 270}

    def test_it_needs_no_baseline_and_no_right_answer(self):
        assert aup_d3llm(Panel("", {"a": [point(1, 0), point(2, 0)]}, None)) == {"a": 0}


class TestPanels:
    def test_a_model_brings_its_decodings_from_every_table(self, make_run):
        first = [make_run(model, "x.", denoising_steps=steps) for model in ("a", "b") for steps in (2, 1)]
        second = [make_run(model, "xx", denoising_steps=4) for model in ("a", "b", "c")]
        found = panels([(first, "a"), (second, None)])
        assert list(found) == [1]  # the models of the first are among the second's
        (panel,) = found[1]
        assert {model: len(points) for model, points in panel.curves.items()} == {"a": 3, "b": 3, "c": 1}

    def test_tables_of_the_same_models_are_plotted_once(self, make_run):
        runs = [make_run("a", "x."), make_run("b", "xx")]
        assert list(panels([(runs, "a"), (runs, "a")])) == [0]

    def test_the_same_weights_under_two_names_are_one_model(self, make_run):
        again = make_run("a", "x.", denoising_steps=1)
        again.place["model"] = "a, called otherwise"
        (panel,) = panels([([make_run("a", "x."), make_run("b", "x.")], None), ([again], None)])[0]
        assert {model: len(points) for model, points in panel.curves.items()} == {"a": 2, "b": 1}

    def test_a_panel_for_each_base_and_data_set(self, make_run):
        runs = [make_run("a", "x.", base=base, dataset=data) for base in ("1.7B", "4B") for data in ("A", "B")]
        assert [panel.title for panel in panels([(runs, None)])[0]] == ["1.7B, A", "1.7B, B", "4B, A", "4B, B"]

    def test_missing_runs_and_unknown_parallelism_have_no_point(self, make_run):
        runs = [make_run("a", "x."), make_run("b", "x.", {"tokens_per_forward": None}), Run(make_run("c", "x").place)]
        (panel,) = panels([(runs, None)])[0]
        assert list(panel.curves) == ["a"]
        assert panels([(runs[1:], None)]) == {}

    def test_a_point_is_in_percent_and_tokens_per_forward(self, make_run):
        (panel,) = panels([([make_run("a", "x...", denoising_steps=1)], None)])[0]
        assert panel.curves["a"] == [
            Point(pytest.approx(3.6), 25.0, pytest.approx(21.65, abs=0.01), 4.0, 4, "low_confidence_static")
        ]


def test_the_reference_is_the_baseline_at_its_fewest_tokens_per_step():
    curves = {"a": [point(2, 95, 2), point(0.9, 91, 1, 8), point(0.9, 93, 1, 4)], "b": [point(1, 99)]}
    assert reference_accuracy(Panel("", curves, "a")) == 93
    assert reference_accuracy(Panel("", curves, "c")) is None
    assert reference_accuracy(Panel("", curves, None)) is None


def test_models_are_compared_at_the_decodings_that_all_have():
    curves = {"a": [point(1, 9, 1), point(2, 8, 2), point(4, 7, 4)], "b": [point(2, 5, 2), point(1, 6, 1)]}
    assert comparable(Panel("", curves, None)) == {"a": curves["a"][:2], "b": curves["b"]}
