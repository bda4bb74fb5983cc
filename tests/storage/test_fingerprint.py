from pathlib import Path

import pytest

from t3d.storage import fingerprint
from t3d.storage.fingerprint import EDGE_BYTES, PAGE_BYTES, STRIDE_BYTES, difference, model_digest, text_digest


def model(folder: Path, **files: bytes) -> str:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return model_digest(folder)


def test_equal_folders_have_equal_digests_wherever_they_are(tmp_path):
    assert model(tmp_path / "a", x=b"1", y=b"2") == model(tmp_path / "b", y=b"2", x=b"1")


@pytest.mark.parametrize(
    "files",
    [
        {"x": b"2", "y": b"2"},
        {"x": b"1"},
        {"x": b"1", "z": b"2"},
        {"x": b"12", "y": b""},
        {"x": b"1", "y": b""},
    ],
)
def test_another_name_or_content_gives_another_digest(tmp_path, files):
    assert model(tmp_path / "a", x=b"1", y=b"2") != model(tmp_path / "b", **files)


@pytest.mark.parametrize(
    ("place", "is_seen"),
    [
        *((place, True) for place in (0, EDGE_BYTES - 1, -1, -EDGE_BYTES)),
        *((number * STRIDE_BYTES, True) for number in (1, 2, 3)),
        *((number * STRIDE_BYTES + PAGE_BYTES - 1, True) for number in (1, 2, 3)),
        *((place, False) for place in (EDGE_BYTES, STRIDE_BYTES - 1, STRIDE_BYTES + PAGE_BYTES, -EDGE_BYTES - 1)),
    ],
)
def test_of_large_files_the_ends_and_a_page_in_every_stride_count(tmp_path, monkeypatch, place, is_seen):
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 16 << 20)
    weights = bytearray(4 * STRIDE_BYTES)
    before = model(tmp_path / "a", weights=bytes(weights))
    weights[place] = 1
    assert (model(tmp_path / "a", weights=bytes(weights)) != before) is is_seen


@pytest.mark.parametrize("place", [0, EDGE_BYTES, 3 * EDGE_BYTES])
def test_of_other_files_every_byte_counts(tmp_path, place):
    weights = bytearray(5 * EDGE_BYTES)
    before = model(tmp_path / "a", weights=bytes(weights))
    weights[place] = 1
    assert model(tmp_path / "a", weights=bytes(weights)) != before


def test_folders_inside_a_model_folder_do_not_count(tmp_path):
    before = model(tmp_path / "a", x=b"1")
    (tmp_path / "a" / "runs").mkdir()
    assert model_digest(tmp_path / "a") == before


def test_the_order_of_keys_does_not_count_and_that_of_lists_does():
    assert text_digest({"a": 1, "b": 2}) == text_digest({"b": 2, "a": 1})
    assert text_digest([1, 2]) != text_digest([2, 1])


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b was 2, is 3"),
        ({"a": 1}, {}, "a was 1, is None"),
        ({}, {"a": 1}, "a was None, is 1"),
    ],
)
def test_the_first_difference_is_told(before, now, text):
    assert difference(before, now) == text
