import json

import pytest

from t3d.errors import DataError
from t3d.evaluation.results import read_results
from t3d.evaluation.run import evaluate
from t3d.tables.compare import main
from t3d.tables.outcomes import load_outcomes


def ones(text: str) -> list[list[bool | None]]:
    return [[letter == "x"] for letter in text]


def test_two_models_are_compared_on_the_same_problems(write_results, capsys, tmp_path):
    a, b = write_results("a", ones("xx.......x")), write_results("b", ones("x.xxxxxx.."))
    main([str(a), str(b), "--out", str(tmp_path / "out.json")])
    assert capsys.readouterr().out == (
        "A   30.00 %  models/a, Problems, block_size 4, denoising_steps 1, remasking_strategy low_confidence_static\n"
        "B   70.00 %  models/b, Problems, block_size 4, denoising_steps 1, remasking_strategy low_confidence_static\n"
        "B - A  +40.00 +- 25.30 points; improvement +133.33 %\n"
        "10 problems: right only in A 2, right only in B 6, the same in both 2\n"
        "p = 0.289 (McNemar's exact test, two-sided)\n"
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["test"]["p_value"] == pytest.approx(2 * (1 + 8 + 28) / 2**8)
    assert (written["only_a"], written["only_b"], written["problems"]) == (2, 6, 10)


def test_two_decodings_of_one_model_in_one_project_are_compared(settings, capsys):
    few = evaluate(settings("rollout.temperature=0"))
    many = evaluate(settings("rollout.temperature=0", "rollout.denoising_steps_per_block=4"))
    main([str(few.path), str(many.path)])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "denoising_steps 2, remasking_strategy low_confidence_static, temperature 0.0, seed 0" in first
    assert "denoising_steps 4, remasking_strategy low_confidence_static, temperature 0.0, seed 0" in second


def test_the_order_of_the_problems_does_not_matter(write_results, capsys):
    a, b = write_results("a", ones("x.x.xx")), write_results("b", ones("xxx..."))
    main([str(a), str(b)])
    before = capsys.readouterr().out
    graded = b.with_name("graded-b.json")
    graded.write_text(json.dumps(json.loads(graded.read_text())[::-1]))
    main([str(a), str(b)])
    assert capsys.readouterr().out == before


def test_several_responses_make_a_problem_one_unit(write_results, capsys):
    a, b = write_results("a", [[False, False, True]] * 4), write_results("b", [[True, True]] * 4)
    main([str(a), str(b)])
    out = capsys.readouterr().out
    assert "4 problems: more often right in A 0, more often right in B 4" in out
    assert "p = 0.125 (exact sign-flip test over problems, two-sided)" in out


def test_nothing_right_in_a_leaves_the_improvement_undefined(write_results, capsys):
    main([str(write_results("a", ones("..."))), str(write_results("b", ones("x..")))])
    assert "improvement undefined (A has none right)" in capsys.readouterr().out


def test_failed_responses_are_left_out(write_results, capsys):
    a = write_results("a", [[True], [None], [False, True]])
    b = write_results("b", [[True], [True], [True, True]])
    main([str(a), str(b)])
    assert "2 problems, 1 left out (responses failed): more often right in A 0" in capsys.readouterr().out


def test_the_same_question_twice_is_two_problems(write_results):
    path = write_results("a", ones("x.x"), question=["What?", "What?", "Who?"])
    assert list(load_outcomes(path, read_results(path)).graded.values()) == [[True], [False], [True]]


class TestMistakes:
    def test_other_problems_are_refused_by_name(self, write_results):
        a, b = write_results("a", ones("xx.")), write_results("b", ones("x."))
        with pytest.raises(
            DataError, match=r"results-b\.json: expected the 3 problems .*results-a\.json, .*'Problem 2\?'"
        ):
            main([str(a), str(b)])
        with pytest.raises(DataError, match=r"results-b\.json: expected the 3 problems of"):
            main([str(b), str(a)])

    def test_another_answer_is_another_problem(self, write_results):
        a = write_results("a", ones("xx"))
        b = write_results("b", ones("xx"), ground_truth_answer=["1", "2"])
        with pytest.raises(DataError, match=r"1 of them missing, the first 'Problem 1\?'"):
            main([str(a), str(b)])

    def test_grades_of_another_run_are_refused(self, write_results):
        path = write_results("a", ones("xx."))
        graded = path.with_name("graded-a.json")
        records = json.loads(graded.read_text())
        records[0]["correctness"] = [False]
        graded.write_text(json.dumps(records))
        with pytest.raises(DataError, match=r"graded-a\.json: expected the 3 grades .*, found 1 right of 3"):
            main([str(path), str(path)])

    def test_missing_grades_are_named(self, write_results):
        path = write_results("a", ones("x"))
        path.with_name("graded-a.json").unlink()
        with pytest.raises(DataError, match=r"graded-a\.json"):
            main([str(path), str(path)])

    @pytest.mark.parametrize("text", ["[]", '{"acc": 1}', "nothing"])
    def test_other_files_are_refused(self, tmp_path, text):
        path = tmp_path / "results-x.json"
        path.write_text(text)
        with pytest.raises(DataError, match=r"results-x\.json"):
            main([str(path), str(path)])

    def test_no_answered_problem_in_common(self, write_results):
        a = write_results("a", [[True], [None]])
        b = write_results("b", [[None], [True]])
        with pytest.raises(DataError, match="responses failed"):
            main([str(a), str(b)])
