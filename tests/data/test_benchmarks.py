import copy
import json
from pathlib import Path

import pytest

from t3d.data.benchmarks import DATASETS, known_bad, leakage_warning, load_benchmark
from t3d.errors import ConfigError, DataError

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"

MATH = {"question": "1+1?", "ground_truth_answer": "2", "level": 1}
FUNCTION = {
    "question": "Add.",
    "test_method": "function",
    "test_list": ["assert add(1, 1) == 2"],
    "prefix": "def add(a, b):\n\n",
    "test_time_limit": 1,
}
STDIO = {
    "question": "Add.",
    "test_method": "stdio",
    "test_input": ["1 1\n", ""],
    "test_output": ["2\n", "0"],
    "test_time_limit": 0.5,
}
OPTION = {"question": "Which is prime? (A) 4 (B) 5 (C) 6 (D) 8", "ground_truth_answer": "B"}
WITHOUT = object()


@pytest.fixture
def dataset_file(tmp_path):
    def write(*records: object) -> Path:
        path = tmp_path / "set.json"
        path.write_text(json.dumps(records))
        return path

    return write


def changed(record: dict, **changes: object) -> dict:
    return {key: value for key, value in {**record, **changes}.items() if value is not WITHOUT}


@pytest.mark.parametrize(
    ("records", "data_type"),
    [
        ([MATH, MATH, changed(MATH, ground_truth_answer="")], "math"),
        ([changed(OPTION, ground_truth_answer=letter) for letter in "ABCD"], "option"),
        ([FUNCTION, STDIO, changed(FUNCTION, prefix=WITHOUT), changed(FUNCTION, prefix=None)], "code"),
        ([changed(MATH, id=1), changed(MATH, id="1"), MATH], "math"),
        ([changed(MATH, id=1, task_id=2), changed(MATH, id=2, task_id=1, unique_id=None)], "math"),
    ],
)
def test_valid_records_come_back_as_they_are(dataset_file, records, data_type):
    assert load_benchmark(dataset_file(*records), data_type) == records


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_json_lines_are_read_as_the_list_of_their_records(tmp_path, end):
    path = tmp_path / "set.jsonl"
    path.write_bytes(end.join(json.dumps(changed(MATH, id=i)) for i in range(3)).encode() + end.encode())
    assert load_benchmark(path, "math") == [changed(MATH, id=i) for i in range(3)]


@pytest.mark.parametrize(("number", "text"), [(18, "18"), (-3, "-3"), (0.5, "0.5"), (2.0, "2.0")])
def test_answers_that_are_numbers_become_their_text(dataset_file, number, text):
    items = load_benchmark(dataset_file(changed(MATH, ground_truth_answer=number)), "math")
    assert items == [changed(MATH, ground_truth_answer=text)]


@pytest.mark.parametrize(("family", "kept"), [("a", {"family": "a"}), (7, {"family": "7"}), (None, {})])
def test_a_family_is_a_text_or_a_number(dataset_file, family, kept):
    [item] = load_benchmark(dataset_file(changed(MATH, family=family)), "math")
    assert item == {**MATH, **kept}


def test_limit_takes_the_first_records_but_all_are_checked(dataset_file):
    records = [changed(MATH, question=str(i)) for i in range(5)]
    assert load_benchmark(dataset_file(*records), "math", limit=2) == records[:2]
    with pytest.raises(DataError, match="record 5"):
        load_benchmark(dataset_file(*records, {}), "math", limit=2)


@pytest.mark.parametrize(
    ("bad", "data_type", "complaint"),
    [
        ([], "math", "record 1: expected an object, found list"),
        (
            changed(MATH, question=WITHOUT),
            "math",
            "record 1, field question: expected the field, found nothing",
        ),
        (changed(MATH, question=["a"]), "math", "record 1, field question: expected a string, found list"),
        (changed(MATH, family=1.5), "math", "record 1, field family: expected a string, found"),
        (changed(MATH, question="a\0"), "math", "record 1, field question: expected text without NUL"),
        (changed(MATH, question="\ud800"), "math", "field question: .* found '.ud800' at character 0"),
        *(
            (
                changed(OPTION, ground_truth_answer=bad),
                "option",
                "field ground_truth_answer: expected one of A, B, C, D",
            )
            for bad in ("E", "b", " B", "", "B.", 1, None, ["B"])
        ),
        (changed(MATH, ground_truth_answer=WITHOUT), "math", "field ground_truth_answer: expected the field"),
        (
            changed(MATH, ground_truth_answer=True),
            "math",
            "field ground_truth_answer: expected a string, found bool",
        ),
        (
            changed(MATH, ground_truth_answer=None),
            "math",
            "field ground_truth_answer: expected a string, found nothing",
        ),
        (changed(MATH, ground_truth_answer=1e22), "math", "not in exponent notation, found 1e\\+22"),
        (changed(MATH, ground_truth_answer=float("nan")), "math", "finite .* found nan"),
    ],
)
def test_a_bad_record_is_named_with_its_field(dataset_file, bad, data_type, complaint):
    path = dataset_file(MATH, bad)
    with pytest.raises(DataError, match=f"^{path}, .*{complaint}"):
        load_benchmark(path, data_type)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (
            changed(FUNCTION, test_method="unit"),
            "field test_method: expected function or stdio, found 'unit'",
        ),
        (changed(FUNCTION, test_method=WITHOUT), "field test_method: expected the field, found nothing"),
        (
            changed(FUNCTION, test_list=[]),
            "field test_list: expected a list of at least one string, found an empty",
        ),
        (changed(FUNCTION, test_list="assert"), "field test_list: expected a list .*, found string"),
        (changed(FUNCTION, test_list=["a", 2]), "field test_list, entry 1: expected a string, found int 2"),
        (changed(FUNCTION, prefix=3), "field prefix: expected a string, found int 3"),
        (
            changed(FUNCTION, test_time_limit=0),
            "field test_time_limit: expected a number .* above 0, found 0",
        ),
        (changed(FUNCTION, test_time_limit=True), "field test_time_limit: .* found True"),
        (changed(FUNCTION, test_time_limit="1"), "field test_time_limit: .* found '1'"),
        (changed(FUNCTION, test_time_limit=float("inf")), "field test_time_limit: .* found inf"),
        (
            changed(STDIO, test_input=["1"]),
            "field test_output: expected 1 texts, one per test_input, found 2",
        ),
        (changed(STDIO, test_output=WITHOUT), "field test_output: expected the field, found nothing"),
        (changed(STDIO, test_input=[1, 2]), "field test_input, entry 0: expected a string, found int 1"),
    ],
)
def test_a_bad_code_record_is_named_with_its_field(dataset_file, bad, complaint):
    with pytest.raises(DataError, match=f"record 0, {complaint}"):
        load_benchmark(dataset_file(bad), "code")


@pytest.mark.parametrize("field", ["id", "task_id", "unique_id"])
def test_repeated_ids_name_both_records(dataset_file, field):
    path = dataset_file(changed(MATH, **{field: "a"}), MATH, changed(MATH, **{field: "a"}))
    complaint = f"record 2, field {field}: expected an id of its own, found 'a', the id of record 0"
    with pytest.raises(DataError, match=complaint):
        load_benchmark(path, "math")


def test_an_id_is_a_text_or_a_number(dataset_file):
    with pytest.raises(DataError, match="field id: expected a string or a whole number, found list"):
        load_benchmark(dataset_file(changed(MATH, id=[])), "math")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "expected at least one record, found an empty list"),
        ('{"question": "a"}', "record 0, field ground_truth_answer: expected the field, found nothing"),
        ('{\n"question": "a"}', "expected a JSON list, or an object on each line, found an object over several lines"),
        (
            '[{"question": "a", "question": "b"}]',
            "column 2: expected JSON, found the key 'question' twice in an object",
        ),
        ('[\n{"question": "1+', "line 2 column 14: expected JSON, found Unterminated string"),
    ],
)
def test_a_file_without_records_is_named(tmp_path, text, complaint):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"{path}.*{complaint}"):
        load_benchmark(path, "math")


def test_settings_are_checked_before_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation.data_type: expected math or code or option, found 'text'"):
        load_benchmark(tmp_path / "none.json", "text")
    with pytest.raises(ConfigError, match=r"evaluation.limit: expected a whole number of at least 1, found 0"):
        load_benchmark(tmp_path / "none.json", "math", limit=0)


@pytest.mark.parametrize(("name", "count"), [("MATH_train", 8523), ("GSM8K", 1319), ("HumanEval", 164)])
def test_the_published_files_are_valid(name, count):
    path = SHARED_DATA / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{name} is not here")
    items = load_benchmark(path, DATASETS[name].data_type)
    assert len(items) == count
    assert known_bad(items) == {}


def test_the_table_knows_every_dataset():
    code = {"PrimeIntellect", "MBPP", "HumanEval"}
    assert set(DATASETS) == code | {"MATH_train", "MATH500", "GSM8K", "TinyMath"}
    assert {name for name, dataset in DATASETS.items() if dataset.data_type == "code"} == code
    assert DATASETS["MATH_train"].repo_id == "Gen-Verse/MATH_train"
    assert DATASETS["MATH_train"].file_name == "train/MATH_train.json"
    assert DATASETS["MATH500"].file_name == "test/MATH500.json"
    assert DATASETS["TinyMath"].repo_id is None


@pytest.mark.parametrize(
    ("train_name", "eval_name", "phrase"),
    [
        ("MATH_train", "MATH", "2936 of the 8523"),
        ("SDAR-4B-Chat-MATH_train_renamed", "MATH_test", "2936 of the 8523"),
        ("SDAR-4B-Chat-GSM8K_renamed", "GSM8K", "trained on these problems"),
        ("SDAR-4B-Chat-MATH_train_renamed", "MATH500", None),
        ("SDAR-4B-Chat-MATH_train_renamed", "GSM8K", None),
        ("PrimeIntellect", "MBPP", None),
        ("SDAR-4B-Chat-MATH_train_renamed", None, "MATH test split"),
        ("SDAR-4B-Chat-PrimeIntellect_renamed", None, None),
    ],
)
def test_overlap_of_training_and_evaluation_is_told(train_name, eval_name, phrase):
    warning = leakage_warning(train_name, eval_name)
    assert phrase in warning if phrase else warning is None


# The check programs of MBPP's tasks 56 and 349, as published, each with a right solution.
TASK_56 = (
    "\n\ndef check(candidate):\n    assert check(70) == False\n    assert check(23) == False\n"
    "    assert check(73) == True\n\ncheck(rev)"
)
TASK_349 = (
    '\n\ndef check(candidate):\n    assert check("01010101010") == "Yes"\n    assert check("name0") == "No"\n'
    '    assert check("101") == "Yes"\n\ncheck(check)'
)
SOLUTION_56 = "def rev(n):\n    return int(str(n)[::-1])\ndef check(n):\n    return 2 * rev(n) == n + 1\n"
SOLUTION_349 = "def check(string):\n    return 'Yes' if set(string) <= {'0', '1'} else 'No'\n"


def passes(solution: str, program: str) -> bool:
    namespace: dict = {}
    exec(solution, namespace)
    try:
        exec(program, namespace)
    except (AssertionError, RecursionError, TypeError):
        return False
    return True


@pytest.mark.parametrize(
    ("program", "solution"),
    [
        (TASK_56, SOLUTION_56),
        (TASK_349, SOLUTION_349),
        (TASK_349 + "  # \u00e9, run_checks\n", SOLUTION_349),
        (TASK_56.replace("\n", "\r\n"), SOLUTION_56),
    ],
)
def test_a_check_program_that_hides_the_solution_is_found_and_mended(program, solution):
    items = [FUNCTION, changed(FUNCTION, test_list=[program])]
    before = copy.deepcopy(items)
    mended = known_bad(items)
    assert list(mended) == [1]
    assert items == before
    (repaired,) = mended[1]["test_list"]
    assert not passes(solution, program)
    assert passes(solution, repaired)
    assert not passes(solution, repaired.replace('"No"', '"Maybe"').replace("True", "None"))
    assert changed(mended[1], test_list=[program]) == items[1]


@pytest.mark.parametrize(
    "program",
    [
        "def check(candidate):\n    assert candidate(1) == 2\ncheck(add)",
        "def check(candidate):\n    assert add(1) == 2\ncheck(add)",
        "def check(n):\n    return n == 0 or check(n - 1)\nassert check(add(1, 1))",
        "check(check)",
        "text = '''\ndef check(c):\n    check(1)\n'''\n",
        "def check(candidate:\ncheck(check)",
        "def check(c):\n    check(1)\n\0",
        "",
    ],
)
def test_sound_programs_are_left_alone(program):
    items = [changed(FUNCTION, test_list=[program]), STDIO, MATH]
    assert known_bad(items) == {}
