import errno
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.storage.experiments import claim_run, method_folder, new_run, newest_checkpoint, recorded, run_config, runs


@pytest.fixture
def method(monkeypatch, tmp_path) -> Path:
    """The folder of a method, without a run."""
    monkeypatch.chdir(tmp_path)
    folder = method_folder("SDAR-4B-Chat", "math", "t3d")
    folder.mkdir(parents=True)
    return folder


def test_folders_follow_from_model_kind_and_method(method):
    assert method == Path("experiments/SDAR-4B-Chat/math/t3d")
    run = new_run(method)
    run.mkdir()
    (method / "notes").mkdir()
    assert run.parent == method
    assert runs(method) == [method, run]


def test_a_run_that_cannot_begin_is_told_of(method, monkeypatch):
    def refuse(folder: Path, *arguments, **named) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr("t3d.storage.experiments.make_folder", lambda folder: folder)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match="expected a folder that can be made, found Read-only file system"):
        claim_run(method)


def test_a_checkpoint_of_a_method_is_that_of_its_newest_finished_run(method):
    for run, name in (
        ("20260101-000000", "optimized"),
        ("20260102-000000", "optimized"),
        ("20260103-000000", "step-9"),
    ):
        (method / run / "ckpt" / name).mkdir(parents=True)
    (method / "zz" / "ckpt" / "optimized").mkdir(parents=True)  # no timestamp: somebody's copy
    assert newest_checkpoint(f"{method}/ckpt/optimized") == f"{method}/20260102-000000/ckpt/optimized"


def test_a_run_without_a_timestamp_is_meant_by_its_own_name(method):
    (method / "ckpt" / "optimized").mkdir(parents=True)
    (method / "20260102-000000" / "ckpt" / "optimized").mkdir(parents=True)
    assert newest_checkpoint(f"{method}/ckpt/optimized") == f"{method}/ckpt/optimized"


@pytest.mark.parametrize("name", ["JetLM/SDAR-4B-Chat", "a/folder", "experiments/x/ckpt/optimized"])
def test_other_names_stay_as_they_are(name):
    assert newest_checkpoint(name) == name


class TestRunConfig:
    @pytest.fixture
    def checkpoint(self, tmp_path) -> Path:
        folder = tmp_path / "run" / "ckpt" / "optimized"
        folder.mkdir(parents=True)
        return folder

    def test_it_is_read_beside_the_checkpoints(self, checkpoint, tmp_path):
        assert run_config(str(checkpoint)) is None
        (tmp_path / "run" / "config.yaml").write_text("dataset: {data_type: math}")
        source, values = run_config(str(checkpoint)) or (None, {})
        assert source == tmp_path / "run" / "config.yaml"
        assert recorded(values, "dataset.data_type") == "math"
        assert recorded(values, "dataset.nothing") is recorded(values, "dataset.data_type.deep") is None

    def test_a_model_of_another_origin_has_none(self, tmp_path):
        (tmp_path / "config.yaml").write_text("a: 1")
        assert run_config(str(tmp_path / "models" / "x")) is None

    @pytest.mark.parametrize("text", ["a: [", "- a", "\x00"])
    def test_another_file_is_refused(self, checkpoint, tmp_path, text):
        (tmp_path / "run" / "config.yaml").write_text(text)
        with pytest.raises(DataError, match="expected the configuration of a training run, found "):
            run_config(str(checkpoint))


def test_the_home_folder_is_found_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "t3d" / "20260101-000000"
    (run / "ckpt" / "optimized").mkdir(parents=True)
    (run / "config.yaml").write_text("a: 1")
    assert newest_checkpoint("~/t3d/ckpt/optimized") == str(run / "ckpt" / "optimized")
    assert run_config("~/t3d/20260101-000000/ckpt/optimized") == (run / "config.yaml", {"a": 1})


def test_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path):
    first, second = claim_run(tmp_path / "method"), claim_run(tmp_path / "method")
    assert first != second
    assert runs(tmp_path / "method")[1:] == [first, second]
