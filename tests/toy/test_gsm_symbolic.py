"""The world of GSM-Symbolic problems: with `reasoning-gym` where it is installed, and what needs no such package."""

import itertools
import re
from collections import Counter
from importlib.util import find_spec
from random import Random
from types import SimpleNamespace

import pytest

from t3d.arena.worlds import WORLDS
from t3d.data.benchmarks import load_benchmark
from t3d.errors import DataError, UserError
from t3d.grading import grade_math
from t3d.grading.extract import extract_boxed
from t3d.sdar.checkpoint import load_model_config, load_tokenizer
from t3d.toy import gsm_symbolic
from t3d.toy.base import main as write_base
from t3d.toy.gsm_symbolic import TEMPLATES, generate, main, package, split_of
from t3d.toy.problems import SPLITS

needs_package = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
COUNT = 400


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def kind(question: str) -> str:
    """A question without its numbers and all that stands at their sides: alike for problems of a template."""
    return " ".join(re.findall(r"[a-z]+", question)[:6])


def words(text: str) -> int:
    """Words, signs and digits, as the tokenizer's parts."""
    return len(re.findall(r" ?[A-Za-z]+| ?[0-9]|\n| ?[^\sA-Za-z0-9]+|\s", text))


def drawn(template: int, count: int) -> list[dict]:
    """What the package itself makes."""
    return [package().generators[template](Random(seed), 1.0) for seed in range(count)]


class TestWithoutThePackage:
    def test_what_is_missing_is_said_in_a_line(self, monkeypatch):
        def missing(name: str) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name="reasoning_gym")

        monkeypatch.setattr(gsm_symbolic, "import_module", missing)
        package.cache_clear()
        with pytest.raises(
            UserError, match=r"reasoning-gym \(pip install -e '\.\[world\]'\), found no module reasoning"
        ):
            next(generate("train"))

    def test_splits_have_their_shares(self):
        questions = [f"Ada has {a} pens and {b} pins." for a, b in itertools.product(range(60), repeat=2)]
        found = Counter(map(split_of, questions))
        assert [found[split] / 3600 for split in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)

    def test_a_solution_that_does_not_end_in_the_answer_is_told_of(self, monkeypatch):
        def other(stream: Random, difficulty: float) -> dict:
            return {"question": "How many?", "answer": "7", "metadata": {"answer_cot": "3 + 4 = 7.\n#### 8"}}

        stand_in = SimpleNamespace(generators=dict.fromkeys(TEMPLATES, other))
        monkeypatch.setattr(gsm_symbolic, "package", lambda: stand_in)
        with pytest.raises(DataError, match=r"template \d+: expected .*'#### 7', found '8'"):
            next(generate("train"))

    def test_a_world_of_another_name_takes_no_invented_names(self, tmp_path):
        with pytest.raises(UserError, match="--names"):
            write_base(["--world", "GSMSymbolic", "--names", "5", "--out", str(tmp_path / "base")])
        assert not (tmp_path / "base").exists()


@pytest.fixture(scope="module")
def problems() -> dict[str, list[dict]]:
    return {split: list(itertools.islice(generate(split), COUNT)) for split in SPLITS}


@needs_package
class TestProblems:
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_templates_are_what_is_said_of_them(self, template):
        found = drawn(template, 1000)
        for each in found:
            solution = each["metadata"]["answer_cot"].replace("#### ", "The answer is \\boxed{") + "}."
            assert words(each["question"]) <= 51
            assert words(solution) <= 66
            assert not re.search(r"\d[.,]\d", each["question"] + solution)
            assert max(map(int, numbers(each["question"] + solution))) <= 125
        assert len({each["question"] for each in found}) >= 900
        assert 100 <= len({tuple(numbers(each["question"])) for each in found}) <= 900

    def test_splits_share_no_question(self, problems):
        questions = {split: {item["question"] for item in problems[split]} for split in SPLITS}
        for one, other in itertools.combinations(SPLITS, 2):
            assert not questions[one] & questions[other]
        for split, items in questions.items():
            assert {split_of(question) for question in items} == {split}

    def test_all_templates_come_and_no_problem_twice(self, problems):
        for items in problems.values():
            assert len({item["question"] for item in items}) == COUNT
            assert len({kind(item["question"]) for item in items}) >= len(TEMPLATES)

    def test_the_same_seed_gives_the_same_problems_and_another_seed_others(self, problems):
        assert list(itertools.islice(generate("train"), COUNT)) == problems["train"]
        assert list(itertools.islice(WORLDS["GSMSymbolic"]("train"), COUNT)) == problems["train"]
        others = {item["question"] for item in itertools.islice(generate("train", seed=1), COUNT)}
        assert len(others & {item["question"] for item in problems["train"]}) < COUNT / 10

    def test_worked_solutions_end_in_the_answer(self, problems):
        for item in itertools.chain.from_iterable(problems.values()):
            assert item["answer"].endswith(f".\nThe answer is \\boxed{{{item['ground_truth_answer']}}}.")
            assert extract_boxed(item["answer"]) == item["ground_truth_answer"]

    def test_our_grader_says_what_the_packages_scorer_says_of_the_boxed_answer(self, problems):
        stream = Random(0)
        for item in problems["test"][:60]:
            truth = item["ground_truth_answer"]
            wrong = str(int(truth) + stream.choice([1, 2, 5, 10, 100]))
            written = [
                item["answer"],
                *(f"So \\boxed{{{text}}}." for text in (wrong, f"{truth}0", f"{truth}.0", f"\\${truth}")),
            ]
            for response in [*written, "No answer.", "So \\boxed{}.", "So \\boxed{many}."]:
                score = package().score_answer(extract_boxed(response), {"answer": truth})
                assert grade_math(response, truth) == (score == 1.0), (response, truth)

    def test_but_the_scorer_overlooks_a_minus_sign(self):
        assert package().score_answer("-5", {"answer": "5"}) == 1.0
        assert not grade_math("So \\boxed{-5}.", "5")


@needs_package
class TestCommands:
    def test_it_writes_a_data_set_that_loads(self, tmp_path, problems):
        path = tmp_path / "GSMSymbolic.json"
        main(["--split", "test", "--limit", "20", "--out", str(path)])
        items = load_benchmark(path, "math")
        assert [item["question"] for item in items] == [item["question"] for item in problems["test"][:20]]
        assert all(set(item) == {"question", "ground_truth_answer", "family"} for item in items)

    def test_it_takes_no_names(self, tmp_path):
        with pytest.raises(UserError, match="--names"):
            main(["--names", "3", "--out", str(tmp_path / "x.json")])

    def test_the_models_tokenizer_knows_the_worlds_words(self, tmp_path, problems):
        write_base(["--world", "GSMSymbolic", "--out", str(tmp_path)])
        tokenizer, config = load_tokenizer(tmp_path), load_model_config(tmp_path)
        assert config.vocab_size == len(tokenizer)
        for item in problems["test"][:100]:
            pieces = [tokenizer.decode([token]) for token in tokenizer(item["answer"])["input_ids"]]
            assert len(pieces) <= words(item["answer"])
            assert not any(len(piece.strip()) > 1 for piece in pieces if re.search(r"\d", piece))
