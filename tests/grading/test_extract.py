import json
import time
from pathlib import Path

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


@pytest.mark.parametrize(
    ("text", "choice", "prefix", "code"),
    [
        ("1. Solution:\n   ```python\n   def f():\n       return 1\n   ```\n", "last", "", "def f():\n    return 1\n"),
        ("- ```python\n  a = 1\n  ```", "last", "", "a = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "last", "", "s = '''\n```\n'''\n"),
        ("~~~python\na\n~~~", "last", "", "a\n"),
        ("~~~\n```\na\n~~~", "last", "", "```\na\n"),
        ("```python\na\n```\n```python\n\n```", "last", "", "a\n"),
        ("```python\na\n```\n```python\n```", "last", "", "a\n"),
        ("use ```python inline``` now\n```python\na\n```", "last", "", "a\n"),
        ("```python\nprint('```')\n```", "last", "", "print('```')\n"),
        ('```python\nx = "```python"\n```', "last", "", 'x = "```python"\n'),
        ("```python\ndef f(): pass\n```\nusage:\n```python\nf()\n```", "first", "", "def f(): pass\n"),
        ("```python\ndef f(): pass\n```\nusage:\n```python\nf()\n```", "longest", "", "def f(): pass\n"),
        ("```python\ndef f(): pass\n```\nusage:\n```python\nf()\n```", "last", "", "f()\n"),
        ("```\ndef f(x):\n    return 2\n```", "last", PREFIX, "def f(x):\n    return 2\n"),
        ("Sure:\n```\ndef f(x):\n    return 2\n```\nIt works.", "last", PREFIX, "def f(x):\n    return 2\n"),
        ("    return x\n```\nIt works.", "last", PREFIX, "def f(x):\n    return x\n"),
        ("    return x\n```\nExample:\n```\n42\n```", "last", PREFIX, "def f(x):\n    return x\n"),
        ("    return x\n", "last", PREFIX, "def f(x):\n    return x\n"),
        ("    return (\n```\nOops.", "last", PREFIX, "def f(x):\n    return (\n"),
        ("```python\r\na\r\n```\r\n", "last", "", "a\r\n"),
        ("```\r\na\r\n```\r\nb", "last", "", "a\r\n"),
        ("```{.python}\na\n```", "last", "", "a\n"),
        ('```python title="x"\na\n```', "last", "", "a\n"),
        ("    return x\r\n```\r\nIt works.", "last", PREFIX, "def f(x):\n    return x\r\n"),
        ("```python\na\n``` \nb", "last", "", "a\n"),
        ("* step\n\n\t```python\n\tif x:\n\t\ty\n\t```", "last", "", "if x:\n\ty\n"),
        ("```\nplain\n```", "last", "", "plain\n"),
        ("```python\na\n`````", "last", "", "a\n"),
        ("```python\na = 1\nb```", "last", "", "a = 1\nb"),
        ("\ufeff```python\na\n```", "last", "", "a\n"),
        ("> ```python\n> if a:\n>     b\n> ```\n> ok", "last", "", "if a:\n    b\n"),
        ("```python\na\n```<|im_end|>", "last", "", "a\n"),
        ("Code: ```python\na\n```\nend", "last", "", "a\n"),
        ("Code: ```python\nb\n```\n```python\na\n```", "last", "", "a\n"),
        ("~~~~py\na\n~~~\nb\n~~~~", "last", "", "a\n~~~\nb\n"),
        ("* a\n  * b\n    ```py\n    a\n    ```", "last", "", "a\n"),
        ("1. a\n   ```python\n   if x:\n       y\n\n   z\n   ```", "last", "", "if x:\n    y\n\nz\n"),
        ("<think>\n```python\nbad\n```\n</think>\n```python\ngood\n```", "last", "", "good\n"),
    ],
)
def test_fences_as_models_write_them(text, choice, prefix, code):
    assert extract_code(text, choice, prefix) == code


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is C. None of the other choices is right.", "C"),
        ("The correct answer is: B", "B"),
        ("**B**", "B"),
        ("B is correct", "B"),
        ("$\\text{B}$", "B"),
        ("a tricky one", None),
        ("This is a tricky one. A good way to start", None),
        ("The answer is: **(B) Paris**", "B"),
        ("So the correct choice is B, not C.", "B"),
        ("Option A is wrong. The answer is D.", "D"),
        ("I choose (B).", "B"),
        ("The answer is A because", "A"),
        ("A tricky one", None),
        ("Answer: **D**", "D"),
        ("Answer: (C) 12", "C"),
        ("The answer is $\\boxed{\\text{B}}$", "B"),
        ("The answer is B, while option C is wrong", "B"),
        ("It is: B", "B"),
        ("is: B", "B"),
        ("\\(B\\)", "B"),
        ("(B) is the right answer.", "B"),
        ("B is incorrect. C is correct.", "C"),
        ("The answer is E", None),
        ("answer is Both", None),
        ("The answer is A's", None),
        ("**Final answer: C**", "C"),
        ("The final answer is $C$.", "C"),
        ("Answer:\nB", "B"),
        ("Reasoning about A and D...\n\nB", "B"),
        ("Let me think about option A. Hmm, option C looks fine.", "C"),
        ("Choice B is correct; choices A and C are not", "B"),
        ("The answer is not B. It must be C.", "C"),
        ("\\boxed{A and C}", None),
        ("\\boxed{12}. The answer is B.", "B"),
        ("\\boxed{B} \\boxed{}", "B"),
        ("The answer is option B", "B"),
        ("**Answer:** B", "B"),
        ("B) Paris", "B"),
        ("The answer is A tricky question", None),
        ("The choice is A.", "A"),
        ("The answer is \\textbf{(B)}", "B"),
        ("answer is \\(\\text{D}\\)", "D"),
        ("D", "D"),
        ("I would go with C", "C"),
        ("The correct answer would be C", "C"),
        ("Therefore, C is the correct answer.", "C"),
        ("**C** is correct", "C"),
        ("The best answer is therefore D.", "D"),
        ("A. Paris", "A"),
        ("Some choices are tricky", None),
        ("Choices", None),
        ("CHOICE: B", "B"),
        ("The answer is - B", "B"),
        ("`B`", "B"),
        ("Correct Answer: B. 12", "B"),
        ("The answer, then, is B", "B"),
        ("Answer B", "B"),
        ("Answer is **option D**: 12", "D"),
        ("The answer is (A) a tricky one", "A"),
        ("The answer is A: a tricky one", "A"),
    ],
)
def test_the_stated_option_goes_before_one_that_is_mentioned(text, letter):
    assert extract_option(text) == letter


def test_options_as_models_state_them():
    rows = json.loads((Path(__file__).parent / "options.json").read_text(encoding="utf-8"))
    got = [extract_option(row["text"], tuple(row.get("options", "ABCD"))) for row in rows]
    assert [(row["text"], letter) for row, letter in zip(rows, got, strict=True) if letter != row["letter"]] == []


def test_only_the_options_given_are_answers():
    assert extract_option("The answer is E.") is None
    assert extract_option("The answer is E.", ("A", "B", "C", "D", "E")) == "E"


@pytest.mark.parametrize("text", [r"\boxed{5} so \boxed{}", r"\boxed{5}, that is \boxed{ }."])
def test_an_empty_last_box_does_not_win(text):
    assert extract_boxed(text) == "5"


def test_which_block_is_a_choice():
    output = "```python\ndef f():\n    pass\n```\nUsage:\n```python\nf()\n```"
    chosen = [extract(output, {"test_method": "stdio"}, "code", block) for block in ("last", "first", "longest")]
    assert chosen == ["f()\n", "def f():\n    pass\n", "def f():\n    pass\n"]


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
        r"\boxed{" * 100_000,
        "{" * 1_000_000,
        r"\boxed{5}" * 60_000,
        "`" * 1_000_000,
        "```python\n" * 60_000,
        "\\" * 600_001,
        "\0\ud800" * 200_000,
        r"\boxed " * 100_000,
        "answer is " * 80_000,
        "<answer>" * 12_000,
        r"\boxed" + " " * 600_000,
        "answer" + " " * 6_000,
    ],
    ids=range(12),
)
def test_megabytes_of_anything_take_seconds_at_most(text):
    began = time.monotonic()
    extract_boxed(text)
    extract_code(text)
    extract_option(text)
    assert time.monotonic() - began < 10
