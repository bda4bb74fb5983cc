"""FSDP2 in CPU processes, through gloo: what one process trains, exactly resumed, with both networks in parts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError, ConfigError
from t3d.training import fsdp
from t3d.training.launch import make_accelerator
from t3d.training.loop import train
from tests.training.test_loop import SMALL_CHUNKS, assert_close, assert_equal, eight_samples, launch, metrics, single

__all__ = ["single"]

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}

PROBE = """
import json, math, sys
import torch
import t3d.training.forward as forward
from torch.distributed.tensor import DTensor
from safetensors.torch import load_file
from t3d.config import TrainConfig, load_config
from t3d.errors import UserError
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = Trainer(config, make_accelerator(config))
networks, rank = (trainer.student, trainer.reference), trainer.accelerator.process_index
true_values, largest = forward.row_values, []

def noted(*inputs):
    values = true_values(*inputs)
    largest.append(max(values[name].abs().max().item() for name in ("real_ratio", "fake_ratio")))
    return values

def precise():
    return {name: weight.full_tensor().clone() for name, weight in trainer.student.named_parameters()}

def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)

forward.row_values = noted
begun = precise()
found = {
    "in parts": [all(isinstance(weight, DTensor) for weight in network.parameters()) for network in networks],
    "held": [sum(weight.to_local().numel() for weight in network.parameters()) for network in networks],
    "whole": sum(weight.numel() for weight in trainer.student.parameters()),
    "weights": [str(next(network.parameters()).dtype) for network in networks],
    "exact": same(begun, load_file(config.model.pretrained_model + "/model.safetensors")),
    "frequencies": [str(buffer.dtype) for network in networks for buffer in network.buffers()],
    "plan": trainer._plan(),
    "largest": [],
}
for _ in range(3):
    trainer.train_step()
    found["largest"].append(max(largest))
    largest.clear()
before = precise()
found["moved"] = not same(before, begun)
list(trainer.student.parameters())[-1].register_post_accumulate_grad_hook(
    lambda weight: weight.grad.to_local().mul_(math.nan if rank == 1 else 1)
)
try:
    trainer.train_step()
except UserError as error:
    found["error"] = str(error)
found["unchanged"] = same(before, precise())
trainer.folder.joinpath(f"rank-{rank}.json").write_text(json.dumps(found))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_student_and_reference_are_in_parts_and_equal_where_they_should_be(
    checkpoint, trajectories, tmp_path, precision
):
    """Single-precision weights as they were loaded; log-ratios of exactly 0; a gradient that is none is refused."""
    script, folder = tmp_path / "probe.py", tmp_path / "run"
    script.write_text(PROBE)
    overrides = [f"training.mixed_precision={precision}", "training.batch_size_lm=2", "training.max_steps=4"]
    overrides += ["training.gradient_accumulation_steps=2", "training.fake_expectation=argmax"]
    overrides += ["training.gradient_checkpointing_enable=true"]
    told = launch(2, eight_samples(checkpoint, trajectories, folder, *overrides), script, **FSDP2)
    assert not told, told[-3000:]
    held = [0, 0]
    for rank in (0, 1):
        found = json.loads((folder / f"rank-{rank}.json").read_text())
        assert found["in parts"] == [True, True]
        held = [sum(parts) for parts in zip(held, found["held"], strict=True)]
        assert max(found["held"]) < 0.6 * found["whole"]
        assert found["weights"] == ["torch.float32", "torch.float32" if precision == "no" else "torch.bfloat16"]
        assert set(found["frequencies"]) == {"torch.float32"}
        assert found["exact"]
        assert "on cpu, FSDP2, " in found["plan"]
        assert [largest == 0 for largest in found["largest"]] == [True, False, True]
        assert found["moved"]
        assert "global step 4, samples [" in found["error"]
        assert "expected a finite gradient" in found["error"]
        assert found["unchanged"]
    assert held == [found["whole"]] * 2


@pytest.mark.slow
def test_processes_equal_one_however_many_resume(checkpoint, trajectories, tmp_path, single):
    """Packed, in chunks; bit for bit on as many processes, but for rounding on others, and never without FSDP2."""
    folder, script = tmp_path / "run", tmp_path / "chunks.py"
    script.write_text(SMALL_CHUNKS)
    batch = ["training.tokens_per_batch=150", "training.batch_size_lm=2", "training.global_batch_size=8"]
    settings = eight_samples(checkpoint, trajectories, folder, *batch)
    told = launch(2, settings, script, **FSDP2)
    assert not told, told[-3000:]
    whole = load_file(folder / "ckpt/optimized/model.safetensors")
    assert_close(single, whole, tolerance=1e-5)
    first = metrics(folder)
    assert first[0]["ratio/real"] == first[2]["ratio/real"] == 0
    reference = load_file(folder / "state/step-000003/reference.safetensors")
    for processes in (2, 4):
        shutil.rmtree(folder / "state/step-000003")
        told = launch(processes, [*settings, "experiment.resume_from=latest"], script, **FSDP2)
        assert not told, told[-3000:]
        again = load_file(folder / "ckpt/optimized/model.safetensors")
        assert_equal(reference, load_file(folder / "state/step-000003/reference.safetensors"))
        if processes == 2:
            assert_equal(whole, again)
        else:
            assert_close(whole, again, tolerance=1e-5)
    config = load_config(TrainConfig, [*settings, "experiment.resume_from=latest"], "", "")
    with pytest.raises(CheckpointError, match=r"a launch with FSDP2, as .*, found a launch without DeepSpeed or FSDP2"):
        train(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FSDP_VERSION", "1"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer"),
    ],
)
def test_a_launch_that_asks_for_another_fsdp_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{name}: expected .*1_node_8_gpus_fsdp2\.yaml\), found {value}"):
        fsdp.plugin_of("bf16")


def test_fp16_is_refused(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match=r"training\.mixed_precision: expected bf16 or no with FSDP2, found fp16"):
        fsdp.plugin_of("fp16")


def test_gradients_are_summed_in_single_precision_and_nothing_else_is_cast(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    policy = fsdp.plugin_of("bf16").mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert policy.output_dtype is None
    assert not policy.cast_forward_inputs


def test_fsdp_in_one_process_is_refused(monkeypatch):
    config = TrainConfig()
    config.training.mixed_precision = "no"
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"ACCELERATE_USE_FSDP: expected false, or .*, found a launch of type NO"):
        make_accelerator(config)
