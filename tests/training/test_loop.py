"""The training loop: exact accumulation, bit-exact resume, real second processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError, ConfigError, DataError, UserError
from t3d.objectives.registry import OBJECTIVES
from t3d.sdar import SDARForCausalLM
from t3d.training.loop import train

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "training.max_steps=3",
    "training.batch_size_lm=4",
    "training.gradient_accumulation_steps=2",
    "training.mixed_precision=no",
    "training.gradient_checkpointing_enable=false",
    "training.round_interval=2",
    "optimizer.params.learning_rate=1e-3",
    "lr_scheduler.params.warmup_steps=2",
    "experiment.save_every_steps=1",
]


def run(source: Path, data: Path, folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Trains in this process and returns the student's weights."""
    config = load_config(TrainConfig, arguments(source, data, folder, *overrides), "", "")
    return load_file(train(config) / "model.safetensors")


def arguments(source: Path, data: Path, folder: Path, *overrides: str) -> list[str]:
    paths = [
        f"model.pretrained_model={source}",
        f"dataset.optimization_data={data}",
        f"experiment.output_dir={folder}",
    ]
    return [*SETTINGS, *paths, *overrides]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_its_checkpoint_loads(checkpoint, trajectories, tmp_path, objective):
    before = load_file(checkpoint / "model.safetensors")
    after = run(checkpoint, trajectories, tmp_path / "run", f"training.objective={objective}")
    assert any(not torch.equal(after[name], before[name]) for name in before)
    SDARForCausalLM.from_pretrained(tmp_path / "run/ckpt/optimized")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]


def test_metrics_hold_what_the_contract_names(checkpoint, trajectories, tmp_path):
    run(checkpoint, trajectories, tmp_path / "run")
    names = {"step", "epoch", "round", "lr", "grad_norm", "tokens_per_second", "ratio/real", "ratio/fake"}
    names |= {"real_token_share"} | {f"loss/{term}" for term in ("total", "ddo", "ddo_real", "ddo_fake", "path")}
    lines = metrics(tmp_path / "run")
    assert all(line.keys() == names for line in lines)
    assert [line["round"] for line in lines] == [0, 0, 1]
    assert lines[0]["lr"] == pytest.approx(0.5e-3)
    assert lines[1]["lr"] == pytest.approx(1e-3)


def test_log_ratios_are_exactly_zero_at_the_start_and_after_a_refresh(checkpoint, trajectories, tmp_path):
    run(checkpoint, trajectories, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert lines[0]["ratio/real"] == lines[0]["ratio/fake"] == 0
    assert lines[1]["ratio/real"] != 0
    assert lines[2]["ratio/real"] == lines[2]["ratio/fake"] == 0


def test_one_round_keeps_its_first_reference(checkpoint, trajectories, tmp_path):
    run(checkpoint, trajectories, tmp_path / "run", "training.multi_round=false")
    assert metrics(tmp_path / "run")[2]["ratio/real"] != 0


@pytest.mark.parametrize("objective", ["t3d", "sft"])
def test_accumulation_equals_one_large_batch(checkpoint, trajectories, tmp_path, objective):
    weights = [
        run(
            checkpoint,
            trajectories,
            tmp_path / f"{micro}",
            f"training.objective={objective}",
            f"training.batch_size_lm={micro}",
            f"training.gradient_accumulation_steps={8 // micro}",
            # Adam divides by the gradient's size: where that is rounding noise, the default epsilon makes it a step.
            "optimizer.params.epsilon=1e-5",
        )
        for micro in (1, 8)
    ]
    assert_close(*weights, tolerance=1e-6)


def test_gradient_checkpointing_changes_nothing(checkpoint, trajectories, tmp_path):
    plain = run(checkpoint, trajectories, tmp_path / "plain")
    saved = run(checkpoint, trajectories, tmp_path / "saved", "training.gradient_checkpointing_enable=true")
    assert_close(plain, saved, tolerance=1e-6)


def test_same_seed_same_weights_other_seed_other_weights(checkpoint, trajectories, tmp_path):
    first = run(checkpoint, trajectories, tmp_path / "1")
    assert_equal(first, run(checkpoint, trajectories, tmp_path / "2"))
    other = run(checkpoint, trajectories, tmp_path / "3", "training.seed=1")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_resumed_run_equals_uninterrupted_one_bit_for_bit(checkpoint, trajectories, tmp_path):
    whole = run(checkpoint, trajectories, tmp_path / "whole")
    run(checkpoint, trajectories, tmp_path / "cut")
    for step in ("000002", "000003"):  # as a kill after step 1 would leave it
        shutil.rmtree(tmp_path / "cut/state" / f"step-{step}")
    resumed = run(checkpoint, trajectories, tmp_path / "cut", "experiment.resume_from=latest")
    assert_equal(whole, resumed)
    assert [line["step"] for line in metrics(tmp_path / "cut")] == [1, 2, 3]


def test_checkpoints_beyond_the_limit_are_removed_oldest_first(checkpoint, trajectories, tmp_path):
    run(checkpoint, trajectories, tmp_path / "run", "experiment.checkpoints_total_limit=1")
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step-000003"]
    assert sorted(path.name for path in (tmp_path / "run/ckpt").iterdir()) == ["optimized", "step-000002"]


def test_a_new_run_never_overwrites_an_old_one(checkpoint, trajectories, tmp_path):
    run(checkpoint, trajectories, tmp_path / "run")
    with pytest.raises(ConfigError, match="resume_from=latest"):
        run(checkpoint, trajectories, tmp_path / "run")


def test_resuming_with_other_settings_is_refused_by_name(checkpoint, trajectories, tmp_path):
    run(checkpoint, trajectories, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"training\.beta"):
        run(checkpoint, trajectories, tmp_path / "run", "experiment.resume_from=latest", "training.beta=0.5")


def test_resuming_from_nothing_is_an_error(checkpoint, trajectories, tmp_path):
    with pytest.raises(CheckpointError, match="state"):
        run(checkpoint, trajectories, tmp_path / "run", f"experiment.resume_from={tmp_path}")


def test_loss_that_is_no_number_stops_with_step_and_samples(checkpoint, trajectories, tmp_path):
    with pytest.raises(UserError, match=r"global step \d, samples \[.*last good state"):
        run(checkpoint, trajectories, tmp_path / "run", "optimizer.params.learning_rate=1e30")


def test_long_prompts_are_left_out_with_their_step_maps(checkpoint, trajectories, tmp_path):
    records = json.loads(trajectories.read_text())
    longest = max(len(record["prompt_ids"]) for record in records)
    with pytest.raises(DataError, match="max_prompt_len"):
        run(checkpoint, trajectories, tmp_path / "run", "training.max_prompt_len=1")
    run(checkpoint, trajectories, tmp_path / "run2", f"training.max_prompt_len={longest - 1}")


def test_trace_objective_refuses_records_without_step_maps(checkpoint, answers, tmp_path):
    with pytest.raises(DataError, match="record 0"):
        run(checkpoint, answers, tmp_path / "run")
    run(checkpoint, answers, tmp_path / "sft", "training.objective=sft")


def eight_samples(checkpoint: Path, trajectories: Path, folder: Path, *overrides: str) -> list[str]:
    """Arguments of 8 samples per global step, without accumulation, with checkpoints at steps 2 and 3."""
    steps = ["training.gradient_accumulation_steps=1", "experiment.save_every_steps=2", "training.round_interval=2"]
    return arguments(checkpoint, trajectories, folder, *steps, *overrides)


def launch_two(arguments: list[str], port: int, **environment: str) -> None:
    """Runs the training script in two CPU processes, through torchrun and gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(ROOT / "train/self_ddo_sdar_full.py"), *arguments, "experiment.num_processes=2"]
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def single(checkpoint, trajectories, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights that one process ends with."""
    folder = tmp_path_factory.mktemp("single") / "run"
    settings = eight_samples(checkpoint, trajectories, folder, "training.batch_size_lm=8")
    return load_file(train(load_config(TrainConfig, settings, "", "")) / "model.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one(checkpoint, trajectories, tmp_path, single):
    launch_two(eight_samples(checkpoint, trajectories, tmp_path / "run"), 29613, ACCELERATE_USE_CPU="true")
    assert_close(single, load_file(tmp_path / "run/ckpt/optimized/model.safetensors"), tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_deepspeed_processes_equal_one(checkpoint, trajectories, tmp_path, single, stage):
    """Sharded by ZeRO: the same weights, and log-ratios of exactly 0 after the reference was refreshed."""
    folder = tmp_path / "run"
    launch_two(
        eight_samples(checkpoint, trajectories, folder),
        29620 + stage,
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage),
        ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true",
    )
    assert list((folder / "state/step-000003").glob("pytorch_model/*optim_states.pt")), "DeepSpeed was not used"
    assert_close(single, load_file(folder / "ckpt/optimized/model.safetensors"), tolerance=1e-5)
    ratios = [line["ratio/real"] for line in metrics(folder)]
    assert ratios[0] == ratios[2] == 0
    assert ratios[1] != 0
