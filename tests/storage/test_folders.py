import errno
import os
import shutil
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.storage.folders import atomic_folder, make_folder, remove_folder, remove_leftovers


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_with_its_content_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "target"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("new")
        assert not target.exists()
        assert folder.parent == target.parent
    assert contents(tmp_path) == {"deep/target/sub/a": "new"}


def test_an_older_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target) as folder:
        (folder / "a").write_text("new")
        assert contents(target) == {"old": "old"}
    assert contents(tmp_path) == {"target/a": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path):
    """As safetensors leaves its files, nobody else could."""
    with atomic_folder(tmp_path / "target") as folder:
        folder.chmod(0o755)
        for name, mode in (("private", 0o600), ("shared", 0o664)):
            (folder / name).touch()
            (folder / name).chmod(mode)
    assert (tmp_path / "target/private").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "target/shared").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("old")

    def interrupted() -> None:
        with atomic_folder(target) as folder:
            (folder / "a").write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == {"target/old": "old"}
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_of_a_first_write_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with atomic_folder(tmp_path / "target") as folder:
            (folder / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_with_their_parents_once(tmp_path):
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == make_folder(folder) == folder
    assert folder.is_dir()


def test_a_folder_below_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="expected a folder that can be written to, found "):
            make_folder(folder)


def test_an_old_folder_that_is_held_back_harms_no_new_one(tmp_path, monkeypatch, caplog):
    """As on NFS, where a file that another process has open stays under another name."""
    target, remove = tmp_path / "target", shutil.rmtree
    target.mkdir()

    def held_back(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(shutil, "rmtree", held_back)
    with atomic_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "new"
    assert "cannot be removed yet (Directory not empty)" in caplog.text
    remove_leftovers(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", remove)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_removing_takes_the_folder_and_nothing_beside_it(tmp_path):
    for name in ("gone", "kept"):
        (tmp_path / name / "deep").mkdir(parents=True)
    remove_folder(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_leftovers_of_killed_writers_and_removers_go(tmp_path):
    for name in (".a.0f0f0f0f.tmp", ".b.0f0f0f0f.old", ".step-000001.tmp", ".cache", "a.tmp"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / ".c.tmp").write_text("a file")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.tmp", ".cache", "a.tmp"]
    remove_leftovers(tmp_path / "missing")
