import re
import subprocess
from pathlib import Path

from t3d.evaluation import environment as module
from t3d.evaluation.environment import environment, git_commit


def repository(folder: Path, monkeypatch) -> None:
    """Makes `folder` a checkout with one commit, and this module a file of it."""
    (folder / "a").write_text("a")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "a"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    monkeypatch.setattr(module, "__file__", str(folder / "t3d" / "evaluation" / "environment.py"))


def test_a_checkout_is_named_by_its_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    repository(tmp_path, monkeypatch)
    assert re.fullmatch("[0-9a-f]{40}", git_commit())
    (tmp_path / "a").write_text("b")
    assert re.fullmatch("[0-9a-f]{40}-dirty", git_commit())


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    """Not even where it lies inside the checkout of something else."""
    repository(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "venv" / "t3d" / "evaluation" / "environment.py"))
    assert git_commit() is None
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert environment()["git_commit"] is None


def test_versions_and_device_are_told():
    told = environment()
    assert re.match(r"\d+\.\d+", told["torch"])
    assert told["device"]
    assert told["threads"] >= 1
