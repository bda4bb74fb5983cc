import itertools
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from t3d.data.benchmarks import load_benchmark
from t3d.errors import DataError, UserError
from t3d.grading import grade_math
from t3d.grading.extract import extract_boxed
from t3d.toy.problems import SPLITS, generate, main, operand_tuples

COUNT = 2000


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def answer_from_question(question: str) -> int:
    """The answer, worked out from the question's numbers and words alone."""
    values = numbers(question)
    if len(values) == 4:
        a, b, c, d = values
        return a * b + c * d
    a, b, change = values
    lost = re.search(r"loses|gave away|sells \d", question)
    return a * b - change if lost else a * b + change


@pytest.fixture(scope="module")
def problems() -> dict[str, list[dict]]:
    return {split: list(itertools.islice(generate(split), COUNT)) for split in SPLITS}


def test_answers_follow_from_the_questions(problems):
    for problem in itertools.chain.from_iterable(problems.values()):
        assert answer_from_question(problem["question"]) == int(problem["ground_truth_answer"]), problem
        assert int(problem["ground_truth_answer"]) > 0


EQUATION = re.compile(r"(\d+) ([*+-]) (\d+) = (\d+)")
OPERATIONS = {"*": int.__mul__, "+": int.__add__, "-": int.__sub__}


def solution_steps(problem: dict) -> list[str]:
    """The sentences of a worked solution before its last, the answer."""
    return re.split(r"(?<=\.) ", problem["answer"])[:-1]


def right_steps(problem: dict) -> list[list[list[int]]]:
    """Per step of a right solution, whatever its wording: the numbers it may name, in ascending order."""
    values, result = numbers(problem["question"]), int(problem["ground_truth_answer"])
    groups = [values[:2], values[2:]] if len(values) == 4 else [values[:2]]
    products = [sorted([left, right, left * right]) for left, right in groups]
    terms = [left * right for left, right in groups] + values[2 * len(groups) :]
    return [*(products for _ in groups), [sorted([*terms, result])]]


def test_worked_solutions_are_right_step_by_step_and_end_in_the_answer(problems):
    for problem in itertools.chain.from_iterable(problems.values()):
        steps, expected = solution_steps(problem), right_steps(problem)
        assert len(steps) == len(expected)
        for step, possible in zip(steps, expected, strict=True):
            assert sorted(numbers(step)) in possible, problem
            for left, operation, right, result in EQUATION.findall(step):
                assert OPERATIONS[operation](int(left), int(right)) == int(result), problem
        assert len(expected) == 2 or sorted(map(sorted, map(numbers, steps[:2]))) == sorted(expected[0])
        assert re.search(r"\\boxed\{\d+\}\.$", problem["answer"])
        assert extract_boxed(problem["answer"]) == problem["ground_truth_answer"]


def test_the_graders_accept_the_worked_solutions(problems):
    for problem in problems["test"][:200]:
        assert grade_math(problem["answer"], problem["ground_truth_answer"])


def test_splits_share_no_operands_and_no_question(problems):
    tuples = {split: set(operand_tuples(split)) for split in SPLITS}
    seen = {split: {tuple(numbers(problem["question"])) for problem in problems[split]} for split in SPLITS}
    questions = {split: {problem["question"] for problem in problems[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not tuples[one] & tuples[other]
        assert not questions[one] & questions[other]
    assert (
        len(set.union(*tuples.values()))
        == sum(map(len, tuples.values()))
        == 5**4 + sum(a * b + e > 0 for a in range(2, 7) for b in range(2, 7) for e in range(-20, 21) if abs(e) > 1)
    )
    shares = [len(tuples[split]) / sum(map(len, tuples.values())) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.005)
    for split in SPLITS:
        allowed = {(*values[:2], abs(values[2])) if len(values) == 3 else values for values in tuples[split]}
        swapped = {(*values[2:], *values[:2]) for values in tuples[split] if len(values) == 4}
        assert seen[split] <= allowed | swapped  # one wording names the second group first


def test_no_two_problems_of_a_stream_are_alike(problems):
    for split in SPLITS:
        assert len({problem["question"] for problem in problems[split]}) == COUNT


def test_the_same_seed_gives_the_same_problems_and_another_seed_others(problems):
    assert list(itertools.islice(generate("test"), COUNT)) == problems["test"]
    others = {problem["question"] for problem in itertools.islice(generate("test", seed=1), COUNT)}
    assert len(others & {problem["question"] for problem in problems["test"]}) < COUNT / 100


def test_one_problem_has_many_right_solutions(problems):
    """What few-step decoding suffers from: orders and wordings differ where the arithmetic is the same."""
    by_operands = defaultdict(list)
    for problem in problems["test"]:
        if len(numbers(problem["question"])) == 4:
            by_operands[tuple(numbers(problem["question"]))].append(problem["answer"])
    commonest = max(by_operands.values(), key=len)
    assert len(commonest) >= 10
    skeletons = {re.sub(r"\d+", "0", answer) for answer in commonest}
    assert len(skeletons) >= 8
    first_numbers = {tuple(sorted(numbers(answer.split(". ")[0]))) for answer in commonest}
    assert len(first_numbers) == 2  # either group may come first
    endings = {answer.rsplit(". ", 1)[-1].split("\\")[0] for answer in commonest}
    assert len(endings) >= 3


class TestCommand:
    def test_it_writes_a_data_set_that_loads(self, tmp_path, problems):
        path = tmp_path / "deep" / "TinyMath.json"
        main(["--split", "test", "--limit", "50", "--out", str(path)])
        items = load_benchmark(path, "math")
        assert [item["question"] for item in items] == [problem["question"] for problem in problems["test"][:50]]
        assert all(set(item) == {"question", "ground_truth_answer", "family"} for item in items)
        assert len({item["family"] for item in items}) < 50, "the same numbers come in several wordings"
        assert all(item["family"].endswith(f"= {item['ground_truth_answer']}") for item in items)

    def test_solutions_are_added_on_request(self, tmp_path, problems):
        main(["--split", "train", "--limit", "5", "--solutions", "--out", str(tmp_path / "x.json")])
        written = json.loads((tmp_path / "x.json").read_text())
        assert [{name: item[name] for name in problems["train"][0]} for item in written] == problems["train"][:5]

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--out"],
            ["--limit", "0", "--out", "x"],
            ["--limit", "many", "--out", "x"],
            ["--seed", "-1", "--out", "x"],
            ["--split", "exam", "--out", "x"],
            ["--count", "5", "--out", "x"],
        ],
    )
    def test_wrong_arguments_are_the_users_mistake(self, arguments, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match="expected"):
            main(arguments)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("below", ["", "deeper"])
    def test_a_place_that_cannot_be_written_to_is_the_users_mistake(self, tmp_path, below):
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / below / "x.json"
        with pytest.raises(DataError, match="can be written to"):
            main(["--limit", "1", "--out", str(out)])

    def test_exit_codes(self, tmp_path):
        command = [sys.executable, "-m", "t3d.toy.problems", "--limit", "2", "--out"]
        root = Path(__file__).parents[2]
        for out, code in ((str(tmp_path / "x.json"), 0), (str(tmp_path), 2)):
            ended = subprocess.run([*command, out], cwd=root, capture_output=True, text=True, check=False)
            assert ended.returncode == code, ended.stderr
            if code:
                assert re.fullmatch(r"error: .*: expected .*, found .*\n", ended.stderr)
            else:
                assert ended.stderr.count("\n") == 1
                assert len(json.loads(Path(out).read_text())) == 2
