"""The training loop: exact accumulation, bit-exact resume, real second processes."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError, ConfigError, DataError, DeviceFullError, UserError
from t3d.objectives.registry import OBJECTIVES
from t3d.sdar import SDARForCausalLM
from t3d.sdar.checkpoint import load_model
from t3d.sdar.opening import open_checkpoint
from t3d.storage.experiments import newest_checkpoint
from t3d.training.forward import batch_losses
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer, train
from t3d.training.meter import Meter
from t3d.training.validation import Validation
from tests import launching

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train/self_ddo_sdar_full.py"
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
    names |= {"mfu", "peak_memory_gib"}
    names |= {f"seconds/{part}" for part in ("step", "data", "student", "reference", "backward", "update")}
    names |= {"real_token_share"} | {f"loss/{term}" for term in ("total", "ddo", "ddo_real", "ddo_fake", "path")}
    lines = metrics(tmp_path / "run")
    assert all(line.keys() == names for line in lines)
    assert [line["round"] for line in lines] == [0, 0, 1]
    assert lines[0]["lr"] == pytest.approx(0.5e-3)
    assert lines[1]["lr"] == pytest.approx(1e-3)
    for line in lines:
        parts = sum(seconds for name, seconds in line.items() if name.startswith("seconds/"))
        assert line["seconds/step"] < parts <= 2 * line["seconds/step"]
        assert 0.05 < line["peak_memory_gib"] < 100
        assert line["mfu"] is None, "nobody knows what this processor can do"


def test_what_the_device_can_do_may_be_said_when_a_run_goes_on(checkpoint, trajectories, tmp_path):
    whole = run(checkpoint, trajectories, tmp_path / "run")
    for step in ("ckpt/step-000002", "ckpt/optimized", "state/step-000003"):
        shutil.rmtree(tmp_path / "run" / step)
    again = ("experiment.resume_from=latest", "training.device_peak_tflops=1.0")
    assert_equal(run(checkpoint, trajectories, tmp_path / "run", *again), whole)
    found = [line["mfu"] for line in metrics(tmp_path / "run")]
    assert found[:2] == [None, None]
    assert 0 < found[2] < 1


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


@pytest.mark.parametrize("objective", ["t3d", "sft"])
def test_packing_by_tokens_changes_no_weight(checkpoint, trajectories, tmp_path, objective):
    """Neither how many samples share a forward nor how many forwards a step has, from one sample each to all in one."""
    weights = [
        run(
            checkpoint,
            trajectories,
            tmp_path / f"{budget}",
            f"training.objective={objective}",
            f"training.tokens_per_batch={budget}",
            "optimizer.params.epsilon=1e-5",
        )
        for budget in (1, 300, "null", 10_000)
    ]
    for others in weights[1:]:
        assert_close(weights[0], others, tolerance=1e-6)
    assert metrics(tmp_path / "300")[0]["real_token_share"] > 0.9


@pytest.fixture
def other_precision():
    """Lets a second Accelerator of this process compute in another precision than the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("overrides", [[], ["training.gradient_checkpointing_enable=true"]])
def test_bf16_keeps_weights_in_single_precision_and_stays_near_them(checkpoint, trajectories, tmp_path, overrides):
    exact = run(checkpoint, trajectories, tmp_path / "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    half = run(checkpoint, trajectories, tmp_path / "bf16", "training.mixed_precision=bf16", *overrides)
    assert all(weight.dtype == torch.float32 for weight in half.values())
    assert_close(exact, half, tolerance=1e-2)
    assert any(not torch.equal(weight, half[name]) for name, weight in exact.items())
    losses = [[line["loss/total"] for line in metrics(tmp_path / name)] for name in ("no", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert metrics(tmp_path / "bf16")[0]["ratio/real"] == 0, "both models compute in the same precision"


def test_gradient_checkpointing_changes_nothing(checkpoint, trajectories, tmp_path):
    plain = run(checkpoint, trajectories, tmp_path / "plain")
    saved = run(checkpoint, trajectories, tmp_path / "saved", "training.gradient_checkpointing_enable=true")
    assert_close(plain, saved, tolerance=1e-6)


def test_same_seed_same_weights_other_seed_other_weights(checkpoint, trajectories, tmp_path):
    first = run(checkpoint, trajectories, tmp_path / "1")
    assert_equal(first, run(checkpoint, trajectories, tmp_path / "2"))
    other = run(checkpoint, trajectories, tmp_path / "3", "training.seed=1")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_resumed_run_equals_uninterrupted_one_bit_for_bit(checkpoint, trajectories, tmp_path, caplog):
    caplog.set_level("INFO", logger="t3d")
    whole = run(checkpoint, trajectories, tmp_path / "whole")
    run(checkpoint, trajectories, tmp_path / "cut")
    for step in ("000002", "000003"):  # as a kill after step 1 would leave it
        shutil.rmtree(tmp_path / "cut/state" / f"step-{step}")
    resumed = run(checkpoint, trajectories, tmp_path / "cut", "experiment.resume_from=latest")
    assert_equal(whole, resumed)
    assert [line["step"] for line in metrics(tmp_path / "cut")] == [1, 2, 3]
    assert f"resumed from {tmp_path / 'cut/state/step-000001'}, step 1 of 3" in caplog.messages
    assert sum(message.startswith("resumed") for message in caplog.messages) == 1


def test_a_finished_run_says_so_and_how_to_train_longer(checkpoint, trajectories, tmp_path, caplog):
    folder = tmp_path / "run"
    run(checkpoint, trajectories, folder)
    how = (
        f"to train longer: model.pretrained_model={folder / 'ckpt/optimized'} dataset.optimization_data={trajectories},"
        " a new experiment.output_dir and no experiment.resume_from"
    )
    again = ["experiment.resume_from=latest"]
    caplog.set_level("INFO", logger="t3d")
    run(checkpoint, trajectories, folder, *again)
    assert f"{folder} is finished (step 3 of 3); {how}" in caplog.messages
    for key, found in (("training.max_steps=9", 9), ("training.max_steps=null", "null")):
        with pytest.raises(ConfigError) as caught:
            run(checkpoint, trajectories, folder, *again, key)
        expected = f"training.max_steps: expected 3, as in the run to resume ({folder}); {how}, found {found}"
        assert str(caught.value) == expected
    shutil.rmtree(folder / "ckpt")
    with pytest.raises(ConfigError, match="to train longer, let it end first"):
        run(checkpoint, trajectories, folder, *again, "training.num_train_epochs=31")


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


@pytest.fixture
def stopped(checkpoint, trajectories, tmp_path):
    """A run of 4 steps stopped after 2, whose weights and data may be changed in place; gives a way to resume it."""
    source, data, folder = tmp_path / "teacher", tmp_path / "data.json", tmp_path / "run"
    shutil.copytree(checkpoint, source)
    shutil.copyfile(trajectories, data)
    run(source, data, folder, "training.max_steps=4")
    for step in ("000003", "000004"):
        shutil.rmtree(folder / "state" / f"step-{step}")

    def resume(*overrides: str) -> dict[str, torch.Tensor]:
        return run(source, data, folder, "training.max_steps=4", "experiment.resume_from=latest", *overrides)

    return resume


def assert_unchanged(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["step-000001", "step-000002"]
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]


def test_other_records_under_the_same_path_are_refused(stopped, tmp_path):
    data = tmp_path / "data.json"
    data.write_text(json.dumps(json.loads(data.read_text())[::-1]))
    with pytest.raises(ConfigError) as caught:
        stopped()
    assert str(caught.value) == (
        f"dataset.optimization_data: expected the content that it had in the run to resume ({tmp_path / 'run'}),"
        " found another under the same path"
    )
    assert_unchanged(tmp_path / "run")


def test_other_weights_under_the_same_path_are_refused(stopped, tmp_path):
    path = tmp_path / "teacher/model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.pretrained_model: expected the content that it had"):
        stopped()
    assert_unchanged(tmp_path / "run")


@pytest.mark.parametrize("key", ["experiment.gradient_clipping=false", "training.max_grad_norm=0"])
def test_so_is_clipping_turned_off(stopped, tmp_path, key):
    with pytest.raises(ConfigError, match=key.partition("=")[0]):
        stopped(key)
    assert_unchanged(tmp_path / "run")


def test_what_changes_no_weight_may_change(stopped, tmp_path):
    changed = ["experiment.save_every_steps=3", "experiment.project=other", "experiment.trackers=[]", "wandb.entity=me"]
    stopped(*changed, "training.shard_reference=false")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_from_before_a_key_was_there_resumes_with_its_default_alone(stopped, tmp_path):
    path = tmp_path / "run/config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "lora_rank" not in line))
    with pytest.raises(ConfigError, match=r"model\.lora_rank: expected 0, as in the run to resume .*, found 4"):
        stopped("model.lora_rank=4")
    stopped()


def test_a_run_from_before_inputs_were_recorded_resumes_with_a_warning(stopped, tmp_path, caplog):
    recorded = tmp_path / "run/inputs.json"
    content = recorded.read_text()
    recorded.unlink()
    stopped()
    assert "its weights and data are taken to be unchanged" in caplog.text
    assert recorded.read_text() == content


@pytest.mark.parametrize("off", ["training.max_grad_norm=0", "experiment.gradient_clipping=false"])
def test_clipping_that_is_off_leaves_gradients_as_they_are(checkpoint, trajectories, tmp_path, off):
    loose = run(checkpoint, trajectories, tmp_path / "loose", "training.max_grad_norm=1e9")
    assert_equal(loose, run(checkpoint, trajectories, tmp_path / "off", off))
    before = load_file(checkpoint / "model.safetensors")
    assert any(not torch.equal(loose[name], before[name]) for name in before)


def test_a_run_in_the_home_folder_is_found_again(checkpoint, trajectories, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run(checkpoint, trajectories, Path("~/run"), "training.max_steps=2")
    shutil.rmtree(tmp_path / "run/state/step-000002")
    run(checkpoint, trajectories, Path("~/run"), "training.max_steps=2", "experiment.resume_from=~/run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_resuming_from_nothing_is_an_error(checkpoint, trajectories, tmp_path):
    with pytest.raises(CheckpointError, match="state"):
        run(checkpoint, trajectories, tmp_path / "run", f"experiment.resume_from={tmp_path}")


def poisoned_trainer(checkpoint: Path, data: Path, folder: Path, *overrides: str) -> Trainer:
    """A trainer after its first step, with an embedding that is no number."""
    config = load_config(TrainConfig, arguments(checkpoint, data, folder, *overrides), "", "")
    trainer = Trainer(config, make_accelerator(config))
    trainer.train_step()
    trainer.save(folder / "ckpt/step-000001")
    with torch.no_grad():
        trainer.student.model.embed_tokens.weight[trainer.samples[0].response_ids[0]] = math.nan
    return trainer


@pytest.mark.parametrize("budget", ["null", "200"])
def test_loss_that_is_no_number_stops_before_the_update(checkpoint, trajectories, tmp_path, budget):
    trainer = poisoned_trainer(
        checkpoint, trajectories, tmp_path / "run", f"training.tokens_per_batch={budget}", "training.objective=td"
    )
    before = {name: weight.clone() for name, weight in trainer.student.state_dict().items()}
    moments = trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with pytest.raises(UserError, match=r"global step 2, samples \[.*0.*\]: expected a finite loss.*step-000001"):
        trainer.train_step()
    assert trainer.step == 1
    for name, weight in trainer.student.state_dict().items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert load_file(tmp_path / "run/state/step-000001/model.safetensors"), "the last good state is whole"


def test_loss_that_is_no_number_names_only_its_samples(checkpoint, trajectories, tmp_path, monkeypatch):
    def spoilt(*inputs: Any) -> dict[str, torch.Tensor]:
        losses = batch_losses(*inputs)
        poison = torch.tensor([math.nan] + [0.0] * (len(losses["loss/total"]) - 1))
        return losses | {"loss/total": losses["loss/total"] + poison}

    monkeypatch.setattr("t3d.training.loop.batch_losses", spoilt)
    with pytest.raises(UserError, match=r"global step 1, samples \[\d+, \d+\]: expected a finite loss"):
        run(checkpoint, trajectories, tmp_path / "run")  # two micro-batches of four
    assert not (tmp_path / "run/ckpt").exists()


def test_gradient_that_is_no_number_stops_before_the_update(checkpoint, trajectories, tmp_path):
    with pytest.raises(UserError, match=r"global step 2, samples \[.*finite.*last good state: .*step-000001"):
        run(checkpoint, trajectories, tmp_path / "run", "optimizer.params.learning_rate=1e30")
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step-000001"]
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("overrides", "levers"),
    [
        ([], "training.batch_size_lm (now 4) or training.gradient_checkpointing_enable (now false) or "),
        (["training.batch_size_lm=1", "training.gradient_checkpointing_enable=true"], ""),
        (
            ["training.tokens_per_batch=2000"],
            "training.tokens_per_batch (now 2000) or training.gradient_checkpointing_enable (now false) or ",
        ),
    ],
)
def test_a_full_device_is_one_line_that_names_what_to_lower(
    checkpoint, trajectories, tmp_path, monkeypatch, overrides, levers
):
    calls = []

    def full(*inputs: Any) -> dict[str, torch.Tensor]:
        calls.append(None)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
        return batch_losses(*inputs)

    monkeypatch.setattr("t3d.training.loop.batch_losses", full)
    with pytest.raises(DeviceFullError) as caught:
        run(checkpoint, trajectories, tmp_path / "run", *overrides)
    assert str(caught.value) == (
        f"{levers}the ZeRO stage (accelerate_configs/): expected a step that fits into the device's memory "
        "(python -m t3d.training.memory tells what does), found CUDA out of memory. Tried to allocate 2.00 GiB."
    )


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


ADAPTER = ["model.lora_rank=4", "training.gradient_checkpointing_enable=true", "optimizer.params.learning_rate=1e-2"]

SMALL_CHUNKS = """
import os, shutil, sys
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
import t3d.training.forward
from t3d.config import TrainConfig, load_config
from t3d.training.loop import train

t3d.training.forward.CHUNK_BYTES = 4 * 20 * 1080  # 20 rows of TinyMath's vocabulary
# Else ZeRO-3 would keep all weights of so small a network whole.
DeepSpeedZeroConfig.model_fields["param_persistence_threshold"].default = 0
DeepSpeedZeroConfig.model_rebuild(force=True)
train(load_config(TrainConfig, sys.argv[1:], "", ""))

# In the same processes: an adapter's run, which is then cut after the second of three steps, and resumed.
[place] = [given.partition("=")[2] + "-lora" for given in sys.argv if given.startswith("experiment.output_dir=")]
lora = [*sys.argv[1:], *ADAPTER, f"experiment.output_dir={place}"]
final = train(load_config(TrainConfig, lora, "", ""))
if os.environ["RANK"] == "0":
    shutil.move(final, f"{place}/uncut")
    shutil.rmtree(f"{place}/state/step-000003")
    os.truncate(f"{place}/metrics.jsonl", 0)
torch.distributed.barrier()
train(load_config(TrainConfig, [*lora, "experiment.resume_from=latest"], "", ""))
"""


def launch_two(arguments: list[str], script: Path = SCRIPT, **environment: str) -> str:
    """Runs a training script in two CPU processes, through gloo; returns what went wrong."""
    return launch(2, arguments, script, **environment)


def launch(processes: int, arguments: list[str], script: Path = SCRIPT, **environment: str) -> str:
    """Runs a training script in CPU processes, through gloo; returns what went wrong."""
    command = [str(script), *arguments, f"experiment.num_processes={processes}"]
    ended = launching.launch(processes, command, **environment)
    return "".join(rank.stderr for rank in ended) if any(rank.returncode for rank in ended) else ""


@pytest.fixture(scope="module")
def single(checkpoint, trajectories, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights that one process ends with."""
    folder = tmp_path_factory.mktemp("single") / "run"
    settings = eight_samples(checkpoint, trajectories, folder, "training.batch_size_lm=8")
    return load_file(train(load_config(TrainConfig, settings, "", "")) / "model.safetensors")


@pytest.fixture(scope="module")
def single_adapter(checkpoint, trajectories, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights, an adapter's merged into them, that one process ends with."""
    folder = tmp_path_factory.mktemp("single_adapter") / "run"
    settings = eight_samples(checkpoint, trajectories, folder, "training.batch_size_lm=8", *ADAPTER)
    return load_file(train(load_config(TrainConfig, settings, "", "")) / "model.safetensors")


def assert_validated_as_by_one_process(given: list[str]) -> None:
    """A finished run's last validation, by however many processes, against this one's of its last checkpoint."""
    config = load_config(TrainConfig, given, "", "")
    folder, source = Path(str(config.experiment.output_dir)), open_checkpoint(config.model.pretrained_model, 8)
    network, cpu = load_model(folder / "ckpt/optimized"), torch.device("cpu")
    found = Validation(config, source).run(network, cpu, folder).metrics
    if config.training.meter_every:
        found |= Meter(config, source).run(network, cpu)
    last = metrics(folder)[-1]
    assert {name for name in last if name.startswith(("validation/", "meter/"))} == found.keys()
    assert all(last[name] == value for name, value in found.items() if not name.endswith("/seconds"))


@pytest.mark.slow
def test_two_processes_equal_one(checkpoint, trajectories, dataset, tmp_path, single):
    """And what each validates and measures of the problems is together what one process does."""
    keys = ["validation.every=2", f"validation.dataset={dataset}", "validation.max_token=14", "training.meter_every=3"]
    settings = eight_samples(checkpoint, trajectories, tmp_path / "run", *keys)
    assert not launch_two(settings, ACCELERATE_USE_CPU="true")
    assert_validated_as_by_one_process(settings)
    assert_close(single, load_file(tmp_path / "run/ckpt/optimized/model.safetensors"), tolerance=1e-6)


@pytest.mark.slow
def test_two_processes_both_stop_at_one_ones_loss_that_is_no_number(checkpoint, trajectories, tmp_path):
    """Only the second process computes it; the first learns of it before it updates."""
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED)
    settings = eight_samples(checkpoint, trajectories, tmp_path / "run", "training.tokens_per_batch=100")
    told = launch_two(settings, script, ACCELERATE_USE_CPU="true")
    for rank in (0, 1):
        (line,) = [line for line in told.splitlines() if line.startswith(f"rank {rank} unchanged:")]
        assert "global step 2, samples [" in line
        assert "step-000001" in line


POISONED = """
import math, sys
import torch
import t3d.training.loop as loop
from t3d.config import TrainConfig, load_config
from t3d.errors import UserError
from t3d.training.launch import make_accelerator

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = loop.Trainer(config, make_accelerator(config))
trainer.train_step()
trainer.save(trainer.folder / "ckpt/step-000001")
rank, true_losses = trainer.accelerator.process_index, loop.batch_losses
loop.batch_losses = lambda *inputs: {
    name: values * (math.nan if rank == 1 else 1) for name, values in true_losses(*inputs).items()
}
before = [weight.clone() for weight in trainer.student.parameters()]
try:
    trainer.train_step()
except UserError as error:
    same = all(torch.equal(old, new) for old, new in zip(before, trainer.student.parameters(), strict=True))
    sys.stderr.write(f"rank {rank} {'unchanged' if same else 'changed'}: {error}\\n")
    sys.exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_with_several_chunks_and_forwards_equal_one(
    checkpoint, trajectories, tmp_path, single, single_adapter, stage
):
    """Packed to a token budget, activations and the head's chunks computed again: DDP, then DeepSpeed's stages.

    And so with an adapter, whose frozen weights student and reference share: its run resumes exactly, too.
    """
    folder, script = tmp_path / "run", tmp_path / "chunks.py"
    script.write_text(SMALL_CHUNKS.replace("ADAPTER", str(ADAPTER)))
    environment = {"ACCELERATE_USE_CPU": "true"}
    if stage:
        environment = {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        }
    keys = ["training.tokens_per_batch=150", "training.gradient_checkpointing_enable=true"]
    told = launch_two(eight_samples(checkpoint, trajectories, folder, *keys), script, **environment)
    assert not told, told[-3000:]
    assert_close(single, load_file(folder / "ckpt/optimized/model.safetensors"), tolerance=1e-5)
    ratios = [line["ratio/real"] for line in metrics(folder)]
    assert ratios[0] == ratios[2] == 0
    lora = tmp_path / "run-lora"
    resumed = load_file(lora / "ckpt/optimized/model.safetensors")
    assert_equal(load_file(lora / "uncut/model.safetensors"), resumed)
    assert_close(single_adapter, resumed, tolerance=1e-5)
    assert metrics(lora)[-1]["ratio/real"] == 0, "a round began with the last step"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_deepspeed_processes_equal_one(checkpoint, trajectories, tmp_path, single, stage):
    """Sharded by ZeRO: the same weights, and log-ratios of exactly 0 after the reference was refreshed."""
    folder = tmp_path / "run"
    told = launch_two(
        eight_samples(checkpoint, trajectories, folder),
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage),
        ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true",
    )
    assert not told, told[-3000:]
    assert list((folder / "state/step-000003").glob("pytorch_model/*optim_states.pt")), "DeepSpeed was not used"
    assert_close(single, load_file(folder / "ckpt/optimized/model.safetensors"), tolerance=1e-5)
    ratios = [line["ratio/real"] for line in metrics(folder)]
    assert ratios[0] == ratios[2] == 0
    assert ratios[1] != 0


ROW_BY_ROW = """
import json, sys
from pathlib import Path
import t3d.training.loop as loop
from t3d.config import TrainConfig, load_config
from t3d.objectives import rows
import t3d.training.forward as forward
from t3d.training.launch import make_accelerator

config = load_config(TrainConfig, sys.argv[1:], "", "")
trainer = loop.Trainer(config, make_accelerator(config))
true_values, largest = forward.row_values, []

def noted(*inputs, **wanted):
    values = true_values(*inputs, **wanted)
    largest.append(max(values[name].abs().max().item() for name in ("real_ratio", "fake_ratio")))
    return values

forward.row_values = noted
found = []
for _ in range(trainer.num_steps):
    trainer.train_step()
    found.append(max(largest))
    largest.clear()
networks = trainer.student, trainer.reference
weights = [str(next(network.parameters()).dtype) for network in networks]
frequencies = [str(buffer.dtype) for network in networks for buffer in network.buffers()]
name = f"rank-{trainer.accelerator.process_index}.json"
noted = {"largest": found, "weights": weights, "frequencies": frequencies}
trainer.folder.joinpath(name).write_text(json.dumps(noted))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_in_bf16_every_rows_log_ratio_is_exactly_zero_where_reference_and_student_are_equal(
    checkpoint, trajectories, tmp_path, stage
):
    """Before the first update and after each refresh, in both processes: DDP's autocast, then DeepSpeed's stages."""
    script, folder = tmp_path / "row_by_row.py", tmp_path / "run"
    script.write_text(ROW_BY_ROW)
    environment = {"ACCELERATE_USE_CPU": "true"}
    if stage:
        environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    overrides = ["training.mixed_precision=bf16", "training.max_steps=5", "training.fake_expectation=argmax"]
    told = launch_two(eight_samples(checkpoint, trajectories, folder, *overrides), script, **environment)
    assert not told, told[-3000:]
    for rank in (0, 1):
        noted = json.loads((folder / f"rank-{rank}.json").read_text())
        assert noted["weights"] == ["torch.bfloat16" if stage else "torch.float32"] * 2
        assert set(noted["frequencies"]) == {"torch.float32"}
        assert [largest == 0 for largest in noted["largest"]] == [True, False, True, False, True], noted


@pytest.mark.parametrize("timestamp", ["true", "false"])
def test_a_run_lies_where_model_kind_of_problem_and_method_say(
    checkpoint, trajectories, tmp_path, monkeypatch, timestamp
):
    monkeypatch.chdir(tmp_path)
    keys = ["experiment.output_dir=null", "experiment.project=mine", f"experiment.timestamp={timestamp}"]
    given = arguments(checkpoint, trajectories, tmp_path, *keys, "training.max_steps=1")
    student = train(load_config(TrainConfig, given, "", ""))
    method = Path("experiments/checkpoint/math/mine")
    run = method if timestamp == "false" else student.parent.parent
    assert student == run / "ckpt" / "optimized"
    assert (timestamp == "false") is (run == method)
    assert newest_checkpoint(f"{method}/ckpt/optimized") == str(student)
    again = load_config(TrainConfig, [*given, "experiment.resume_from=latest"], "", "")
    assert train(again) == student, "the finished run is found again"
