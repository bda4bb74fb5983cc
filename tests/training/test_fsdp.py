"""FSDP2 in CPU processes, through gloo: what one process trains, exactly resumed, with both networks in parts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError, ConfigError
from t3d.sdar.checkpoint import load_model_config
from t3d.sdar.mixture import STACKED
from t3d.training import fsdp
from t3d.training.launch import make_accelerator
from t3d.training.loop import train
from t3d.training.memory import estimate_fsdp2
from tests.training.test_loop import (
    assert_close,
    assert_equal,
    assert_validated_as_by_one_process,
    eight_samples,
    launch,
    metrics,
    single,
)
from tests.training.test_mixture import mixture

__all__ = ["mixture", "single"]

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}

PROBE = """
import json, math, sys, warnings
import torch
warnings.simplefilter("error", UserWarning)
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

def noted(*inputs, **wanted):
    values = true_values(*inputs, **wanted)
    largest.append(max(values[name].abs().max().item() for name in ("real_ratio", "fake_ratio")))
    return values

def precise():
    return {name: weight.full_tensor().clone() for name, weight in trainer.student.named_parameters()}

def held(tensors):
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in tensors)

def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)

forward.row_values = noted
begun = precise()
found = {
    "in parts": [all(isinstance(weight, DTensor) for weight in network.parameters()) for network in networks],
    "bytes": {name: held(network.parameters()) for name, network in zip(("weights", "reference"), networks)},
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
moments = [state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
found["bytes"]["optimizer"] = held(moments)
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
@pytest.mark.parametrize("shard_reference", [True, False])
def test_in_bf16_both_are_in_parts_and_equal_where_they_should_be(checkpoint, trajectories, tmp_path, shard_reference):
    """Single-precision weights as they were loaded; log-ratios of exactly 0; a gradient that is none is refused."""
    script, folder = tmp_path / "probe.py", tmp_path / "run"
    script.write_text(PROBE)
    overrides = ["training.mixed_precision=bf16", "training.batch_size_lm=2", "training.max_steps=4"]
    overrides += ["training.gradient_accumulation_steps=2", "training.fake_expectation=argmax"]
    overrides += ["training.gradient_checkpointing_enable=true", f"training.shard_reference={shard_reference}"]
    given = eight_samples(checkpoint, trajectories, folder, *overrides)
    told = launch(2, given, script, **FSDP2)
    assert not told, told[-3000:]
    expected = estimate_fsdp2(load_config(TrainConfig, given, "", ""), load_model_config(checkpoint), 2)
    for rank in (0, 1):
        found = json.loads((folder / f"rank-{rank}.json").read_text())
        assert found["in parts"] == [True, shard_reference]
        for name, size in found["bytes"].items():
            assert size == pytest.approx(vars(expected)[name], rel=0.02), name
        assert set(found["frequencies"]) == {"torch.float32"}
        assert found["exact"]
        assert "on cpu, FSDP2, " in found["plan"]
        assert [largest == 0 for largest in found["largest"]] == [True, False, True]
        assert found["moved"]
        assert "global step 4, samples [" in found["error"]
        assert "expected a finite gradient" in found["error"]
        assert found["unchanged"]


RUNS = """
import json, shutil, sys
import torch
import t3d.training.forward
from t3d.config import TrainConfig, load_config
from t3d.training.loop import train

t3d.training.forward.CHUNK_BYTES = 4 * 20 * 1080  # 20 rows of TinyMath's vocabulary
for given in json.loads(sys.argv[1]):
    train(load_config(TrainConfig, [*given, *sys.argv[2:]], "", ""))
"""
"""Runs one after the other in the same processes, with the head in chunks."""

CLIPPED = ["training.max_grad_norm=0.1", "optimizer.params.epsilon=1e-5"]
EXPERTS = ["training.router_aux_weight=0.1", "optimizer.params.epsilon=1e-4", "optimizer.params.learning_rate=3e-4"]
RECOMPUTED = ["training.gradient_checkpointing_enable=true", "training.checkpoint_layers=1"]


@pytest.fixture(scope="module")
def given(checkpoint, mixture, trajectories, dataset, tmp_path_factory) -> dict[str, list[str]]:
    """Arguments of each run, by its folder's name."""
    folder = tmp_path_factory.mktemp("fsdp")
    packed = ["training.tokens_per_batch=150", "training.batch_size_lm=2", "training.global_batch_size=8", *RECOMPUTED]
    packed += ["validation.every=2", f"validation.dataset={dataset}", "validation.max_token=14"]
    one_each = ["training.batch_size_lm=1", "training.gradient_accumulation_steps=4"]
    asked = {
        "packed": (checkpoint, packed),
        "clipped": (checkpoint, [*CLIPPED, *one_each]),
        **({"experts": (mixture, [*EXPERTS, *RECOMPUTED, "training.batch_size_lm=4"])} if STACKED else {}),
    }
    return {
        name: eight_samples(source, trajectories, folder / name, *overrides)
        for name, (source, overrides) in asked.items()
    }


def launch_runs(processes: int, *runs: list[str], folder: Path) -> None:
    """Runs them in this order."""
    script = folder / "runs.py"
    script.write_text(RUNS)
    told = launch(processes, [json.dumps(runs)], script, **FSDP2)
    assert not told, told[-3000:]


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory) -> Path:
    """Folder of what two processes trained."""
    launch_runs(2, *given.values(), folder=tmp_path_factory.mktemp("script"))
    return folder_of(given["packed"]).parent


def folder_of(run: list[str]) -> Path:
    [place] = [argument.partition("=")[2] for argument in run if argument.startswith("experiment.output_dir=")]
    return Path(place)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "ckpt/optimized/model.safetensors")


@pytest.fixture
def alone(trajectories, tmp_path):
    """Trains in this process, all samples in one batch; returns the run's folder."""

    def fit(source: Path, *overrides: str) -> Path:
        settings = eight_samples(source, trajectories, tmp_path / "alone", "training.batch_size_lm=8", *overrides)
        train(load_config(TrainConfig, settings, "", ""))
        return tmp_path / "alone"

    return fit


@pytest.mark.slow
def test_two_processes_equal_one_packed_in_chunks_some_layers_recomputed(trained, given, single):
    """And what each validates of the problems is together what one process validates."""
    assert_close(single, weights_of(trained / "packed"), tolerance=1e-5)
    ratios = [line["ratio/real"] for line in metrics(trained / "packed")]
    assert [ratio == 0 for ratio in ratios] == [True, False, True]
    assert_validated_as_by_one_process(given["packed"])


@pytest.mark.slow
def test_one_sample_each_accumulated_and_clipped_equals_one_process_one_batch(trained, checkpoint, alone):
    folder = alone(checkpoint, *CLIPPED)
    assert_close(weights_of(folder), weights_of(trained / "clipped"), tolerance=1e-5)
    ours, theirs = ([line["grad_norm"] for line in metrics(place)] for place in (trained / "clipped", folder))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert min(ours) > 0.2, "clipping was at work"


@pytest.mark.slow
@pytest.mark.skipif(not STACKED, reason="several processes are refused: see test_mixture")
def test_a_mixture_of_experts_trains_as_in_one_process(trained, mixture, alone):
    ours = weights_of(trained / "experts")
    assert any("experts.5.down_proj" in name for name in ours)
    assert_close(weights_of(alone(mixture, *EXPERTS)), ours, tolerance=1e-5)


@pytest.mark.slow
def test_any_number_of_processes_resumes_and_none_without_fsdp2(trained, given, tmp_path):
    """Bit for bit on as many processes, but for rounding on others."""
    folder, again = trained / "packed", [*given["packed"], "experiment.resume_from=latest"]
    whole, reference = weights_of(folder), load_file(folder / "state/step-000003/reference.safetensors")
    for processes in (2, 4):
        shutil.rmtree(folder / "state/step-000003")
        launch_runs(processes, again, folder=tmp_path)
        assert_equal(reference, load_file(folder / "state/step-000003/reference.safetensors"))
        if processes == 2:
            assert_equal(whole, weights_of(folder))
        else:
            assert_close(whole, weights_of(folder), tolerance=1e-5)
    with pytest.raises(CheckpointError, match=r"a launch with FSDP2, as .*, found a launch without DeepSpeed or FSDP2"):
        train(load_config(TrainConfig, again, "", ""))


@pytest.fixture
def two_processes(monkeypatch) -> TrainConfig:
    """What a launch of two looks like; gives a configuration to train."""
    for name, value in {**FSDP2, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    return TrainConfig()


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
def test_a_launch_that_asks_for_another_fsdp_is_refused_by_name(two_processes, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{name}: expected .*1_node_8_gpus_fsdp2\.yaml\), found {value}"):
        make_accelerator(two_processes)


def test_fp16_is_refused(two_processes):
    two_processes.training.mixed_precision = "fp16"
    with pytest.raises(ConfigError, match=r"training\.mixed_precision: expected bf16 or no with FSDP2, found fp16"):
        make_accelerator(two_processes)


def test_an_adapter_is_refused(two_processes):
    two_processes.model.lora_rank = 8
    with pytest.raises(ConfigError, match=r"model\.lora_rank: expected 0 with FSDP2 \(adapters: .*\), found 8"):
        make_accelerator(two_processes)


def test_one_process_is_refused(two_processes, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match=r"ACCELERATE_USE_FSDP: expected false, or .*, found a launch of one process"):
        make_accelerator(two_processes)


def test_gradients_are_summed_in_single_precision_and_nothing_else_is_cast(two_processes):
    policy = fsdp.plugin_of(two_processes).mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert policy.output_dtype is None
    assert not policy.cast_forward_inputs
