import pytest

from t3d.doctor.finding import Examination, Finding, counted
from t3d.doctor.page import render
from t3d.errors import DataError


def broken():
    yield Finding("ok", "part", "fine")
    raise ImportError("/usr/lib/x.so: undefined symbol\n  of torch")


def mistaken():
    raise DataError("file.json, record 3", "a list", "a string")


def test_what_a_check_raises_is_on_the_page_and_what_it_found_before_stays():
    examination = Examination()
    examination.open("machine")
    examination.examine("flash-attn", broken)
    examination.examine("data", mistaken)
    assert examination.obtain("data", lambda: 3) == 3
    assert examination.obtain("data", lambda: 1 // 0) is None
    text = render("title", examination.sections)
    assert text.splitlines() == [
        "title",
        "machine:",
        "  ok       part            fine",
        "  error    flash-attn      could not be examined: ImportError: /usr/lib/x.so: undefined symbol of torch",
        "                           -> install it anew",
        "  error    data            file.json, record 3: a string",
        "                           -> expected a list",
        "  error    data            could not be examined: ZeroDivisionError: integer division or modulo by zero",
        "                           -> install it anew",
        "3 errors, no warnings",
    ]


def test_ctrl_c_ends_the_examination():
    examination = Examination({"": []})

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examination.obtain("data", stopped)


def test_a_number_with_its_noun():
    assert [counted(1, "process", "processes"), counted(2000, "process", "processes"), counted(0, "file")] == [
        "1 process",
        "2,000 processes",
        "0 files",
    ]
