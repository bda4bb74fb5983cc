import time

import pytest

from t3d.errors import DataError
from t3d.grading.extract import extract, extract_boxed, extract_code, extract_option


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{\sqrt{3}}{{2}}} done", r"\frac{\sqrt{3}}{{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed {7}", "7"),
        ("\\boxed\n{7}", "7"),
        (r"\boxed 5 is it", "5"),
        (r"the answer is $\boxed 5$.", "5"),
        (r"\fbox{9}", "9"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{3} and \boxed{\frac{4}{5}", "3"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"{ \boxed{5}", "5"),
        (r"} \boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxedanswer{5}", None),
        (r"\boxed{4", None),
        (r"\boxed", None),
        ("no box", None),
        ("", None),
    ],
)
def test_last_balanced_box(text, answer):
    assert extract_boxed(text) == answer


PREFIX = "Here is the completed code:\n```python\ndef f(x):\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n```\nbetter:\n```python\na = 2\n```\n", "a = 2\n"),
        ("```py\na\n```", "a\n"),
        ("```Python\na\n```", "a\n"),
        ("``` python\na\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\nprints\n```\n42\n```", "a\n"),
        ("```python\na\n```\n```bash\nls\n```", "a\n"),
        ("```python\na = 1\n", "a = 1\n"),
        ("```python\na\n```\n```python\nb", "b"),
        ("```python\na\n```\nand\n```python\n", "a\n"),
        ("```python\na\n```python\nb\n```", "b\n"),
        ("```python\r\na\r\n```", "a\r\n"),
        (PREFIX + "    return x\n```\nIt works.", "def f(x):\n    return x\n"),
        (PREFIX + "    return x\n", "def f(x):\n    return x\n"),
        (PREFIX + "    return x```", "def f(x):\n    return x"),
        (PREFIX + "```python\ndef f(x):\n    return 2\n```", "def f(x):\n    return 2\n"),
        ("no code", None),
        ("", None),
    ],
)
def test_last_python_block(text, code):
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{A}", "A"),
        (r"\boxed{A} no, \boxed{C}", "C"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{D}}", "D"),
        (r"\boxed{\textbf{(D) } 12}", "D"),
        (r"\boxed{B. Paris}", "B"),
        ("C", "C"),
        ("(C).", "C"),
        ("The answer is B.", "B"),
        ("The correct option is (D) because", "D"),
        ("**Answer: A**", "A"),
        ("First the answer is A. No: the answer is C.", "C"),
        (r"\boxed{Apple}", None),
        ("I do not know", None),
        ("The answer is Paris", None),
        ("", None),
    ],
)
def test_option_letter(text, letter):
    assert extract_option(text) == letter


def test_dispatch_by_data_type():
    assert extract(r"\boxed{5}", {}, "math") == "5"
    assert extract(r"\boxed{B}", {}, "option") == "B"
    assert extract("```python\na\n```", {"test_method": "stdio"}, "code") == "a\n"
    function = {"test_method": "function", "prefix": PREFIX}
    assert extract("    return x\n```", function, "code") == "def f(x):\n    return x\n"
    assert [extract("nothing", {}, kind) for kind in ("math", "code", "option")] == ["", "", ""]


def test_unknown_data_type_is_the_users_mistake():
    with pytest.raises(DataError, match="math, option, code"):
        extract("x", {}, "maths")


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 500_000,
        "{" * 5_000_000,
        r"\boxed{5}" * 300_000,
        "`" * 5_000_000,
        "```python\n" * 300_000,
        "\\" * 3_000_001,
        "\0\ud800" * 1_000_000,
        r"\boxed " * 500_000,
        "answer is " * 400_000,
        r"\boxed" + " " * 3_000_000,
        "answer" + " " * 30_000,
    ],
    ids=range(11),
)
def test_megabytes_of_anything_take_seconds_at_most(text):
    began = time.monotonic()
    extract_boxed(text)
    extract_code(text)
    extract_option(text)
    assert time.monotonic() - began < 20
