import json
import os
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.rollout import shard as shard_module
from t3d.rollout.shard import Shard
from t3d.trajectory import Trajectory

SETTINGS = {"seed": 0, "stop_ids": [1, 2]}


def trajectory(number: int) -> Trajectory:
    return Trajectory([1, 2], [number, 5], [1, 2], "length", 3, 2)


@pytest.fixture(autouse=True)
def _close_shards(monkeypatch):
    """Closes the files that a test leaves open, as a killed process would."""
    opened, start = [], Shard.__init__

    def recording(self, *arguments, **options):
        opened.append(self)
        start(self, *arguments, **options)

    monkeypatch.setattr(Shard, "__init__", recording)
    yield
    for shard in opened:
        shard.close()


def filled(path: Path, count: int = 3) -> Shard:
    shard = Shard(path, SETTINGS, resume=True)
    for number in range(count):
        shard.add(number, trajectory(number), 0.5 * (number + 1))
    return shard


def test_a_reopened_shard_holds_what_was_added_without_being_closed(tmp_path):
    path = tmp_path / "deep" / "shard.jsonl"
    filled(path)
    again = Shard(path, SETTINGS, resume=True)
    assert again.finished == {number: trajectory(number) for number in range(3)}
    assert again.seconds == 1.5


def test_nothing_is_written_before_the_first_response(tmp_path):
    shard = Shard(tmp_path / "shard.jsonl", SETTINGS, resume=True)
    shard.close()
    assert list(tmp_path.iterdir()) == []
    shard.remove()


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_last_line_that_a_kill_cut_short_is_decoded_again(tmp_path, cut):
    path = tmp_path / "shard.jsonl"
    filled(path).close()
    whole = path.read_bytes()
    os.truncate(path, len(whole) - cut)
    again = Shard(path, SETTINGS, resume=True)
    assert again.finished == {0: trajectory(0), 1: trajectory(1)}
    again.add(2, trajectory(2), 1.5)
    again.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("left", [0, 1, 20])
def test_a_header_that_a_kill_cut_short_starts_over(tmp_path, left):
    path = tmp_path / "shard.jsonl"
    filled(path).close()
    os.truncate(path, left)
    assert Shard(path, {"seed": 1}, resume=True).finished == {}
    filled(path)
    assert len(Shard(path, SETTINGS, resume=True).finished) == 3


@pytest.mark.parametrize(
    ("now", "change"),
    [
        ({"seed": 1, "stop_ids": [1, 2]}, "seed was 0, is 1"),
        ({"seed": 0, "stop_ids": [1]}, "stop_ids was [1, 2], is [1]"),
        ({"seed": 0}, "stop_ids was [1, 2], is None"),
    ],
)
def test_other_settings_are_refused_by_name_and_leave_the_file_alone(tmp_path, now, change):
    path = tmp_path / "shard.jsonl"
    filled(path).close()
    whole = path.read_bytes()
    with pytest.raises(DataError) as caught:
        Shard(path, now, resume=True)
    assert str(caught.value) == (
        f"{path}: expected the settings of the interrupted run (rollout.resume=false starts over), found {change}"
    )
    assert path.read_bytes() == whole


def test_starting_over_drops_what_was_there(tmp_path):
    path = tmp_path / "shard.jsonl"
    filled(path).close()
    shard = Shard(path, {"seed": 1}, resume=False)
    assert shard.finished == {}
    assert len(path.read_bytes().splitlines()) == 4  # until the first response, nothing is lost
    shard.add(0, trajectory(0), 0.1)
    assert [json.loads(line)["fingerprint"] for line in path.read_bytes().splitlines()[:1]] == [{"seed": 1}]
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, b"{}"),
        (1, b"[]"),
        (2, b"\x00\x00\x00"),
        (2, b'{"request": 0}'),
        (2, b'{"request": 0, "seconds": 1, "trajectory": {"prompt_ids": []}}'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, number, line):
    path = tmp_path / "shard.jsonl"
    filled(path).close()
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=f"shard.jsonl, line {number}: expected a line of this project"):
        Shard(path, SETTINGS, resume=True)


def test_a_full_disk_is_reported_and_keeps_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "shard.jsonl"
    shard = filled(path)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_module, "SYNC_SECONDS", -1.0)
    monkeypatch.setattr(shard_module.os, "fsync", refuse)
    with pytest.raises(DataError, match=r"expected room to write .*, found No space left on device"):
        shard.add(3, trajectory(3), 2.0)
    assert len(Shard(path, SETTINGS, resume=True).finished) >= 3


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder that can be written to"):
        Shard(tmp_path / "file" / "shard.jsonl", SETTINGS, resume=True)


def test_the_file_goes_when_its_content_stands_elsewhere(tmp_path):
    filled(tmp_path / "shard.jsonl").remove()
    assert list(tmp_path.iterdir()) == []
