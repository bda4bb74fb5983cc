"""The wheel, as people install it: one command, its configurations and the toy teacher, from any folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from t3d.__main__ import COMMANDS, main
from t3d.commands.configs import names
from t3d.errors import UserError

ROOT = Path(__file__).parents[1]
SOURCES = ("t3d", "configs", "accelerate_configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources and installed into a folder; the dependencies are this venv's."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        ["wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)],
        ["install", "--no-deps", "--no-index", "--find-links", str(folder), "--target", str(folder / "site"), "t3d"],
    ):
        ended = subprocess.run([*pip, *command], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    return folder / "site"


def t3d(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(site / "bin" / "t3d"), *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_wheel_holds_code_configurations_and_teacher_and_nothing_else(site):
    (wheel,) = site.parent.glob("*.whl")
    packed = {path for path in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in path}
    expected = {f"t3d/{path.relative_to(ROOT)}" for name in ("configs", "accelerate_configs") for path in files(name)}
    expected |= {str(path.relative_to(ROOT)) for path in files("t3d") if path.suffix != ".sh"}
    assert packed == expected


def files(name: str) -> list[Path]:
    """The files under a folder of the repository, without what Python leaves there."""
    return [path for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_installed_command_works_in_another_folder(site, tmp_path):
    listed = t3d(site, tmp_path / "a", "--help")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == list(COMMANDS)
    known = t3d(site, tmp_path / "a", "configs", "accelerate_configs/cpu")
    assert known.stdout == f"{site}/t3d/accelerate_configs/cpu.yaml\n"
    problem = {"question": "A shop has 3 drawers of 6 caps and gets 5 more. How many caps does it have?"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.json").write_text(json.dumps([problem | {"ground_truth_answer": "23"}]))
    keys = ["config=toy/sdar_sample", "evaluation.eval_dataset=mine.json", "experiment.project=mine"]
    sampled = t3d(site, tmp_path / "b", "sample", *keys, "rollout.temperature=0")
    assert sampled.returncode == 0, sampled.stderr
    (record,) = json.loads((tmp_path / "b/mine/temp_data/outputs-eval-teacher-mine.json").read_text())
    assert record["extracted_output"] == ["23"]
    examined = t3d(site, tmp_path / "b", "doctor", *keys)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert str(site / "t3d/toy/teacher") in examined.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])  # which the command changes
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert "xample:" in page


def test_an_unknown_command_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"a command that `t3d --help` lists \(nearest: sample\), found sampel"):
        main(["sampel"])


def test_the_scripts_are_the_commands():
    scripts = {"sample/sdar_sample.py": "sample", "data/rename_key.py": "preprocess", "eval.py": "eval"}
    scripts |= {"train/self_ddo_sdar_full.py": "train", "data/download_data.py": "download"}
    for script, name in scripts.items():
        assert f"from {COMMANDS[name][0]} import main\n" in (ROOT / script).read_text()


def test_the_list_of_configurations_is_what_lies_there():
    assert {"eval", "toy/t3d", "tables/table1", "accelerate_configs/cpu"} <= set(names())
    assert len(names()) == sum(
        path.suffix == ".yaml" for name in ("configs", "accelerate_configs") for path in files(name)
    )
