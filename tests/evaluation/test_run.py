import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from t3d.config import EvalConfig, load_config
from t3d.errors import DataError
from t3d.evaluation import run as run_module
from t3d.evaluation.results import read_results
from t3d.evaluation.run import Evaluation, evaluate
from t3d.grading import sandbox
from t3d.rollout import run as rollout_module

CONTRACT_FIELDS = {
    *("dataset", "checkpoint", "n", "acc", "stderr", "avg_len", "avg_steps", "tokens_per_step"),
    *("tokens_per_forward", "tokens_per_forward_decode", "tokens_per_second", "latency_s", "environment", "config"),
    *("responses", "failed", "finish_reasons", "grading", "left_out", "known_bad", "leakage"),
    *("block_size", "denoising_steps", "temperature", "top_k", "top_p", "remasking_strategy", "seed"),
}


def rollout_records() -> list[dict]:
    """Three math problems with two responses each: right and wrong, unboxed and right, wrong and wrong."""
    texts = [
        [r"2 * 3 = 6. The answer is \boxed{6}.", r"\boxed{5}"],
        ["The answer is 7.", r"\boxed{3} no, \boxed{7.0}"],
        [r"\boxed{}", ""],
    ]
    return [
        {
            "question": f"Problem {number}?",
            "ground_truth_answer": truth,
            "full_output": pair,
            "response_length": [4, 8],
            "num_steps": [2, 4],
            "num_forwards": [3, 5],
            "finish_reason": ["stop", "length"],
        }
        for number, (truth, pair) in enumerate(zip(["6", "7", "8"], texts, strict=True))
    ]


@pytest.fixture(autouse=True)
def folder_without_data(monkeypatch, tmp_path):
    """What lies in the checkout's data/ is not what these rollouts answer."""
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")


@pytest.fixture
def graded_file(tmp_path):
    """Evaluates a file of given records, without a model."""

    def run(records, *overrides: str) -> dict:
        path = tmp_path / "outputs-some-rollouts.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records))
        arguments = [
            f"experiment.project={tmp_path}",
            f"evaluation.rollouts={path}",
            "execute.num_workers=1",
            "execute.math_verify=false",
            *overrides,
        ]
        return written(evaluate(load_config(EvalConfig, arguments, "", "")))

    return run


def written(evaluation: Evaluation) -> dict:
    """The results file of an evaluation."""
    assert read_results(evaluation.path) == evaluation.results
    return json.loads(evaluation.path.read_text())


def the_one(folder: Path, pattern: str) -> Path:
    """The one file of that name among the results."""
    (path,) = (folder / "results").glob(pattern)
    return path


class TestGivenRollouts:
    def test_they_are_graded_without_model_checkpoint_or_data_set(self, graded_file, tmp_path):
        results = graded_file(rollout_records(), "evaluation.checkpoint_path=null")
        stderr = math.sqrt((1 - 2 / 3) ** 2 + (1 - 2 / 3) ** 2 + (2 / 3) ** 2) / 6
        assert (results["n"], results["acc"], results["stderr"]) == (6, 2 / 6, pytest.approx(stderr))
        assert (results["avg_len"], results["avg_steps"], results["tokens_per_step"]) == (6.0, 3.0, 2.0)
        assert results["tokens_per_forward"] == 1.5
        assert results["tokens_per_second"] is None
        assert (results["grading"], results["left_out"], results["failed"]) == ({"graded": 6}, [], 0)
        assert json.loads(the_one(tmp_path, "results-some-rollouts-*.json").read_text()) == results

    def test_every_response_is_graded_in_place(self, graded_file, tmp_path):
        records = rollout_records()
        graded_file(records)
        graded = json.loads(the_one(tmp_path, "graded-some-rollouts-*.json").read_text())
        assert [record["correctness"] for record in graded] == [[True, False], [False, True], [False, False]]
        assert [record["extracted_output"] for record in graded] == [["6", "5"], ["", "7.0"], ["", ""]]
        assert all(record["grading"] == ["graded", "graded"] for record in graded)
        assert "execution_result" not in graded[0]
        for record, before in zip(graded, records, strict=True):
            assert {name: record[name] for name in before} == before

    def test_small_batches_grade_the_same(self, graded_file):
        records = rollout_records() * 9
        assert graded_file(records, "execute.num_chunk=1")["acc"] == graded_file(records)["acc"] == 1 / 3

    def test_a_limit_takes_the_first_problems(self, graded_file):
        results = graded_file(rollout_records(), "evaluation.limit=1")
        assert (results["n"], results["acc"]) == (2, 0.5)

    def test_options_are_compared_by_letter(self, graded_file):
        records = [
            {
                "question": "?",
                "ground_truth_answer": "B",
                "full_output": [r"\boxed{B}", r"\boxed{C}", "I pass."],
            }
        ]
        results = graded_file(records, "evaluation.data_type=option")
        assert (results["n"], results["acc"]) == (3, 1 / 3)

    def test_the_releases_files_without_counts_are_graded_too(self, graded_file, tmp_path):
        records = [
            {name: value for name, value in record.items() if not name.startswith("num_")}
            for record in rollout_records()
        ]
        assert graded_file(records)["avg_steps"] is None
        line = the_one(tmp_path, "results-some-rollouts-*.txt").read_text()
        assert "avg steps unknown, tokens/step unknown" in line

    def test_code_is_run_and_its_results_are_kept(self, graded_file, tmp_path):
        record = {
            "question": "Double x.",
            "test_method": "function",
            "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
            "test_time_limit": 5,
            "full_output": [
                "```python\ndef double(x):\n    return 2 * x\n```",
                "```python\ndef double(x):\n    return x\n```",
            ],
        }
        stdio = {
            "question": "Echo.",
            "test_method": "stdio",
            "test_input": ["a\n"],
            "test_output": ["a\n"],
            "test_time_limit": 5,
            "full_output": ["```python\nprint(input())\n```", "no code"],
        }
        results = graded_file([record, stdio], "evaluation.data_type=code", "execute.sandbox=none")
        assert (results["n"], results["acc"]) == (4, 0.5)
        graded = json.loads(the_one(tmp_path, "graded-some-rollouts-*.json").read_text())
        assert [entry["correctness"] for entry in graded] == [[True, False], [True, False]]
        assert graded[0]["execution_result"] == [["passed", "passed"], ["failed", "passed"]]
        assert graded[0]["grading_detail"] == ["", "failed: AssertionError"]

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"full_output": None}, "record 1, field full_output: expected a list of responses, found null"),
            (
                {"full_output": "text"},
                "record 1, field full_output: expected a list of responses, found string",
            ),
            (
                {"full_output": []},
                "record 1, field full_output: expected a list of responses, found an empty list",
            ),
            (
                {"full_output": [None]},
                "record 1, field full_output: expected a list of responses, found list",
            ),
            ({"ground_truth_answer": None}, "record 1, field ground_truth_answer"),
            ({"question": 5}, "record 1, field question"),
        ],
    )
    def test_a_record_that_cannot_be_graded_is_named_and_nothing_is_written(
        self, graded_file, tmp_path, change, complaint
    ):
        records = rollout_records()
        records[1] |= change
        with pytest.raises(DataError) as caught:
            graded_file(records)
        assert complaint in str(caught.value)
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize("text", ["[]", "{}", "[1]", "", "[{"])
    def test_a_file_that_holds_no_records_is_refused(self, graded_file, text):
        with pytest.raises(DataError, match=r"outputs-some-rollouts\.json"):
            graded_file(text)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"none\.json"):
            evaluate(load_config(EvalConfig, [f"evaluation.rollouts={tmp_path / 'none.json'}"], "", ""))

    def test_settings_that_nothing_tells_are_not_made_up(self, graded_file):
        results = graded_file(rollout_records(), "rollout.block_size=8")
        assert {results[name] for name in ("block_size", "denoising_steps", "temperature", "seed")} == {None}

    def test_failed_responses_are_left_out_and_named(self, graded_file, tmp_path, caplog):
        records = rollout_records()
        records[1] |= {"finish_reason": ["error", "stop"], "error": ["out of memory", None]}
        records[1] |= {"full_output": ["", r"\boxed{7}"], "response_length": [0, 8]}
        results = graded_file(records)
        assert (results["n"], results["acc"], results["failed"], results["responses"]) == (5, 2 / 5, 1, 6)
        assert results["left_out"] == [{"record": 1, "response": 0, "reason": "failed: out of memory"}]
        assert "1 of 6 responses have no grade and do not count: record 1, response 0" in caplog.text
        graded = json.loads(the_one(tmp_path, "graded-some-rollouts-*.json").read_text())
        assert graded[1]["correctness"] == [None, True]
        assert graded[1]["grading"] == ["failed", "graded"]

    def test_no_answer_is_right_where_the_true_one_is_empty(self, graded_file, caplog):
        records = rollout_records()
        records[2]["ground_truth_answer"] = ""  # both responses have no answer either
        results = graded_file(records)
        assert (results["n"], results["acc"]) == (6, 2 / 6)
        assert "1 of 3 problems have an empty true answer, and count as wrong: record 2, ..." in caplog.text

    def test_only_failures_make_no_results(self, graded_file, tmp_path):
        records = rollout_records()
        for record in records:
            record |= {"finish_reason": ["error"] * 2, "error": ["no memory"] * 2}
        complaint = "expected at least one response that can be graded, found none of 6 .the first: failed: no memory"
        with pytest.raises(DataError, match=complaint):
            graded_file(records)
        assert not (tmp_path / "results").exists()

    def test_a_sandbox_that_does_not_start_is_not_the_solutions_fault(self, graded_file, monkeypatch):
        popen, calls = sandbox.subprocess.Popen, []

        def second_fails(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 3:  # a solution's sandbox and its test's come one after the other
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return popen(*arguments, **options)

        monkeypatch.setattr(sandbox.subprocess, "Popen", second_fails)
        program = {
            "question": "One.",
            "test_method": "function",
            "test_list": ["assert x == 1"],
            "test_time_limit": 5,
            "full_output": ["```python\nx = 1\n```"] * 2 + ["```python\nx = 2\n```"],
        }
        one = ("execute.sandbox=none", "execute.num_workers=1")
        results = graded_file([program], "evaluation.data_type=code", *one)
        assert (results["n"], results["acc"], results["grading"]) == (2, 0.5, {"graded": 2, "error": 1})
        (place,) = results["left_out"]
        assert (place["record"], place["response"]) == (0, 1)
        assert "Resource temporarily unavailable" in place["reason"]

    def test_answers_too_large_to_compare_are_wrong_and_counted(self, graded_file, caplog):
        records = rollout_records()[:1]
        large = "+".join(rf"\frac{{1}}{{{number}!+1}}" for number in range(19990, 20000))
        records[0]["full_output"] = [rf"\boxed{{{large}}}", r"\boxed{6}"]
        results = graded_file(records)
        assert (results["acc"], results["grading"]) == (0.5, {"timeout": 1, "graded": 1})
        assert "1 answers count as wrong because comparing them ended in: timeout" in caplog.text

    def test_plain_math_verifys_figure_and_its_disagreements_stand_beside_ours(self, graded_file):
        records = rollout_records()[:1]
        records[0] |= {"ground_truth_answer": "10^{-8}", "full_output": [r"\boxed{0.0}", r"\boxed{0.00000001}"]}
        results = graded_file(records, "execute.math_verify=true")
        assert (results["acc"], results["acc_math_verify"]) == (0.5, 1.0)
        place = {"record": 0, "response": 0, "answer": "0.0", "truth": "10^{-8}"}
        assert results["disagreements"] == [{**place, "correct": False, "math_verify": True}]
        without = graded_file(records)
        assert (without["acc_math_verify"], without["disagreements"]) == (None, [])

    def test_which_block_is_the_program_is_a_key(self, graded_file):
        output = "```python\ndef f():\n    return 1\n```\nUsage:\n```python\nprint(f())\n```"
        record = {"question": "f", "test_method": "function", "test_time_limit": 5, "test_list": ["assert f() == 1"]}
        record |= {"full_output": [output]}
        settings = ("evaluation.data_type=code", "execute.sandbox=none")
        found = [graded_file([record], *settings, f"execute.code_block={block}")["acc"] for block in ("last", "first")]
        assert found == [0.0, 1.0]

    @pytest.mark.parametrize(("repair", "acc"), [("true", 1.0), ("false", 0.0)])
    def test_known_bad_records_are_named_mended_or_not(self, graded_file, caplog, repair, acc):
        record = {
            "question": "Check.\nYour code should pass the test:",
            "test_method": "function",
            "test_list": ["def check(candidate):\n    assert check(1) == 2\n\ncheck(check)"],
            "test_time_limit": 5,
            "full_output": ["```python\ndef check(n):\n    return n + 1\n```"],
        }
        keys = ("evaluation.data_type=code", "execute.sandbox=none", f"evaluation.repair_known_bad={repair}")
        results = graded_file([record], *keys)
        assert results["acc"] == acc
        assert results["known_bad"] == {
            "repaired": repair == "true",
            "records": [{"record": 0, "question": "Check."}],
        }
        assert "record 0 tests something else than the solution" in caplog.text

    def test_problems_are_compared_with_the_data_set_where_it_is_here(self, graded_file, tmp_path):
        records = rollout_records()
        data = tmp_path / "set.json"
        data.write_text(json.dumps([*records[::-1], records[0] | {"question": "Another?"}]))
        assert graded_file(records, f"evaluation.eval_dataset={data}")["dataset"] == "set"
        with pytest.raises(DataError) as caught:
            graded_file([*records, records[1]], f"evaluation.eval_dataset={data}")
        assert str(caught.value).endswith(
            f"record 3, field question: expected a problem of evaluation.eval_dataset ({data}), once,"
            " found 'Problem 1?'"
        )

    def test_a_model_trained_on_what_it_answers_is_told(self, graded_file, tmp_path, caplog):
        run = tmp_path / "run"
        (run / "ckpt" / "optimized").mkdir(parents=True)
        (run / "config.yaml").write_text("dataset:\n  optimization_data: data/SDAR-MATH_train_renamed.json\n")
        checkpoint = f"evaluation.checkpoint_path={run / 'ckpt' / 'optimized'}"
        results = graded_file(rollout_records(), checkpoint, "evaluation.eval_dataset=MATH")
        assert "in the MATH test split" in results["leakage"]
        assert results["leakage"] in caplog.text
        assert graded_file(rollout_records(), checkpoint, "evaluation.eval_dataset=MATH500")["leakage"] is None


class TestDecodedRollouts:
    def test_the_results_hold_what_the_contract_names(self, settings, tmp_path, checkpoint):
        config = settings("rollout.num_response_per_task=2")
        results = written(evaluate(config))
        assert set(results) >= CONTRACT_FIELDS
        assert (results["dataset"], results["checkpoint"]) == ("TinyMath", str(checkpoint))
        assert (results["block_size"], results["denoising_steps"], results["temperature"]) == (4, 2, 0.7)
        assert results["n"] == 20
        assert 0 <= results["acc"] <= 1
        assert 1 < results["tokens_per_step"] <= 2
        assert 0 < results["tokens_per_forward"] < results["tokens_per_forward_decode"]
        # Commits are fused: apart from the prefill, every forward is a denoising step.
        assert results["tokens_per_forward_decode"] == results["tokens_per_step"]
        assert results["latency_s"] > 0
        assert results["tokens_per_second"] == pytest.approx(results["avg_len"] / results["latency_s"])
        assert results["config"]["rollout"]["max_token"] == 14
        named = {"python", "torch", "transformers", "t3d", "math-verify", "git_commit", "device", "threads"}
        assert set(results["environment"]) == named
        (rollouts,) = (tmp_path / "temp_data").glob("outputs-*-seed0-????????.json")
        name = rollouts.stem.removeprefix("outputs-")
        assert name.startswith("eval-checkpoint-TinyMath-b4-s2-static-t0.7-seed0-")
        assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
            f"graded-{name}.json",
            f"results-{name}.json",
            f"results-{name}.txt",
        ]

    def test_the_text_file_is_the_line_of_figures(self, settings, tmp_path, checkpoint):
        results = written(evaluate(settings()))
        assert the_one(tmp_path, "results-*.txt").read_text() == (
            f"TinyMath {checkpoint}: acc {100 * results['acc']:.2f} +- {100 * results['stderr']:.2f}"
            f" (n = 10), avg len {results['avg_len']:.1f}, avg steps {results['avg_steps']:.1f},"
            f" tokens/step {results['tokens_per_step']:.2f}\n"
        )

    def test_the_first_problems_only(self, settings):
        assert evaluate(settings("evaluation.limit=3")).results.metrics.n == 3

    def test_grading_its_file_again_gives_the_same_figures(self, settings, checkpoint):
        results = evaluate(settings()).results
        again = evaluate(settings(f"evaluation.rollouts={results.rollouts}", "evaluation.checkpoint_path=null")).results
        assert again.config != results.config
        assert again == replace(results, config=again.config), "the rest is recorded beside the file"

    def test_the_time_of_all_problems_is_not_taken_for_that_of_some(self, settings):
        results = evaluate(settings()).results
        some = evaluate(settings(f"evaluation.rollouts={results.rollouts}", "evaluation.limit=2")).results.metrics
        assert (some.n, some.latency_s, some.tokens_per_second) == (2, None, None)

    def test_a_project_that_is_a_file_is_refused(self, graded_file, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="expected a folder that can be written to"):
            graded_file(rollout_records(), f"experiment.project={tmp_path / 'file'}")

    def test_the_file_is_graded_only_after_it_is_whole(self, settings, tmp_path, monkeypatch):
        def broken(job, path, workers):
            raise DataError("a", "b", "c")

        monkeypatch.setattr(run_module, "decode_job", broken)
        with pytest.raises(DataError):
            evaluate(settings())
        assert [path.name for path in tmp_path.iterdir()] == ["workspace"]


class TestNothingIsOverwritten:
    def names(self, folder: Path) -> set[str]:
        return {path.name for path in folder.glob("results/results-*.json")}

    @pytest.mark.parametrize(
        "change",
        [
            "rollout.denoising_steps_per_block=4",
            "rollout.temperature=0",
            "rollout.seed=1",
            "rollout.remasking_strategy=sequential",
            "rollout.max_token=9",
            "evaluation.limit=4",
            "execute.timeout_s=3",
        ],
    )
    def test_another_evaluation_has_files_of_its_own(self, settings, tmp_path, change):
        first = evaluate(settings("evaluation.limit=3"))
        before = first.path.read_bytes()
        second = evaluate(settings("evaluation.limit=3", change))
        assert self.names(tmp_path) == {first.path.name, second.path.name}
        assert first.path != second.path
        assert first.path.read_bytes() == before

    def test_a_decoding_is_found_again_after_another_one(self, settings, monkeypatch):
        """4 steps, 2 steps, 4 steps: the third decodes nothing."""
        few, many = (
            settings("evaluation.limit=3"),
            settings("evaluation.limit=3", "rollout.denoising_steps_per_block=4"),
        )
        first = evaluate(many)
        evaluate(few)
        monkeypatch.setattr(rollout_module, "_decode", lambda *_: pytest.fail("decoded again"))
        assert evaluate(many) == first

    def test_an_interrupted_decoding_does_not_stand_in_the_way_of_another_one(self, settings, monkeypatch):
        decode = rollout_module._decode

        def killed(*arguments):
            decode(*arguments)
            raise DataError("disk", "room", "none")

        with monkeypatch.context() as patch:
            patch.setattr(rollout_module, "_decode", killed)
            with pytest.raises(DataError):
                evaluate(settings("evaluation.limit=3"))
        assert evaluate(settings("evaluation.limit=3", "rollout.seed=1")).results.metrics.n == 3
        assert evaluate(settings("evaluation.limit=3")).results.metrics.n == 3

    def test_checkpoints_of_one_name_in_two_runs_are_two(self, settings, checkpoint, tmp_path):
        found = []
        for run in ("experiments/toy/math/t3d/20260101", "elsewhere"):
            student = tmp_path / run / "ckpt" / "optimized"
            shutil.copytree(checkpoint, student)
            (student / "note.txt").write_text(run)  # stands for other weights
            found.append(evaluate(settings(f"evaluation.checkpoint_path={student}", "evaluation.limit=2")).path.name)
        assert found[0].startswith("results-eval-optimized-TinyMath-toy-math-t3d-20260101-b4-s2-")
        assert found[1].startswith("results-eval-optimized-TinyMath-elsewhere-b4-s2-")

    def test_files_of_one_name_with_other_contents_or_labels_are_others(self, graded_file, tmp_path):
        graded_file(rollout_records())
        graded_file(rollout_records()[:2])
        assert len(self.names(tmp_path)) == 2
        graded_file(rollout_records())
        graded_file(rollout_records(), "evaluation.limit=1")
        graded_file(rollout_records(), "evaluation.checkpoint_path=another/model")
        assert len(self.names(tmp_path)) == 4

    def test_progress_processes_and_isolation_of_grading_make_no_other_evaluation(self, graded_file, tmp_path):
        graded_file(rollout_records())
        graded_file(rollout_records(), "execute.num_chunk=3", "execute.sandbox=none")
        assert len(self.names(tmp_path)) == 1

    def test_other_figures_under_the_same_name_are_kept(self, graded_file, tmp_path, caplog):
        """What another version of the graders found."""
        graded_file(rollout_records())
        path = the_one(tmp_path, "results-*.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"acc": 0.9}))
        graded_file(rollout_records())
        old = path.with_suffix(".old-1.json")
        assert (json.loads(old.read_text())["acc"], json.loads(path.read_text())["acc"]) == (0.9, 2 / 6)
        assert old.with_name(old.name.replace("results-", "graded-")).is_file()
        assert str(old) in caplog.text
        graded_file(rollout_records())
        assert self.names(tmp_path) == {path.name, old.name}
