from pathlib import Path

import pytest

from t3d.config import EvalConfig, TrainConfig, load_config
from t3d.errors import CheckpointError, ConfigError, DataError
from t3d.sdar.checkpoint import resolve_checkpoint
from t3d.storage.files import read_json
from t3d.storage.paths import (
    TOY_TEACHER,
    config_path,
    dataset_name,
    existing_path,
    find_data,
    find_data_files,
    model_name,
    model_path,
    user_path,
    workspace,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["sample", "data"])
def test_the_script_folders_work_in_the_folder_above_them(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    assert workspace() == tmp_path


def test_elsewhere_the_current_folder_is_the_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workspace() == tmp_path


def test_a_path_that_cannot_be_one_is_told_of():
    with pytest.raises(DataError, match=r"^x{200}: expected a path that this process may look at, found File name too"):
        existing_path("x" * 300)


def test_data_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    for folder in ("sample", "data"):
        (tmp_path / folder).mkdir()
    stored = tmp_path / "data" / "MATH500.json"
    stored.write_text("[]")
    monkeypatch.chdir(tmp_path)
    assert find_data("MATH500") == stored
    assert find_data("data/MATH500.json").samefile(stored)
    assert find_data(str(stored)) == stored
    monkeypatch.chdir(tmp_path / "sample")
    assert find_data("MATH500") == stored
    assert find_data("../data/MATH500.json").samefile(stored)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_data("~/data/MATH500.json") == stored


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.json").write_text("[]")
    (tmp_path / "x").write_text("[]")
    monkeypatch.chdir(tmp_path)
    assert find_data("x").name == "x"


def test_missing_data_name_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        find_data("MATH50")
    assert str(caught.value) == (
        f"MATH50: expected a data file, MATH50 or {tmp_path / 'data' / 'MATH50.json'} (or .jsonl), found none there"
    )


def test_a_missing_file_is_not_given_a_second_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"expected a data file, x.json or \S*/data/x.json, found none there$"):
        find_data("x.json")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("MATH500", "MATH500"),
        ("../data/MATH500.json", "MATH500"),
        ("MATH-v1.5", "MATH-v1.5"),
        ("a/v1.5.json", "v1.5"),
        ("a/v1.5.jsonl", "v1.5"),
    ],
)
def test_a_data_set_has_one_name_however_it_is_given(given, name):
    assert dataset_name(given) == name


def test_json_lines_are_found_by_name_after_json(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for suffix in (".jsonl", ".json"):
        (tmp_path / "data" / f"x{suffix}").write_text("[]")
        assert find_data("x") == tmp_path / "data" / f"x{suffix}"
    assert [path.name for path in find_data_files("data")] == ["x.json", "x.jsonl"]


def test_the_home_folder_has_its_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a/b") == tmp_path / "a" / "b"
    assert user_path("a/~") == Path("a/~")
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


def test_a_model_is_called_as_its_folder_is(tmp_path, monkeypatch):
    folder = tmp_path / "SDAR-1.7B" / "ckpt"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    names = [
        model_name(name) for name in (".", "./", "..", "../ckpt/", str(folder), "JetLM/SDAR-4B-Chat", "../../link")
    ]
    assert names == ["ckpt", "ckpt", "SDAR-1.7B", "ckpt", "ckpt", "SDAR-4B-Chat", "link"]


def test_a_relative_path_starts_at_the_working_folder_and_in_a_script_folder_at_the_one_above_too(
    tmp_path, monkeypatch
):
    for folder in ("sample", "models", "sample/here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    assert existing_path("models") == Path("models")
    monkeypatch.chdir(tmp_path / "sample")
    assert existing_path("models") == tmp_path / "models"
    assert existing_path("../models").samefile(tmp_path / "models")
    (tmp_path / "here").mkdir()
    assert existing_path("here") == Path("here"), "what is beside is not passed over"
    assert existing_path("none") == Path("none")
    monkeypatch.chdir(tmp_path / "models")
    assert existing_path("sample") == Path("sample"), "no other folder has a second start"


def test_errors_say_where_relative_paths_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = rf"\(relative paths start at the working folder, {tmp_path}\)"
    for path in ("../none/x", "x"):
        with pytest.raises(CheckpointError, match=start):
            resolve_checkpoint(path)
    with pytest.raises(DataError, match=start):
        find_data("../none/x.json")
    with pytest.raises(DataError, match=start):
        read_json(Path("none/x.json"))
    with pytest.raises(ConfigError, match=start):
        load_config(TrainConfig, ["config=none.yaml"], "", "")
    with pytest.raises(DataError) as caught:
        read_json(tmp_path / "x.json")
    assert "relative paths" not in str(caught.value)


@pytest.mark.parametrize("folder", [".", "sample"])
def test_the_toy_rollout_finds_its_model_from_the_root_and_from_sample(tmp_path, monkeypatch, folder):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root / folder)
    path = root / "configs/toy/sdar_sample.yaml"
    config = load_config(EvalConfig, [f"config={path}"], "", "")
    assert resolve_checkpoint(str(config.evaluation.checkpoint_path)).samefile(root / "t3d/toy/teacher")


@pytest.mark.parametrize("name", ["toy/eval", "toy/eval.yaml", "configs/toy/eval", "configs/toy/eval.yaml"])
def test_a_configuration_that_comes_with_t3d_is_found_by_name_from_everywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert config_path(name) == ROOT / "configs/toy/eval.yaml"
    (tmp_path / "toy").mkdir()  # a folder of that name is no file
    (tmp_path / "eval").mkdir()
    assert config_path(name) == ROOT / "configs/toy/eval.yaml"
    assert config_path("accelerate_configs/cpu") == ROOT / "accelerate_configs/cpu.yaml"


def test_a_file_of_the_users_wins_over_one_that_comes_with_t3d(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval.yaml").touch()
    assert config_path("eval.yaml") == Path("eval.yaml")
    assert config_path("eval") == ROOT / "configs/eval.yaml"
    assert config_path("eval.yaml", tmp_path) == tmp_path / "eval.yaml"


@pytest.mark.parametrize("name", ["nowhere", "../configs/eval.yaml", "configs", "configs/../README.md"])
def test_what_is_neither_is_refused_with_the_rule(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        config_path(name)
    rule = f"relative paths start at the working folder, {tmp_path}), nor one that comes with t3d (`t3d configs` lists"
    assert f": expected a YAML file, found none there ({rule}" in str(caught.value)


def test_the_toy_teacher_has_its_name_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_path(TOY_TEACHER) == ROOT / "t3d/toy/teacher"
    assert resolve_checkpoint(TOY_TEACHER) == ROOT / "t3d/toy/teacher"
    (tmp_path / TOY_TEACHER).mkdir(parents=True)
    assert model_path(TOY_TEACHER) == Path(TOY_TEACHER)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_checkpoint("t3d/toy/student")
