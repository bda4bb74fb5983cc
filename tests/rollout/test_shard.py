import os
import subprocess
import sys
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.rollout import shard as shard_module
from t3d.rollout.shard import Shard, Shards
from t3d.trajectory import Trajectory

SETTINGS = {"seed": 0, "stop_ids": [1, 2]}


def trajectory(number: int) -> Trajectory:
    return Trajectory([1, 2], [number, 5], [1, 2], "length", 3, 2)


def fill(folder: Path, numbers: list[int], worker: int = 0, session: str = "a", pace: float = 0.5) -> Path:
    """Lets a worker store some responses, `pace` seconds apart."""
    path = Shards(folder / "out.json", SETTINGS).path(worker)
    with Shard(path, SETTINGS, session) as shard:
        for place, number in enumerate(numbers, 1):
            shard.add(number, trajectory(number), pace * place)
    return path


def read(folder: Path, fingerprint: dict = SETTINGS) -> Shards:
    shards = Shards(folder / "out.json", fingerprint)
    shards.read()
    return shards


def stored(folder: Path) -> dict[int, Trajectory]:
    shards = read(folder)
    return {number: shards[number] for number in range(10) if number in shards}


def test_what_was_added_is_there_although_nobody_closed_the_file(tmp_path):
    path = Shards(tmp_path / "deep" / "out.json", SETTINGS).path(0)
    with Shard(path, SETTINGS, "a") as shard:
        shard.add(3, trajectory(3), 0.5)
        assert stored(path.parent) == {3: trajectory(3)}


def test_all_workers_of_all_sessions_count(tmp_path):
    fill(tmp_path, [0, 2, 4], worker=0)
    fill(tmp_path, [1], worker=1)
    fill(tmp_path, [3], worker=0, session="b")
    assert stored(tmp_path) == {number: trajectory(number) for number in range(5)}


def test_seconds_are_those_of_the_longest_worker_of_each_session(tmp_path):
    fill(tmp_path, [0, 1, 2], worker=0, session="a", pace=1.0)
    fill(tmp_path, [3], worker=1, session="a", pace=5.0)
    fill(tmp_path, [4], worker=0, session="b", pace=0.25)
    assert read(tmp_path).seconds == 5.25


def test_failed_responses_are_counted_once(tmp_path):
    failed = Trajectory([1], [], [], "error", 1, 0, error="too long")
    for worker in range(2):
        with Shard(Shards(tmp_path / "out.json", SETTINGS).path(worker), SETTINGS, "a") as shard:
            shard.add(7, failed, 1.0)
    assert read(tmp_path).failed == 1
    assert stored(tmp_path) == {7: failed}


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_last_line_that_a_kill_cut_short_is_decoded_again(tmp_path, cut):
    path = fill(tmp_path, [0, 1, 2])
    whole = path.read_bytes()
    os.truncate(path, len(whole) - cut)
    assert stored(tmp_path) == {0: trajectory(0), 1: trajectory(1)}
    with Shard(path, SETTINGS, "a") as shard:
        shard.add(2, trajectory(2), 1.5)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("left", [0, 1, 20, None])
def test_a_shard_without_responses_is_begun_anew(tmp_path, left):
    path = Shards(tmp_path / "out.json", SETTINGS).path(0)
    with Shard(path, {"seed": 1}, "a"):
        pass
    os.truncate(path, path.stat().st_size if left is None else left)
    assert stored(tmp_path) == {}
    fill(tmp_path, [0])
    assert stored(tmp_path) == {0: trajectory(0)}


@pytest.mark.parametrize(
    ("now", "change"),
    [
        ({"seed": 1, "stop_ids": [1, 2]}, "seed was 0, is 1"),
        ({"seed": 0, "stop_ids": [1]}, "stop_ids was [1, 2], is [1]"),
        ({"seed": 0}, "stop_ids was [1, 2], is None"),
    ],
)
def test_other_settings_are_refused_by_name_and_leave_the_file_alone(tmp_path, now, change):
    path = fill(tmp_path, [0, 1])
    whole = path.read_bytes()
    with pytest.raises(DataError) as caught:
        read(tmp_path, now)
    assert str(caught.value) == (
        f"{path}: expected the settings of the interrupted run (rollout.resume=false starts over), found {change}"
    )
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, b"{}"),
        (1, b"[]"),
        (2, b"\x00\x00\x00"),
        (2, b'{"request": 0}'),
        (2, b'{"request": 0, "session": "a", "seconds": 1, "trajectory": {"prompt_ids": []}}'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, number, line):
    path = fill(tmp_path, [0, 1, 2])
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=f"partial-0.jsonl, line {number}: expected a line of this project"):
        read(tmp_path)


def test_two_processes_cannot_write_one_shard(tmp_path):
    path = fill(tmp_path, [0])
    whole = path.read_bytes()
    with Shard(path, SETTINGS, "a"), pytest.raises(DataError, match="expected no other process that decodes into it"):
        Shard(path, SETTINGS, "b")
    assert path.read_bytes() == whole


FILLING = """
import resource, sys
from pathlib import Path
from t3d.errors import DataError
from t3d.rollout.shard import Shard
from t3d.trajectory import Trajectory

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
stored = 0
try:
    with Shard(Path(sys.argv[1]), {"seed": 0, "stop_ids": [1, 2]}, "a") as shard:
        for number in range(1000):
            shard.add(number, Trajectory([1, 2], [number, 5], [1, 2], "length", 3, 2), 1.0)
            stored += 1
except DataError as error:
    print(stored, error)
"""


def test_a_file_that_cannot_grow_is_reported_and_keeps_what_was_stored(tmp_path):
    path = Shards(tmp_path / "out.json", SETTINGS).path(0)
    command = [sys.executable, "-c", FILLING, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    count, _, told = ended.stdout.partition(" ")
    assert told == f"{path}: expected room to write (the finished responses are kept), found File too large\n"
    assert ended.stderr == ""
    assert path.stat().st_size == 2000  # a part of the line that did not fit
    assert int(count) > 5
    assert stored(tmp_path) == {number: trajectory(number) for number in range(int(count)) if number < 10}
    fill(tmp_path, [999])
    assert 999 in read(tmp_path)


def test_a_disk_that_fails_to_sync_is_reported(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_module, "SYNC_SECONDS", -1.0)
    with Shard(tmp_path / "shard.jsonl", SETTINGS, "a") as shard:
        monkeypatch.setattr(shard_module.os, "fsync", refuse)
        with pytest.raises(DataError, match=r"expected room to write .*, found No space left on device"):
            shard.add(3, trajectory(3), 2.0)


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder that can be written to"):
        Shard(tmp_path / "file" / "shard.jsonl", SETTINGS, "a")


def test_only_this_rollouts_shards_are_read_and_removed(tmp_path):
    fill(tmp_path, [0], worker=0)
    fill(tmp_path, [1], worker=11)
    other = Shards(tmp_path / "out-2.json", SETTINGS).path(0)
    with Shard(other, SETTINGS, "a") as shard:
        shard.add(5, trajectory(5), 1.0)
    shards = read(tmp_path)
    assert [number for number in range(10) if number in shards] == [0, 1]
    shards.remove()
    assert list(tmp_path.iterdir()) == [other]
