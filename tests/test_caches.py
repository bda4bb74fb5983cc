"""What is kept under the cache root: listed, and pruned without touching what is in use."""

import os
import time
from pathlib import Path

import pytest

from t3d import caches
from t3d.caches import entries, main, prune
from t3d.errors import UserError
from t3d.storage.locks import mark_in_use

DAY_S = 24 * 60 * 60


def make(path: Path, days: float, size: int = 1000) -> Path:
    """A file of that age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    for place in (path, path.parent):
        os.utime(place, (time.time() - days * DAY_S,) * 2)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An old and a new data set, a lock, old kernels, and a stranger's file."""
    root = tmp_path / "cache"
    monkeypatch.setenv("T3D_CACHE_ROOT", str(root))
    monkeypatch.setattr(caches, "opened_files", set)
    make(root / "datasets/old.arrow", 90)
    make(root / "datasets/old.lock", 90, 0)
    make(root / "datasets/new.arrow", 3)
    make(root / "triton/kernel/code.so", 60)
    make(root / "mine.txt", 300)
    return root


def names(found: list[caches.Entry]) -> set[str]:
    return {entry.path.name for entry in found}


def test_every_entry_is_listed_with_size_and_age(root, capsys):
    main(["list"])
    *lines, total = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["0.0", "MB", "3", "days", "datasets/new.arrow"],
        ["0.0", "MB", "90", "days", "datasets/old.arrow"],
        ["0.0", "MB", "60", "days", "triton/kernel"],
    ]
    assert total.split() == ["0.0", "MB", "in", "3", "of", str(root)]
    assert sum(entry.size for entry in entries(root)) == 3000


def test_an_empty_root_is_an_empty_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("T3D_CACHE_ROOT", str(tmp_path / "none"))
    main(["list"])
    assert capsys.readouterr().out.split()[:2] == ["0.0", "MB"]
    assert not (tmp_path / "none").exists()


def test_nothing_is_removed_without_yes(root, capsys):
    main(["prune"])
    assert {"datasets/old.arrow", "triton/kernel"} <= set(capsys.readouterr().out.split())
    assert (root / "datasets/old.arrow").exists()
    assert (root / "triton/kernel").exists()


def test_what_was_not_used_for_long_goes_and_nothing_else(root, capsys):
    main(["prune", "--yes"])
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {"datasets/new.arrow", "datasets/old.lock", "mine.txt"}
    main(["prune", "--days", "1", "--yes"])
    assert not (root / "datasets/new.arrow").exists()


def test_training_data_in_use_stays(root):
    path = root / "datasets/old.arrow"
    found = entries(root)
    user = type("User", (), {})()
    mark_in_use(path, user)  # after it was listed
    assert names(prune(found, 30, remove=True)) == {"kernel"}
    assert {entry.path.name for entry in entries(root) if entry.in_use} == {"old.arrow"}
    del user
    assert names(prune(entries(root), 30, remove=True)) == {"old.arrow"}


def test_what_a_process_has_open_or_was_just_written_stays(root, monkeypatch):
    monkeypatch.undo()
    now = make(root / "inductor/building/code.py", 0)
    os.utime(now.parent, (0, 0))
    with (root / "triton/kernel/code.so").open("rb"):
        found = entries(root)
    assert {entry.path.name for entry in found if entry.in_use} == {"kernel", "building"}
    assert names(prune(found, 0, remove=False)) == {"old.arrow", "new.arrow"}


def test_the_action_must_be_named():
    with pytest.raises(UserError, match="list"):
        main(["empty"])
