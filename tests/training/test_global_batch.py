"""The batch is a fact of the experiment: the same samples per step on any number of processes, and after a resume."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t3d.config import TrainConfig, load_config
from t3d.config.training import TrainingConfig
from t3d.errors import ConfigError
from t3d.training.launch import make_accelerator
from t3d.training.schedule import accumulation_steps, samples_per_step
from tests.training.test_loop import ROOT, arguments, assert_close, assert_equal, launch, launch_two, metrics, run

EIGHT = ["training.global_batch_size=8", "training.batch_size_lm=2", "training.gradient_accumulation_steps=32"]
DDP = {"ACCELERATE_USE_CPU": "true"}


@pytest.mark.parametrize(("processes", "steps"), [(1, 256), (4, 64), (8, 32), (256, 1)])
def test_the_papers_batch_is_256_whatever_the_number_of_gpus(processes, steps):
    config = load_config(TrainConfig, [f"config={ROOT / 'configs/t3d.yaml'}"], "", "").training
    assert samples_per_step(config, processes) == 256
    assert accumulation_steps(config, processes) == steps


def test_without_it_the_batch_is_the_releases_product():
    config = TrainingConfig(batch_size_lm=2, gradient_accumulation_steps=32)
    assert [samples_per_step(config, processes) for processes in (1, 8)] == [64, 512]
    assert [accumulation_steps(config, processes) for processes in (1, 8)] == [32, 32]


def test_a_batch_that_processes_cannot_share_is_refused():
    config = TrainingConfig(global_batch_size=256, batch_size_lm=4)
    with pytest.raises(ConfigError) as caught:
        accumulation_steps(config, 3)
    assert str(caught.value) == (
        "training.global_batch_size: expected a multiple of 12 (training.batch_size_lm 4 x 3 processes), found 256"
    )


def test_the_launch_refuses_it_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="global_batch_size: expected a multiple of 4"):
        run(tmp_path / "no model", tmp_path / "no data", tmp_path / "run", "training.global_batch_size=6")
    assert not (tmp_path / "run").exists()


def test_accumulation_follows_from_it_and_the_start_says_so(checkpoint, trajectories, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plain = run(checkpoint, trajectories, tmp_path / "plain")  # 4 x 2
    given = run(checkpoint, trajectories, tmp_path / "given", *EIGHT, "training.batch_size_lm=4")
    assert_equal(plain, given)
    said = "20 samples, 8 per step (1 process(es) on cpu, no DeepSpeed, 2 micro-batch(es) of 4), 3 steps, 1.20 epochs"
    assert caplog.text.count(said) == 2
    assert "is not used" not in caplog.text
    run(checkpoint, trajectories, tmp_path / "other", "training.global_batch_size=4")
    assert "training.gradient_accumulation_steps = 2 is not used: global_batch_size decides" in caplog.text


def test_accelerate_divides_by_the_computed_accumulation(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "5")
    config = TrainConfig()
    config.training.mixed_precision, config.training.global_batch_size = "no", 12
    assert make_accelerator(config).gradient_accumulation_steps == 12


def cut(folder: Path, steps: int) -> None:
    """Leaves what a kill after `steps` of four steps would leave."""
    for step in range(steps + 1, 5):
        shutil.rmtree(folder / "state" / f"step-{step:06d}")
    shutil.rmtree(folder / "ckpt/optimized")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "ckpt/optimized/model.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_file_and_each_continues_the_other(checkpoint, trajectories, tmp_path):
    """Stopped at 2 of 4 steps with two processes and resumed with one, then the other way round."""
    settings = [*EIGHT, "training.max_steps=4", "optimizer.params.epsilon=1e-5"]
    one = run(checkpoint, trajectories, tmp_path / "one", *settings)
    assert not launch_two(arguments(checkpoint, trajectories, tmp_path / "two", *settings), **DDP)
    assert_close(one, weights(tmp_path / "two"), tolerance=1e-6)
    for name in ("one", "two"):
        cut(tmp_path / name, 2)
    resume = [*settings, "experiment.resume_from=latest"]
    run(checkpoint, trajectories, tmp_path / "two", *resume)
    assert not launch_two(arguments(checkpoint, trajectories, tmp_path / "one", *resume), **DDP)
    for name in ("one", "two"):
        assert_close(one, weights(tmp_path / name), tolerance=1e-6)
        assert [line["step"] for line in metrics(tmp_path / name)] == [1, 2, 3, 4]
        assert [line["epoch"] for line in metrics(tmp_path / name)] == [0.4, 0.8, 1.2, 1.6]


def test_another_batch_after_a_resume_is_refused_and_the_same_by_another_key_is_not(checkpoint, trajectories, tmp_path):
    four = ["training.max_steps=4"]
    whole = run(checkpoint, trajectories, tmp_path / "run", *four)
    cut(tmp_path / "run", 2)
    resume = [*four, "experiment.resume_from=latest"]
    for other in ("training.global_batch_size=16", "training.gradient_accumulation_steps=3"):
        with pytest.raises(ConfigError) as caught:
            run(checkpoint, trajectories, tmp_path / "run", *resume, other)
        message = (
            f"training.global_batch_size: expected 8 samples per step, as in the run to resume ({tmp_path / 'run'})"
        )
        assert str(caught.value).startswith(message)
    assert_equal(whole, run(checkpoint, trajectories, tmp_path / "run", *resume, "training.global_batch_size=8"))


@pytest.mark.slow
def test_a_state_that_deepspeed_cut_up_needs_as_many_processes_and_says_why(checkpoint, trajectories, tmp_path):
    settings = [*EIGHT, "training.max_steps=2"]
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}
    two = arguments(checkpoint, trajectories, tmp_path / "run", *settings)
    assert not launch_two(two, **deepspeed)
    state = tmp_path / "run/state/step-000002"
    told = launch(1, [*two, "experiment.resume_from=latest"], **deepspeed)
    assert f"error: {state}: expected the 2 process(es) that it was saved by: DeepSpeed cuts the optimizer's" in told
    told = launch(1, [*two, "experiment.resume_from=latest"], **DDP)
    assert f"error: {state}: expected a launch with DeepSpeed, as the one that saved it, found a launch without" in told
