"""Processes that stay for the next rollout, with the networks that they have."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t3d.errors import UserError
from t3d.rollout import worker
from t3d.rollout.job import make_job
from t3d.rollout.pool import Workers
from t3d.rollout.run import decode_job

OTHER = "rollout.denoising_steps_per_block=1"


@pytest.fixture
def decoded(settings, tmp_path) -> Callable[..., bytes]:
    """What some workers write, or nobody's."""

    def decode(workers: Workers | None, *overrides: str) -> bytes:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "rollouts.json"
        path.parent.mkdir()
        decode_job(make_job(settings(*overrides)), path, workers)
        return path.read_bytes()

    return decode


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """The models that this process loads."""
    found, load = [], worker._load
    monkeypatch.setattr(worker, "_load", lambda share: found.append(share.model) or load(share))
    return found


@pytest.mark.slow
def test_processes_stay_and_one_that_dies_between_rollouts_is_replaced(decoded):
    two = "rollout.num_workers=2"
    with Workers() as workers:
        assert decoded(workers, two) == decoded(None)
        first = [one.process.pid for one in workers._workers]
        assert decoded(workers, two, OTHER) == decoded(None, OTHER)
        assert [one.process.pid for one in workers._workers] == first
        workers._workers[1].process.kill()
        workers._workers[1].process.join()
        assert decoded(workers, two) == decoded(None)
        assert [one.process.pid == before for one, before in zip(workers._workers, first, strict=True)] == [True, False]
        processes = [one.process for one in workers._workers]
    assert not any(process.is_alive() for process in processes)


def test_a_network_is_loaded_once_for_rollouts_that_follow_each_other(decoded, loads):
    with Workers() as workers:
        assert decoded(workers) == decoded(None)
        loads.clear()
        assert decoded(workers, OTHER) == decoded(None, OTHER)
        assert len(loads) == 1, "nobody's own"


def test_new_weights_in_the_same_folder_are_loaded(decoded, loads, checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    own = f"evaluation.checkpoint_path={folder}"
    with Workers() as workers:
        before = decoded(workers, own)
        weights = load_file(folder / "model.safetensors")
        changed = {name: weight + torch.randn_like(weight) for name, weight in weights.items()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        after = decoded(workers, own)
    assert len(loads) == 2
    assert before != after == decoded(None, own)


def test_what_fails_leaves_no_network_of_another_model(decoded, loads, settings, monkeypatch, tmp_path):
    with Workers() as workers:
        decoded(workers)
        with monkeypatch.context() as patch:
            patch.setattr(worker, "_load", lambda share: (_ for _ in ()).throw(UserError("model", "one", "none")))
            with pytest.raises(UserError, match="model: expected one"):
                decoded(workers, "rollout.dtype=bfloat16")
        assert workers._own._networks is None
        assert decoded(workers) == decoded(None)
