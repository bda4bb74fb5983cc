from pathlib import Path

import pytest

from t3d.rollout.fingerprint import EDGE_BYTES, difference, model_digest, text_digest


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


@pytest.mark.parametrize("place", [0, EDGE_BYTES - 1, EDGE_BYTES, 2 * EDGE_BYTES - 1, -1, -EDGE_BYTES])
def test_changes_in_the_first_and_last_megabyte_of_weights_are_seen(tmp_path, place):
    weights = bytearray(2 * EDGE_BYTES + 5)
    before = model(tmp_path / "a", weights=bytes(weights))
    weights[place] = 1
    changed = model(tmp_path / "b", weights=bytes(weights))
    in_the_middle = place in (EDGE_BYTES, 2 * EDGE_BYTES - 1) and place < len(weights) - EDGE_BYTES
    assert (before == changed) is in_the_middle


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
