"""What a node needs of DeepSpeed, in two CPU processes: exact weights, patience, sharded references, caught NaNs."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training.test_loop import (
    assert_equal,
    assert_validated_as_by_one_process,
    eight_samples,
    launch_two,
    metrics,
)
from tests.training.test_validation import MEASURED, without_validation

SHARDED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}


def computed(line: dict) -> dict:
    return {name: value for name, value in line.items() if not name.startswith(MEASURED)}


PROBE = """
import json, math, sys
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file
from t3d.config import TrainConfig, load_config
from t3d.errors import UserError
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = Trainer(config, make_accelerator(config))
rank, engine = trainer.accelerator.process_index, trainer.student

def precise():
    return {name: safe_get_full_fp32_param(weight).cpu() for name, weight in engine.module.named_parameters()}

def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)

def hours(group):
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 3600

begun = precise()
found = {
    "exact": same(begun, load_file(config.model.pretrained_model + "/model.safetensors")),
    "hours": [hours(torch.distributed.group.WORLD), hours(engine.seq_data_parallel_group)],
    "types": [str(dtype) for dtype in engine.get_data_types()],
}
trainer.train_step()
trainer.save(trainer.folder / "ckpt/step-000001")
before = precise()
if rank == 1:
    next(engine.parameters()).register_hook(lambda gradient: gradient * math.nan)
try:
    trainer.train_step()
except UserError as error:
    found["error"] = str(error)
found |= {"moved": not same(before, begun), "unchanged": same(before, precise())}
trainer.folder.joinpath(f"rank-{rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "asked", "summed"),
    [
        (1, "no", "auto", "float32"),
        (1, "bf16", "auto", "bfloat16"),
        (1, "bf16", "float32", "float32"),
        (2, "no", "auto", "float32"),
        (2, "bf16", "auto", "float32"),
        (2, "bf16", "bfloat16", "bfloat16"),
        (3, "no", "auto", "float32"),
        (3, "bf16", "auto", "float32"),
    ],
)
def test_deepspeed_begins_exactly_waits_for_hours_sums_as_asked_and_refuses_a_gradient_that_is_no_number(
    checkpoint, trajectories, tmp_path, stage, precision, asked, summed
):
    """Only the second process's gradient is none; both know, and neither has made the update."""
    script, folder = tmp_path / "probe.py", tmp_path / "run"
    script.write_text(PROBE)
    overrides = ["training.batch_size_lm=2", "training.gradient_accumulation_steps=2"]
    overrides += [f"training.mixed_precision={precision}", f"training.grad_accum_dtype={asked}"]
    settings = eight_samples(checkpoint, trajectories, folder, *overrides)
    told = launch_two(settings, script, ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage), **SHARDED)
    assert not told, told[-3000:]
    for rank in (0, 1):
        found = json.loads((folder / f"rank-{rank}.json").read_text())
        assert found["exact"], "a checkpoint more precise than the network is not rounded"
        assert found["hours"] == [4, 4]
        assert found["types"] == [f"torch.{'bfloat16' if precision == 'bf16' else 'float32'}", f"torch.{summed}"]
        assert "global step 2, samples [" in found["error"]
        assert "expected a finite gradient" in found["error"]
        assert "step-000001" in found["error"]
        assert found["moved"]
        assert found["unchanged"]


HALF = """
import json, math, sys
import torch
from deepspeed.accelerator import get_accelerator
get_accelerator().is_fp16_supported = lambda: True  # slowly
from t3d.config import TrainConfig, load_config, save_config
from t3d.errors import UserError
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = Trainer(config, make_accelerator(config))
rank, engine, spoil = trainer.accelerator.process_index, trainer.student, False
if rank == 1:
    next(engine.parameters()).register_hook(lambda gradient: gradient * math.inf if spoil else gradient)
found = []
for spoil in (False, True, False):
    before = [weight.detach().clone() for weight in engine.parameters()]
    metrics = trainer.train_step()
    same = all(torch.equal(old, new) for old, new in zip(before, engine.parameters()))
    found.append([metrics["step"], metrics["skipped_steps"], same])
trainer.save(trainer.folder / "ckpt/step-000003")
if rank == 0:
    save_config(config, trainer.folder / "config.yaml")
spoil = True
try:
    for _ in range(40):
        trainer.train_step()
except UserError as error:
    found.append(str(error))
trainer.folder.joinpath(f"rank-{rank}.json").write_text(json.dumps(found))
"""


RESUMED = """
import sys
from deepspeed.accelerator import get_accelerator
get_accelerator().is_fp16_supported = lambda: True
from t3d.config import TrainConfig, load_config
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = Trainer(config, make_accelerator(config))
rank = trainer.accelerator.process_index
trainer.folder.joinpath(f"resumed-{rank}.txt").write_text(f"{trainer.step} {trainer.skipped.count}")
"""


SHARES = """
import sys
from t3d.config import TrainConfig, load_config
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer

config = load_config(TrainConfig, sys.argv[1:], "", "")
accelerator = make_accelerator(config)
zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
zero["stage3_param_persistence_threshold"] = 0  # else weights as small as a test's stay whole
trainer = Trainer(config, accelerator)
reference = accelerator.unwrap_model(trainer.reference)
held = sum(weight.numel() for weight in reference.parameters())
assert (held == 0) == (config.training.shard_reference is None), held
trainer.run()
assert (sum(weight.numel() for weight in reference.parameters()) == 0) == (held == 0)
accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_sharded_reference_changes_no_bit_through_refresh_and_resume(
    checkpoint, trajectories, dataset, tmp_path, precision
):
    """And validation, which gathers divided weights, changes none: the run with a whole reference has none."""
    keys = ["validation.every=1", f"validation.dataset={dataset}", "validation.max_token=14"]
    script = tmp_path / "shares.py"
    script.write_text(SHARES)

    def run(name: str, *overrides: str) -> dict:
        overrides = (f"training.mixed_precision={precision}", "experiment.save_every_steps=1", *overrides)
        settings = eight_samples(checkpoint, trajectories, tmp_path / name, *overrides)
        told = launch_two(settings, script, ACCELERATE_DEEPSPEED_ZERO_STAGE="3", **SHARDED)
        assert not told, told[-3000:]
        return load_file(tmp_path / name / "ckpt/optimized/model.safetensors")

    whole, sharded = run("whole", "training.shard_reference=false"), run("sharded", *keys)
    assert_equal(whole, sharded)
    lines = [[computed(line) for line in without_validation(metrics(tmp_path / name))] for name in ("whole", "sharded")]
    assert lines[0] == lines[1]
    assert_validated_as_by_one_process(eight_samples(checkpoint, trajectories, tmp_path / "sharded", *keys))
    assert lines[0][1]["ratio/real"] != 0
    assert lines[0][0]["ratio/real"] == lines[0][2]["ratio/real"] == 0
    last = "state/step-000003/reference.safetensors"
    assert_equal(load_file(tmp_path / "whole" / last), load_file(tmp_path / "sharded" / last))
    for step in ("000002", "000003"):
        shutil.rmtree(tmp_path / "sharded/state" / f"step-{step}")
    where = "false" if precision == "bf16" else "null"  # either continues from either's state
    assert_equal(whole, run("sharded", *keys, "experiment.resume_from=latest", f"training.shard_reference={where}"))


SUMS = """
import sys
import torch
from deepspeed.utils import safe_get_full_fp32_param
from t3d.config import TrainConfig, load_config
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = Trainer(config, make_accelerator(config))
weights = dict(trainer.student.module.named_parameters())
exact = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
for name, weight in weights.items():
    def note(gradient, total=exact[name]):
        total += gradient

    weight.register_hook(note)
begun = {name: safe_get_full_fp32_param(weight).double() for name, weight in weights.items()}
trainer.train_step()
wrong = total = 0
for name, weight in weights.items():
    torch.distributed.all_reduce(exact[name])
    made = (begun[name] - safe_get_full_fp32_param(weight)) * trainer.accelerator.num_processes
    wrong += (made - exact[name]).square().sum().item()
    total += exact[name].square().sum().item()
if trainer.accelerator.is_main_process:
    trainer.folder.joinpath("error").write_text(str((wrong / total) ** 0.5))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_micro_batches_are_summed_more_exactly_in_single_precision(checkpoint, trajectories, tmp_path):
    """64 micro-batches of one sample against the sum of their gradients, read off a step as large as the gradient."""
    script, errors = tmp_path / "sums.py", {}
    script.write_text(SUMS)
    overrides = ["training.batch_size_lm=1", "training.gradient_accumulation_steps=64", "training.mixed_precision=bf16"]
    overrides += [
        "optimizer.params.epsilon=1e3",
        "optimizer.params.learning_rate=1e3",
        "lr_scheduler.params.warmup_steps=0",
    ]
    overrides += ["optimizer.params.weight_decay=0", "experiment.gradient_clipping=false"]
    for dtype in ("float32", "bfloat16"):
        settings = eight_samples(
            checkpoint, trajectories, tmp_path / dtype, *overrides, f"training.grad_accum_dtype={dtype}"
        )
        told = launch_two(settings, script, ACCELERATE_DEEPSPEED_ZERO_STAGE="2", **SHARDED)
        assert not told, told[-3000:]
        errors[dtype] = float((tmp_path / dtype / "error").read_text())
    assert errors["float32"] < 0.5 * errors["bfloat16"] < 0.05, errors


@pytest.mark.slow
def test_in_fp16_updates_that_overflow_are_left_out_and_counted(checkpoint, trajectories, tmp_path):
    """Across a resume too; a gradient that is no number at any scale ends the run."""
    script, folder = tmp_path / "half.py", Path(tmp_path / "run")
    script.write_text(HALF)
    overrides = ["training.mixed_precision=fp16", "experiment.resume_from=latest"]
    settings = eight_samples(checkpoint, trajectories, folder, *overrides)
    told = launch_two(settings, script, ACCELERATE_DEEPSPEED_ZERO_STAGE="2", **SHARDED)
    assert not told, told[-3000:]
    resumed = tmp_path / "resumed.py"
    resumed.write_text(RESUMED)
    told = launch_two(settings, resumed, ACCELERATE_DEEPSPEED_ZERO_STAGE="2", **SHARDED)
    assert not told, told[-3000:]
    for rank in (0, 1):
        *steps, error = json.loads((folder / f"rank-{rank}.json").read_text())
        assert steps == [[1, 0, False], [2, 1, True], [3, 1, False]]
        assert (folder / f"resumed-{rank}.txt").read_text() == "3 1"
        assert "expected a finite gradient" in error
