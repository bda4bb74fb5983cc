"""What survives kills, full disks and damaged files: every checkpoint but the one being written."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError, DataError
from t3d.training.checkpoint import META, damage, saved_steps
from t3d.training.loop import train
from tests.launching import server

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "training.batch_size_lm=2",
    "training.gradient_accumulation_steps=2",
    "training.mixed_precision=no",
    "training.gradient_checkpointing_enable=false",
    "training.round_interval=3",
    "optimizer.params.learning_rate=1e-3",
    "experiment.save_every_steps=1",
]


def settings(checkpoint: Path, data: Path, folder: Path, *overrides: str) -> list[str]:
    paths = [
        f"model.pretrained_model={checkpoint}",
        f"dataset.optimization_data={data}",
        f"experiment.output_dir={folder}",
    ]
    return [*SETTINGS, *paths, *overrides]


def configure(*arguments: str) -> TrainConfig:
    return load_config(TrainConfig, list(arguments), "", "")


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def three_steps(checkpoint, trajectories, tmp_path):
    """Arguments of a run that has made its three steps, and its folder."""
    arguments = settings(checkpoint, trajectories, tmp_path / "run", "training.max_steps=3")
    train(configure(*arguments))
    return [*arguments, "experiment.resume_from=latest"], tmp_path / "run"


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(checkpoint, trajectories, tmp_path):
    """SIGKILL reaches real processes while they load, train, save and prune, and all that stays is whole."""
    num_steps = 100
    steps = [f"training.max_steps={num_steps}", "experiment.checkpoints_total_limit=2"]
    whole = train(configure(*settings(checkpoint, trajectories, tmp_path / "whole", *steps)))
    run = tmp_path / "killed"
    config = configure(*settings(checkpoint, trajectories, run, *steps, "experiment.resume_from=latest"))
    moments, reached = random.Random(0), []
    for _ in range(10):
        process = server.Process(target=train, args=(config,))
        process.start()
        # Some die while they load, the others a moment after a few more steps.
        target = max([0, *reached]) + moments.randint(0, 3)
        while max(saved_steps(run / "state"), default=0) < target and process.is_alive():
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.2))
        assert process.exitcode is None, "ended before it was killed"
        process.kill()
        process.join()
        reached.append(max(saved_steps(run / "state"), default=0))
        for state in saved_steps(run / "state").values():
            assert damage(state) is None
    last = server.Process(target=train, args=(config,))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert len(set(reached)) > 3, f"kills after {reached} steps say little"
    assert weights(run / "ckpt/optimized") == weights(whole)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, num_steps + 1))
    assert sorted(path.name for path in (run / "state").iterdir()) == ["step-000099", "step-000100"]
    assert sorted(path.name for path in (run / "ckpt").iterdir()) == ["optimized", "step-000098", "step-000099"]


def test_what_a_kill_leaves_half_written_is_never_picked_up(three_steps):
    arguments, run = three_steps
    final = weights(run / "ckpt/optimized")
    shutil.rmtree(run / "ckpt/optimized")
    shutil.rmtree(run / "ckpt/step-000002")
    (run / "state/step-000003").rename(run / "state/.step-000003.tmp")  # killed before the rename
    (run / "state/.step-000003.tmp" / META).unlink()
    (run / "state/step-000001").rename(run / "state/.step-000001.0a1b2c3d.old")  # killed while pruning
    (run / "ckpt/.optimized.0a1b2c3d.tmp").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    train(configure(*arguments))
    assert weights(run / "ckpt/optimized") == final
    assert [path.name for path in sorted((run / "state").iterdir())] == ["step-000002", "step-000003"]
    assert sorted(path.name for path in (run / "ckpt").iterdir()) == ["optimized", "step-000001"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_finished_run_is_left_as_it_is(three_steps):
    arguments, run = three_steps
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    train(configure(*arguments))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"?" * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "harm", "found"),
    [
        ("model.safetensors", truncate, "model.safetensors: "),
        ("model.safetensors", garble, "SafetensorError"),
        ("optimizer.bin", truncate, "optimizer.bin: "),
        ("optimizer.bin", garble, "Error: "),
        ("optimizer.bin", Path.unlink, "optimizer.bin missing"),
        ("reference.safetensors", garble, "SafetensorError"),
        ("random_states_0.pkl", Path.unlink, "random_states_0.pkl missing"),
        (META, garble, f"{META}: JSONDecodeError"),
        (META, lambda path: path.write_text("[1]"), f"{META}: TypeError"),
        (META, lambda path: path.write_text('{"files": {}}'), f"{META}: KeyError"),
        (META, Path.unlink, f"no {META}"),
    ],
)
def test_a_damaged_state_is_named_with_an_earlier_one_that_is_whole(three_steps, name, harm, found):
    arguments, run = three_steps
    final = weights(run / "ckpt/optimized")
    harm(run / "state/step-000003" / name)
    with pytest.raises(CheckpointError) as caught:
        train(configure(*arguments))
    message = str(caught.value)
    assert message.startswith(f"{run / 'state/step-000003'}: expected a whole training state")
    assert found in message.partition("found ")[2]
    assert f"(experiment.resume_from={run / 'state/step-000002'} is one)" in message
    train(configure(*arguments, f"experiment.resume_from={run / 'state/step-000002'}"))
    assert weights(run / "ckpt/optimized") == final
    assert damage(run / "state/step-000003") is None, "written again"


def test_a_damaged_earlier_state_is_not_recommended(three_steps):
    arguments, run = three_steps
    truncate(run / "state/step-000003/optimizer.bin")
    truncate(run / "state/step-000002/optimizer.bin")
    with pytest.raises(CheckpointError, match=r"resume_from=\S*/step-000001 is one"):
        train(configure(*arguments))
    (run / "state/step-000001/optimizer.bin").unlink()
    with pytest.raises(CheckpointError, match="there is no other one"):
        train(configure(*arguments))


@pytest.mark.parametrize("content", ["{", "", "- 1", "a: ${", "\udcff"])
def test_a_damaged_configuration_is_named(three_steps, content):
    arguments, run = three_steps
    (run / "config.yaml").write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=r"config\.yaml: expected the configuration of a training run"):
        train(configure(*arguments))


@pytest.mark.parametrize(("limit_bytes", "unsaved"), [(50_000, "ckpt/optimized"), (500_000, "state/step-000003")])
@pytest.mark.slow
def test_a_full_disk_is_one_error_and_the_state_before_stays(three_steps, limit_bytes, unsaved):
    """No file may grow beyond the limit: the student's weights do not fit, or only the optimizer's state."""
    arguments, run = three_steps
    shutil.rmtree(run / "state/step-000003")
    shutil.rmtree(run / "ckpt/optimized")
    before = weights(run / "state/step-000002")
    ended = subprocess.run(
        [sys.executable, str(ROOT / "train/self_ddo_sdar_full.py"), *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2, ended.stderr[-2000:]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {run / unsaved}: expected room to save")
    assert "Traceback" not in ended.stderr
    assert weights(run / "state/step-000002") == before
    assert damage(run / "state/step-000002") is None
    for parent in (run / "state", run / "ckpt"):
        assert not list(parent.glob(".*")), "nothing half-written stays"
    train(configure(*arguments))
    assert damage(run / "state/step-000003") is None
