import json
import os
import stat
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.storage import files
from t3d.storage.files import (
    atomic_writer,
    iter_json_list,
    read_json,
    remove_temporaries,
    whole_lines,
    write_json_atomic,
    write_json_list,
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


VALUES = [
    None,
    True,
    1.5e-7,
    -12345678901234567890,
    'quote " backslash \\ newline \n é 😀 \ud83d',
    [],
    {"nested": [{"a": [1, 2, {"b": "]},{["}]}]},
    "x" * 100,
    0,
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_streaming_equals_reading_at_once_wherever_the_buffer_ends(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(files, "_CHUNK_CHARS", chunk)
    path = write(tmp_path / "list.json", " \n" + json.dumps(VALUES, indent=indent) + "\n ")
    assert list(iter_json_list(path)) == VALUES == read_json(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("end", ["\n", " \t\r\n", "\n \n\n"])
def test_json_lines_are_streamed_as_a_list_is(tmp_path, monkeypatch, chunk, end):
    monkeypatch.setattr(files, "_CHUNK_CHARS", chunk)
    objects = [{"value": value, "é": [{}]} for value in VALUES]
    for last in ("", end):
        text = "\ufeff" + end.join(json.dumps(value) for value in objects) + last
        assert list(iter_json_list(write(tmp_path / "x.jsonl", text))) == objects


def test_a_key_twice_is_an_error_of_single_values_too(tmp_path):
    with pytest.raises(DataError, match=r"x\.json: expected JSON, found the key 'a' twice in an object"):
        read_json(write(tmp_path / "x.json", '{"b": {"a": 1, "c": 2, "a": 1}}'))


@pytest.mark.parametrize("text", ["[]", " [ ] ", "\ufeff[]"])
def test_empty_lists_and_byte_order_marks_are_read(tmp_path, text):
    path = write(tmp_path / "list.json", text)
    assert list(iter_json_list(path)) == read_json(path) == []


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1 column 1: expected a JSON list, or an object on each line, found an empty file"),
        ("1", "line 1 column 1: expected a JSON list, or an object on each line, found text starting '1'"),
        (
            '{"a":\n1}',
            "line 1 column 1: expected a JSON list, or an object on each line, found an object over several lines",
        ),
        ('{"a": 1}\n2', "line 2 column 1: expected an object on each line, found text starting '2'"),
        (
            '{"a": 1} {"b": 2}',
            "line 1 column 10: expected the end of the line after an object, found text starting '{'",
        ),
        ('{"a": 1}\n{"b": 2', "line 2 column 8: expected JSON, found Expecting ',' delimiter"),
        (
            '{"a": 1}\n\n{"b": 2, "c": [{"d": 1, "d": 1}]}',
            "line 3 column 1: expected JSON, found the key 'd' twice in an object",
        ),
        ('[{"a": 1},\n {"b": 2, "b": 2}]', "line 2 column 2: expected JSON, found the key 'b' twice in an object"),
        ("[1, 2", 'line 1 column 6: expected "," or "]" after a value, found the end of the file'),
        ("[1 2]", 'line 1 column 4: expected "," or "]" after a value, found \'2\''),
        ("[1,]", "line 1 column 4: expected JSON, found Expecting value"),
        ('[1,\n {"a": "b', "line 2 column 8: expected JSON, found Unterminated string starting at"),
        ('[1,\n {"a": tru}]', "line 2 column 8: expected JSON, found Expecting value"),
        ("[1]\n[2]", "line 2 column 1: expected the end of the file after the list, found text starting '['"),
    ],
)
def test_broken_lists_are_located_by_line_and_column(tmp_path, monkeypatch, text, complaint, chunk):
    monkeypatch.setattr(files, "_CHUNK_CHARS", chunk)
    path = write(tmp_path / "broken.json", text)
    with pytest.raises(DataError) as error:
        list(iter_json_list(path))
    assert str(error.value) == f"{path}, {complaint}"


@pytest.mark.parametrize("read", [read_json, lambda path: list(iter_json_list(path))])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[1, \xff]", "expected UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "Exceeds the limit"),
        (None, "expected a readable file, found No such file or directory"),
    ],
)
def test_unreadable_content_is_the_users_mistake(tmp_path, read, content, found):
    path = tmp_path / "input.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=found):
        read(path)


def test_truncated_json_names_line_and_column(tmp_path):
    path = write(tmp_path / "cut.json", '[\n {"question": "1+1"')
    with pytest.raises(DataError, match=r"cut\.json, line 2 column 20: expected JSON"):
        read_json(path)


def test_a_syntax_error_is_found_without_reading_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_CHARS", 100)
    path = write(tmp_path / "list.json", "[1, oops, " + "2, " * 1000 + "3]")
    with path.open() as file:
        cursor = files._ListReader(path, file)
        with pytest.raises(DataError, match="column 5"):
            list(cursor.values())
    assert len(cursor.window) <= 200


def test_the_window_does_not_grow_with_the_number_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_CHARS", 1000)
    path = tmp_path / "long.json"
    write_json_list(path, ({"index": i, "text": "x" * 50} for i in range(2000)))
    longest = 0
    with path.open() as file:
        cursor = files._ListReader(path, file)
        for _ in cursor.values():
            longest = max(longest, len(cursor.window))
    assert path.stat().st_size > 100_000
    assert longest < 3000


@pytest.mark.parametrize("values", [[], [1], VALUES])
def test_a_written_list_reads_back_equal_one_value_per_line(tmp_path, values):
    path = tmp_path / "list.json"
    assert write_json_list(path, iter(values)) == len(values)
    assert read_json(path) == values
    assert len(path.read_text().splitlines()) == (len(values) + 2 if values else 1)


def test_a_written_value_reads_back_equal_and_ends_in_a_newline(tmp_path):
    path = tmp_path / "value.json"
    write_json_atomic(path, {"é": VALUES})
    assert read_json(path) == {"é": VALUES}
    assert path.read_text().endswith("}\n")
    assert "é" in path.read_text()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "kept.json", "old")

    def values():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_json_list(path, values())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.json"]


def test_the_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new.json"
    with atomic_writer(path) as file:
        file.write("text")
        file.flush()
        assert not path.exists()
    assert path.read_text() == "text"
    assert os.listdir(tmp_path) == ["new.json"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    path = write(tmp_path / "kept.json", "old")
    with path.open() as reader:
        write_json_atomic(path, "new")
        assert reader.read() == "old"
    assert read_json(path) == "new"


def test_a_new_file_gets_ordinary_permissions(tmp_path):
    write_json_atomic(tmp_path / "atomic.json", 1)
    write(tmp_path / "plain.json", "1")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic.json", "plain.json")]
    assert modes[0] == modes[1]


def test_writing_through_a_link_keeps_the_link(tmp_path):
    target = write(tmp_path / "target.json", "old")
    (tmp_path / "link.json").symlink_to(target)
    write_json_atomic(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink()
    assert target.read_text() == "1\n"


@pytest.mark.parametrize("path", ["missing/out.json", "folder"])
def test_an_unwritable_place_is_named(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"{path}: expected a place that can be written to"):
        write_json_atomic(tmp_path / path, 1)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (None, []),
        (b"", []),
        (b"cut", []),
        (b"one\n", [b"one\n"]),
        (b"one\n\ncu", [b"one\n", b"\n"]),
        ("é\u2028\x85\nü\n".encode()[:-1], ["é\u2028\x85\n".encode()]),
    ],
)
def test_only_whole_lines_of_a_growing_file_count(tmp_path, content, lines):
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    assert whole_lines(tmp_path / "log") == lines


def test_a_growing_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="expected a readable file, found Is a directory"):
        whole_lines(tmp_path)


def test_what_killed_writers_left_of_one_file_is_removed(tmp_path):
    for name in (".a[1].json.01234567.tmp", ".a1.json.01234567.tmp", ".a[1].json.bak", "a[1].json"):
        write(tmp_path / name, "")
    remove_temporaries(tmp_path / "a[1].json")
    assert sorted(os.listdir(tmp_path)) == [".a1.json.01234567.tmp", ".a[1].json.bak", "a[1].json"]
