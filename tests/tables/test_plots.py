from xml.etree import ElementTree

import pytest

from t3d.tables.curves import Panel, Point, aup_d3llm
from t3d.tables.plots import aup_d3llm_plot, aup_plot, budget_plot, pareto_plot, svg

STATIC, DYNAMIC = "low_confidence_static", "low_confidence_dynamic"


@pytest.fixture
def panels() -> list[Panel]:
    points = [
        Point(0.9, 90, 1, 1, 4, STATIC),
        Point(1.8, 88, 2, 2, 4, STATIC),
        Point(1.7, 70, 3, 2, 8, STATIC),
        Point(2.5, 60, 4, 1, 4, DYNAMIC),
    ]
    return [Panel("A", {"teacher": points, "student": points[:3]}, "teacher"), Panel("B", {"student": points}, None)]


def test_accuracy_against_tokens_per_forward_has_every_point_with_its_error(panels):
    figure = pareto_plot(panels)
    assert [axes.get_title() for axes in figure.axes] == ["A", "B"]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens per forward", "accuracy (%)")
    drawn = [tuple(point) for bar in axes.containers for point in zip(*bar.lines[0].get_data(), strict=True)]
    assert sorted(drawn) == sorted([*(p[:2] for p in POINTS), *(p[:2] for p in POINTS[:3])])
    low, high = axes.containers[0].lines[2][0].get_segments()[0]
    assert (low[1], high[1]) == (89, 91)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["teacher", "student"]


POINTS = [(0.9, 90), (1.8, 88), (1.7, 70), (2.5, 60)]


def test_the_line_joins_the_front(panels):
    line = pareto_plot(panels).axes[0].lines[0]
    assert list(zip(*line.get_data(), strict=True)) == [(0.9, 90), (1.8, 88), (2.5, 60)]


def test_the_step_budget_has_a_panel_for_each_block_size(panels):
    figure = budget_plot(panels)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["A, block 4", "A, block 8", "B, block 4", "B, block 8"]
    axes = figure.axes[0]
    assert list(axes.containers[0].lines[0].get_xdata()) == [2, 4]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4"]


def test_dynamic_decoding_alone_has_no_step_budget(panels):
    assert budget_plot([Panel("A", {"a": panels[0].curves["teacher"][3:]}, None)]) is None


def test_aup_is_drawn_where_there_is_a_reference(panels):
    figure = aup_plot(panels)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["A"]
    assert aup_plot(panels[1:]) is None
    disjoint = Panel("C", {"a": panels[0].curves["teacher"][:1], "b": panels[0].curves["teacher"][1:2]}, "a")
    assert aup_plot([disjoint]) is None


def test_d3llms_aup_is_drawn_for_every_panel_and_named_so(panels):
    figure = aup_d3llm_plot(panels)
    assert [axes.get_title() for axes in figure.axes] == [panel.title for panel in panels]
    assert {axes.get_xlabel() for axes in figure.axes} == {"AUP (d3LLM)"}
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([*aup_d3llm(panels[0]).values()])


def test_a_plot_is_an_svg_document_and_always_the_same(panels):
    text = svg(pareto_plot(panels))
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg(pareto_plot(panels)) == text


def test_more_models_than_colours_can_be_drawn(panels):
    points = panels[0].curves["teacher"]
    assert svg(pareto_plot([Panel("A", {str(number): points for number in range(15)}, None)] * 5))
