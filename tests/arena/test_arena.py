"""The runner with a tiny teacher: real rollouts, students and evaluations, in processes of their own."""

import dataclasses
import json
import logging
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from t3d.arena.__main__ import run
from t3d.arena.meter import Metered, by_row
from t3d.arena.meter import run as run_meter
from t3d.arena.meter import text as meter_text
from t3d.arena.page import main as write_page
from t3d.arena.pool import run_each
from t3d.arena.results import ArenaResults, Student, load, write
from t3d.arena.settings import ArenaConfig, results_path
from t3d.arena.statistics import estimate
from t3d.arena.worlds import problem_families
from t3d.decoding.factorisation import Gap, mean_gap
from t3d.errors import DataError, UserError

FAILING = "config=toy/sft dataset.optimization_data={solutions} training.max_prompt_len=1"


def end_self(how: str) -> None:
    """A task of a process."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "slow":
        time.sleep(600)
    if how != "well":
        raise DataError("file", "a record", how)


def test_a_task_that_fails_ends_alone_and_says_why_in_a_line(tmp_path):
    tasks = [(how, tmp_path / f"{how}.log") for how in ("none", "killed", "well")]
    found = dict(run_each(end_self, tasks, 2))
    assert found[0] is not None
    assert found[0].endswith("file: expected a record, found none")
    assert (found[1], found[2]) == ("ended by SIGKILL", None)


def test_stopping_ends_the_processes(tmp_path):
    running = run_each(end_self, [("well", tmp_path / "a.log"), ("slow", tmp_path / "b.log")], 2)
    assert next(running) == (0, None)
    started = time.monotonic()
    running.close()  # what Ctrl-C does
    assert time.monotonic() - started < 60


@pytest.fixture(scope="module")
def config(checkpoint, tmp_path_factory) -> ArenaConfig:
    folder = tmp_path_factory.mktemp("arena")
    return ArenaConfig(
        name="tiny",
        folder=str(folder),
        links="train",
        teacher=str(checkpoint),
        num_rollouts=4,
        rollout="config=toy/sdar_sample rollout.max_token=12",
        num_problems=3,
        evaluation="config=toy/eval rollout.max_token=8 execute.num_workers=1 execute.math_verify=false",
        decodings={"4/1": ""},
        seeds=[1, 2],
        common="training.max_steps=1 training.batch_size_lm=2",
        rows={"original": "", "td": "config=toy/td", "broken": FAILING},
        labels={"td": "Naive TD"},
        baseline="original",
        contrasts={"td": ["original"]},
    )


@pytest.fixture(scope="module")
def results(config) -> ArenaResults:
    return run(config)


def students(folder: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("students/*/ckpt/student/model.safetensors")}


def test_all_rows_and_seeds_are_measured_and_a_failure_is_told_of(config, results):
    assert [(each.row, each.seed, each.error is None) for each in results.students] == [
        ("original", None, True),
        *(("td", 1, True), ("broken", 1, False)),
        *(("td", 2, True), ("broken", 2, False)),
    ]
    assert "max_prompt_len" in str(results.students[2].error)
    assert load(results_path(config)) == results
    assert len(results.problems) == len(results.families) == 3
    for each in results.students:
        for score in each.scores.values():
            assert score.graded.count("1") / 3 == pytest.approx(score.acc)
    assert len(students(config.folder)) == 2
    link = Path(config.folder) / "train/td"
    assert (link / "ckpt/student/model.safetensors").is_file()
    assert not link.readlink().is_absolute(), "the folder can be moved"


def test_a_second_run_does_what_is_missing_and_nothing_else(config, results, caplog):
    """A kill leaves a student without its record: here one is taken away, and what failed is tried again."""
    before = students(config.folder)
    [first, *others] = Path(config.folder).glob("records/*.json")
    kept = {path: path.stat().st_mtime_ns for path in others}
    content = json.loads(first.read_text())
    first.unlink()
    with caplog.at_level(logging.INFO):
        again = run(config)
    assert "5 students, 2 of them done" in caplog.text
    assert json.loads(first.read_text())["scores"] == content["scores"]
    first.write_text(first.read_text()[:-9])
    with caplog.at_level(logging.INFO):
        run(config)
    assert f"{first}, line " in caplog.text
    assert ": measured again" in caplog.text
    assert json.loads(first.read_text())["scores"] == content["scores"]
    assert {path: path.stat().st_mtime_ns for path in others} == kept
    assert students(config.folder) == before
    assert [each.scores for each in again.students] == [each.scores for each in results.students]


def test_problems_with_the_same_numbers_and_answer_are_a_family(tmp_path):
    questions = ["2 bags of 3 and 4 of 5", "Bags: 4 of 5, 2 of 3.", "2 of 3, loses 4", "2 of 3, finds 4", "2.3 and 4"]
    answers = ["26", "26", "2", "10", "2"]
    path = tmp_path / "problems.json"
    items = [{"question": q, "ground_truth_answer": a} for q, a in zip(questions, answers, strict=True)]
    path.write_text(json.dumps(items))
    assert problem_families(path, 5) == [0, 0, 1, 2, 3]
    assert problem_families(path, 3) == [0, 0, 1]


def test_the_page_is_written_from_the_file(config, results, tmp_path):
    write_page([str(results_path(config)), "--out", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    assert "| Naive TD | 2 |" in text
    assert "3 problems of the test split in 3 families" in text
    assert re.search(r"Against original, in points:\n\n.*\n.*\n\| Naive TD \| [-+]\d", text)
    assert re.search(r"Further differences:\n\n.*\n.*\n\| original \| Naive TD \| [-+]\d", text)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- toy results: how -->\nold\n<!-- end of toy results -->\nafter\n")
    write_page([str(results_path(config)), "--out", str(tmp_path / "page.md"), "--readme", str(readme)])
    before, mark, *lines, end, after = readme.read_text().splitlines()
    assert (before, mark, end, after) == ("before", "<!-- toy results: how -->", "<!-- end of toy results -->", "after")
    assert [line.split(" | ")[0] for line in lines] == ["| ", "| ---", "| original", "| Naive TD"]
    readme.write_text("no marks")
    with pytest.raises(DataError, match="expected a text with"):
        write_page([str(results_path(config)), "--out", str(tmp_path / "other.md"), "--readme", str(readme)])
    assert not (tmp_path / "other.md").exists()
    assert (tmp_path / "page/tiny.svg").read_text().startswith("<?xml")
    assert load(tmp_path / "page/tiny.json") == load(results_path(config))


def test_a_page_keeps_its_other_arenas_in_their_places(config, results, tmp_path):
    """So that a page outlives the folders that its parts were measured in."""
    page, parts = tmp_path / "page.md", {}
    for name in ("one", "two", "three"):
        parts[name] = tmp_path / f"{name}.json"
        write(
            dataclasses.replace(results, config=dataclasses.replace(config, name=name, title=f"Part {name}")),
            parts[name],
        )
    write_page([*map(str, parts.values()), "--out", str(page)])
    whole = page.read_text()
    assert re.findall("^## (.*)$", whole, re.MULTILINE) == ["Part one", "Part two", "Part three"]
    write_page([str(parts["two"]), "--out", str(page)])
    assert page.read_text() == whole
    write(dataclasses.replace(results, config=dataclasses.replace(config, name="two", title="Again")), parts["two"])
    write_page([str(parts["two"]), "--out", str(page)])
    assert page.read_text() == whole.replace("## Part two", "## Again")


def graded(student: Student, grades: str) -> Student:
    """The student, had its answers been so."""
    return dataclasses.replace(
        student, scores={name: dataclasses.replace(score, graded=grades) for name, score in student.scores.items()}
    )


def test_the_same_students_by_another_name_are_not_corrected_for(config, results, tmp_path):
    answers = {None: "000", 1: "110", 2: "111"}
    students = [graded(each, answers[each.seed]) for each in results.students if each.scores]
    again = [dataclasses.replace(each, row="again") for each in students if each.row == "td"]
    other = [graded(each, "010") for each in again]
    cells = []
    for more in ([], again, other):
        rows = {**config.rows, "again": "config=toy/td training.seed=0"}
        named = dataclasses.replace(config, rows=rows if more else config.rows)
        write(dataclasses.replace(results, config=named, students=students + more), tmp_path / "tiny.json")
        write_page([str(tmp_path / "tiny.json"), "--out", str(tmp_path / "page.md")])
        against = (tmp_path / "page.md").read_text().partition("Against original")[2]
        cells.append(next(line.split("|")[-2] for line in against.splitlines() if line.startswith("| Naive TD |")))
    alone, same, corrected = map(float, cells)
    assert 0 < alone == same < corrected


def test_rows_are_compared_with_those_of_the_arena_that_theirs_names(config, results, tmp_path):
    """The other arena's student of seed 2 solves nothing, and has no seed 1; the teacher is no row of either table."""
    theirs = [graded(each, "000") for each in results.students if each.seed == 2]
    ours = [graded(each, "110") for each in results.students]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    other = dataclasses.replace(results, students=theirs)
    write(dataclasses.replace(other, config=dataclasses.replace(config, name="first", title="First")), first)
    named = dataclasses.replace(config, name="second", beside="first")
    write(dataclasses.replace(results, config=named, students=ours), second)
    page = tmp_path / "page.md"
    write_page([str(second), "--out", str(page)])
    assert "same rows" not in page.read_text()
    write_page([str(first), str(second), "--out", str(page)])
    [found] = re.findall(
        "Against the same rows of “First” by the seeds of both \\(1, 2\\), in points:\n\n.*\n.*\n((?:.+\n)*)",
        page.read_text(),
    )
    assert re.findall(r"^\| (.*?) \| \+66\.7 \[.*\] \| \+66\.7 \[.*\] \|", found, re.MULTILINE) == ["Naive TD"]
    write(dataclasses.replace(other, config=dataclasses.replace(config, name="first"), problems=["a", "b", "c"]), first)
    write_page([str(first), str(second), "--out", str(page)])
    assert "Not compared with the same rows of “first”: problems or decodings are others." in page.read_text()
    alone = dataclasses.replace(other, config=dataclasses.replace(config, name="first"), students=theirs[:0])
    named_alone = [dataclasses.replace(each, seed=9) for each in theirs if each.row == "td"]
    write(dataclasses.replace(alone, students=named_alone), first)
    write_page([str(first), str(second), "--out", str(page)])
    assert "Not compared with the same rows of “first”: no row has a seed in both." in page.read_text()


def test_decodings_that_take_as_many_steps_as_they_need_stand_beside_their_tokens_per_forward(
    config, results, tmp_path
):
    file = tmp_path / "dynamic.json"
    file.write_text(results_path(config).read_text().replace('"4/1"', '"4/1 raw 0.9"'))
    write_page([str(file), "--out", str(tmp_path / "page.md")])
    [line] = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| 4/1 raw 0.9 |")]
    scores = [each.scores["4/1"] for each in results.students if each.row == "td"]
    cost = sum(score.tokens_per_forward for score in scores) / 2
    assert line.count(" at ") == 2
    assert f" at {cost:.2f} | - |" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda whole: whole["families"].pop(), "field families: expected one for each of 3 problems, found 2"),
        (lambda whole: whole["students"][1]["scores"].clear(), None),
        (lambda whole: whole["students"][1]["scores"].update(other=whole["students"][1]["scores"]["4/1"]), "every dec"),
        (
            lambda whole: whole["students"][1]["scores"]["4/1"].update(graded="10"),
            r"4/1: expected grades of 3 problems",
        ),
        (lambda whole: whole["students"][1].update(row="unknown"), "students, 1: expected a row of the arena, once"),
        (
            lambda whole: whole["students"].append(whole["students"][1]),
            "students, 5: expected a row of the arena, once",
        ),
        (lambda whole: whole.update(families=[0, 0, 0]), "grades of problems in at least two families"),
    ],
)
def test_results_whose_parts_do_not_fit_are_refused_before_anything_is_written(
    config, results, tmp_path, changes, said
):
    whole = json.loads(results_path(config).read_text())
    changes(whole)
    (tmp_path / "tiny.json").write_text(json.dumps(whole))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- toy results: how -->\nold\n<!-- end of toy results -->\n")
    arguments = [str(tmp_path / "tiny.json"), "--out", str(tmp_path / "page.md"), "--readme", str(readme)]
    if said is None:
        return write_page(arguments)
    with pytest.raises(DataError, match=said):
        write_page(arguments)
    assert not (tmp_path / "page.md").exists()
    assert "old" in readme.read_text()


def test_a_page_of_an_arena_without_finished_students_is_refused(config, results, tmp_path):
    failed = [dataclasses.replace(each, scores={}, error="why") for each in results.students]
    write(dataclasses.replace(results, students=failed, problems=[]), tmp_path / "tiny.json")
    with pytest.raises(DataError, match="expected at least one finished student, found none"):
        write_page([str(tmp_path / "tiny.json"), "--out", str(tmp_path / "page.md")])


def test_a_page_without_an_ending_is_refused(config, results, tmp_path):
    with pytest.raises(DataError, match="expected a page's name with an ending"):
        write_page([str(results_path(config)), "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_the_meter_measures_the_students_that_there_are(config, results, monkeypatch):
    found, _ = run_meter(config)
    assert [(one.row, one.seed, list(one.gaps)) for one in found] == [
        *(("original", None, ["4/1"]), ("td", 1, ["4/1"]), ("td", 2, ["4/1"])),
    ]
    stored = json.loads((Path(config.folder) / "results/tiny-meter.json").read_text())["students"]
    assert [one["figures"]["4/1"] for one in stored] == [vars(mean_gap(one.gaps["4/1"])) for one in found]
    monkeypatch.setattr("t3d.evaluation.meter.gaps", lambda *_, **__: pytest.fail("measured again"))
    text = meter_text(*run_meter(config), config.labels).splitlines()
    assert [line.split("|")[1:3] for line in text[2:4]] == [[" original ", " 1 "], [" Naive TD ", " 2 "]]


def test_an_arena_without_students_or_few_steps_is_refused(config, results, tmp_path):
    only_td = {"rows": {"td": "config=toy/td training.max_steps=7"}, "baseline": "td", "labels": {}, "contrasts": {}}
    for changes, message in (
        ({"decodings": {"4/4": ""}}, "folder, decodings: expected a student that is trained, and a decoding"),
        (only_td, "folder, decodings: .* found 0 students"),
        ({"num_problems": 1}, "num_problems: expected at least 2"),
        ({"folder": str(tmp_path)}, "renamed.json: expected an arena that has run"),
    ):
        with pytest.raises(UserError, match=message):
            run_meter(dataclasses.replace(config, **changes))


def test_the_meters_rows_have_the_ratio_of_sums_with_errors_over_seeds_and_problems():
    teacher = [Gap(1.0, 2.0, 1, 4), Gap(5.0, 9.0, 3, 12), Gap(4.0, 9.0, 2, 8), Gap(0.0, 0.0, 0, 0)]
    first, second = ([Gap(each.nats * part, 1.0, each.num_blocks, 4) for each in teacher] for part in (0.1, 0.2))
    other = [Gap(each.nats + sign, 1.0, each.num_blocks, 4) for each, sign in zip(teacher, (1, -1, 1, 0), strict=True)]
    found = [
        Metered("original", None, {"4/1": teacher}),
        *(Metered("td", 1, {"4/1": first}), Metered("td", 2, {"4/1": second}), Metered("sft", 1, {"4/1": other})),
    ]
    compared = by_row(found)
    alone, difference = compared["original", "4/1"]
    expected = mean_gap(teacher)
    assert (alone.mean, difference) == (pytest.approx(expected.nats_per_block), None)
    assert alone.stderr == pytest.approx(expected.stderr * (4 / 3) ** 0.5)  # a sample's variance, over n - 1
    td, lower = compared["td", "4/1"]
    assert td.mean == pytest.approx(0.15 * expected.nats_per_block)
    values = np.array([[part * each for each in (1, 5, 4, 0)] for part in (0.1, 0.2)])
    assert td.over_seeds == pytest.approx(estimate(values / 1.5).over_seeds)
    assert lower is not None
    assert lower.mean == pytest.approx(-0.85 * expected.nats_per_block)
    text = meter_text(found, np.arange(4), {"td": "Naive TD"}).splitlines()
    assert text[:2] == ["|  | seeds | 4/1 | entropy, blocks of 4 |", "| --- | --- | --- | --- |"]
    assert [line.split(" | ")[-1] for line in text[2:5]] == ["3.333 |", "0.667 |", "0.667 |"]
    assert text[2].startswith("| original | 1 | 1.667 ± ")
    assert lower.high < 0
    assert text[3].startswith("| Naive TD | 2 | 0.250 ± "), "two seeds are too few to be bold"
    assert text[4].startswith("| sft | 1 | 1.833 ± ")
