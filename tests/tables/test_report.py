import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from t3d.errors import DataError
from t3d.tables.fill import run_table
from t3d.tables.report import main

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Text, attributes and table cells of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture
def table(settings, checkpoint, tmp_path):
    """A table of two decodings, with a baseline."""
    run_table(
        settings(
            f"table.checkpoints={{teacher: {checkpoint}, student: {checkpoint}}}",
            "table.labels={teacher: The teacher, student: a <b> & c}",
            "table.decodings=[[4, 4], [4, 2], [8, 2]]",
            "table.title=Few steps",
            "table.baseline=teacher",
        )
    )
    return tmp_path / "results" / "table.json"


@pytest.fixture
def page(table, tmp_path):
    main([str(table), "--out", str(tmp_path / "out" / "report.html")])
    return (tmp_path / "out" / "report.html").read_text()


def test_every_number_is_on_the_page(page, table):
    cells = Page(page).cells
    for run in json.loads(table.read_text()):
        accuracy, error = 100 * run["acc"], 100 * run["stderr"]
        assert f"{accuracy:.1f}± {error:.1f}" in cells
        for text in (
            f"{accuracy:.2f} ± {error:.2f}",
            f"{run['avg_len']:.1f}",
            f"{run['avg_steps']:.1f}",
            f"{run['tokens_per_step']:.2f}",
            f"{run['tokens_per_forward']:.2f}",
            f"{run['tokens_per_second']:.0f}",
        ):
            assert text in cells


def test_nothing_is_fetched(page):
    attributes = Page(page).attributes
    for tag, name, value in attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value)
        assert not re.search(r"https?:", value), (tag, name)
    assert not {"script", "iframe", "link", "object"} & {tag for tag, _, _ in attributes}
    assert not re.search(r"url\(|@import", page)


def test_links_lead_to_places_of_the_page(page):
    attributes = Page(page).attributes
    places = {value for _, name, value in attributes if name == "id"}
    assert {value[1:] for _, name, value in attributes if name == "href"} == places


def test_a_page_of_trajectories_is_linked(table, tmp_path):
    main([str(table), "--out", str(tmp_path / "report.html"), "--trajectories", "trajectories.html"])
    links = [value for _, name, value in Page((tmp_path / "report.html").read_text()).attributes if name == "href"]
    assert links.count("trajectories.html") == 1


def test_plots_are_svg_documents_inside_the_page(page):
    sources = [value for _, name, value in Page(page).attributes if name == "src"]
    assert len(sources) == 4
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        ElementTree.fromstring(base64.b64decode(data))
    assert "The teacher at its fewest tokens per step" in page


def test_names_are_text_not_markup(page):
    assert "a &lt;b&gt; &amp; c" in page
    assert "a <b> & c" in Page(page).cells


def test_settings_and_environment_of_each_run_are_shown(page):
    cells = Page(page).cells
    for name, value in (("config.rollout.temperature", "0.7"), ("config.rollout.max_token", "14")):
        assert cells[cells.index(name) + 1] == value
    assert "environment.torch" in cells


def test_settings_in_which_runs_differ_name_the_runs(write_results, tmp_path):
    paths = [write_results(name, [[True], [False]]) for name in "abc"]
    for path, temperature in zip(paths, (0.1, 0.2, 0.2), strict=True):
        results = json.loads(path.read_text())
        results["config"]["rollout"]["temperature"] = temperature
        path.write_text(json.dumps(results))
    main([*map(str, paths), "--out", str(tmp_path / "report.html")])
    cells = Page((tmp_path / "report.html").read_text()).cells
    first = cells.index("config.rollout.temperature")
    assert cells[first : first + 6] == [
        *("config.rollout.temperature", "0.1", "1"),
        *("config.rollout.temperature", "0.2", "2, 3"),
    ]


def test_single_results_are_reported_by_checkpoint(write_results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [write_results("a", [[True], [False]]), write_results("b", [[True], [True]])]
    main([*map(str, paths), "--baseline", "models/a"])
    text = (tmp_path / "report.html").read_text()
    assert {"models/a", "models/b", "50.00 ± 35.36", "100.00 ± 0.00"} <= set(Page(text).cells)
    assert "models/a at its fewest tokens per step, 50.0 %" in text


def test_results_of_unknown_decoding_and_warnings_are_shown(write_results, tmp_path):
    path = write_results("a", [[True], [False]])
    unknown = dict.fromkeys(("block_size", "denoising_steps", "remasking_strategy"))
    path.write_text(json.dumps(json.loads(path.read_text()) | unknown | {"leakage": "trained on the test"}))
    main([str(path), "--out", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text()
    assert Page(text).cells.count("--") >= 3
    assert "Warning: trained on the test." in text
    assert "<img" not in text


def test_plots_can_be_written_beside(table, tmp_path):
    main([str(table), "--out", str(tmp_path / "report.html"), "--plots", str(tmp_path / "plots")])
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "table-aup.svg",
        "table-aup-d3llm.svg",
        "table-budget.svg",
        "table-pareto.svg",
    }


def test_the_same_files_give_the_same_page(page, table, tmp_path):
    main([str(table), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize("content", ["3", "{}", "[3]", "nothing"])
def test_other_files_are_named_and_nothing_is_written(table, tmp_path, content):
    table.write_text(content)
    with pytest.raises(DataError, match=r"table\.json"):
        main([str(table), "--out", str(tmp_path / "report.html")])
    assert not (tmp_path / "report.html").exists()


def test_an_unknown_baseline_is_refused(write_results, tmp_path):
    path = write_results("a", [[True]])
    with pytest.raises(DataError, match="--baseline: expected the checkpoint of a results file: models/a, found b"):
        main([str(path), "--baseline", "b", "--out", str(tmp_path / "report.html")])
