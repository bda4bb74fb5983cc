from dataclasses import dataclass, field
from typing import Any

import pytest

from t3d.errors import DataError
from t3d.storage.fields import read_fields


@dataclass(frozen=True)
class Inner:
    word: str


@dataclass(frozen=True)
class Outer:
    count: int
    share: float | None
    inner: Inner
    many: list[Inner]
    counts: dict[str, int]
    anything: Any
    late: bool = True
    later: list[str] = field(default_factory=list)


WHOLE = {
    "count": 3,
    "share": 1,
    "inner": {"word": "a"},
    "many": [{"word": "b"}, {"word": "c"}],
    "counts": {"x": 1},
    "anything": [None, "x"],
}


def test_every_field_is_built_as_it_is_declared():
    read = read_fields(Outer, {**WHOLE, "later": ["y"]}, "f")
    assert read == Outer(3, 1, Inner("a"), [Inner("b"), Inner("c")], {"x": 1}, [None, "x"], True, ["y"])


def test_fields_of_older_and_newer_versions_do_not_matter():
    assert read_fields(Outer, {**WHOLE, "of tomorrow": 1}, "f") == read_fields(Outer, WHOLE, "f")


def test_what_is_built_already_is_taken():
    assert read_fields(Outer, {**WHOLE, "inner": Inner("z")}, "f").inner == Inner("z")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": ...}, "f, field count: expected a whole number, found nothing"),
        ({"count": True}, "f, field count: expected a whole number, found boolean"),
        ({"count": 1.0}, "f, field count: expected a whole number, found number"),
        ({"count": None}, "f, field count: expected a whole number, found null"),
        ({"share": "1"}, "f, field share: expected a number or null, found string"),
        ({"share": False}, "f, field share: expected a number or null, found boolean"),
        ({"late": 0}, "f, field late: expected true or false, found number"),
        ({"inner": "a"}, "f, field inner: expected an object, found string"),
        ({"inner": {}}, "f, field inner.word: expected a string, found nothing"),
        ({"many": {}}, "f, field many: expected a list, found object"),
        ({"many": [{"word": "b"}, {"word": 1}]}, "f, field many, entry 1.word: expected a string, found number"),
        ({"counts": {"x": "1"}}, "f, field counts.x: expected a whole number, found string"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    values = {name: value for name, value in (WHOLE | change).items() if value is not ...}
    with pytest.raises(DataError) as caught:
        read_fields(Outer, values, "f")
    assert str(caught.value) == said


@pytest.mark.parametrize("values", [None, [], "x"])
def test_what_is_no_object_is_refused(values):
    with pytest.raises(DataError, match=r"^f: expected an object, found "):
        read_fields(Outer, values, "f")
