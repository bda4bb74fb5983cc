"""Training an adapter: one set of frozen weights under student and reference, merged checkpoints, exact resume."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file, save_file

from t3d.config import TrainConfig, load_config
from t3d.config.schema import ModelConfig
from t3d.errors import ConfigError
from t3d.objectives.registry import OBJECTIVES
from t3d.sdar.checkpoint import load_model
from t3d.sdar.mixture import STACKED
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer, train
from t3d.training.lora import add_adapter, copy_weights
from t3d.training.reference import trained
from t3d.training.validation import decoding_copy

SETTINGS = (
    *("model.lora_rank=8", "training.max_steps=3", "training.batch_size_lm=4", "training.round_interval=2"),
    *("training.gradient_accumulation_steps=2", "training.mixed_precision=no", "experiment.save_every_steps=99"),
    *("training.gradient_checkpointing_enable=false", "optimizer.params.learning_rate=1e-2"),
    "lr_scheduler.params.warmup_steps=0",
)


@pytest.fixture
def configure(checkpoint, trajectories, tmp_path):
    """Makes the configuration of the run in the folder of this name."""

    def make(name: str, *overrides: str) -> TrainConfig:
        places = [f"dataset.optimization_data={trajectories}", f"experiment.output_dir={tmp_path / name}"]
        return load_config(
            TrainConfig, [*SETTINGS, f"model.pretrained_model={checkpoint}", *places, *overrides], "", ""
        )

    return make


@pytest.fixture
def fit(configure):
    """Trains in a folder of this name; returns the checkpoint's."""
    return lambda name, *overrides: train(configure(name, *overrides))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter/adapter_model.safetensors")


def metrics(folder: Path) -> list[dict]:
    """What a run computed in each step, without what it took."""
    lines = [json.loads(line) for line in (folder.parent.parent / "metrics.jsonl").read_text().splitlines()]
    computed = ("step", "round", "lr", "grad_norm", "loss/", "ratio/")
    return [{name: value for name, value in line.items() if name.startswith(computed)} for line in lines]


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.arange(40, 64)[None]).logits


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_an_adapter_that_is_merged_into_the_checkpoint(checkpoint, fit, objective):
    made = fit("run", f"training.objective={objective}")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(made / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) is ("_proj." not in name), name
    assert all(weight.dtype == torch.float32 and weight.abs().max() > 0 for weight in adapter(made).values())
    lines = metrics(made)
    if OBJECTIVES[objective].ddo:
        assert [line["ratio/real"] == 0 for line in lines] == [True, False, True]
        assert lines[2]["ratio/fake"] == 0
    assert "| LoRA rank | 8 |\n| LoRA alpha | 16.0 |" in (made / "README.md").read_text()


@pytest.mark.parametrize("fakes", ["argmax", "exact"])
def test_a_reference_that_shares_all_but_the_adapter_equals_a_whole_copy(configure, monkeypatch, fakes):
    """Bit for bit, with dropout in the student alone, through a refresh; the head in chunks."""
    monkeypatch.setattr("t3d.training.forward.CHUNK_BYTES", 4 * 20 * 1080)
    found = []
    for name in ("shared", "copied"):
        if name == "copied":
            whole = lambda student, device: copy.deepcopy(student).requires_grad_(False).eval()  # noqa: E731
            monkeypatch.setattr("t3d.training.models.frozen_copy", whole)
        expectation = [f"training.fake_expectation={fakes}", f"training.reference_temp={int(fakes == 'exact')}"]
        config = configure(name, "model.lora_dropout=0.3", *expectation)
        trainer = Trainer(config, make_accelerator(config))
        pairs = zip(trainer.student.parameters(), trainer.reference.parameters(), strict=True)
        shared = {ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs if not ours.requires_grad}
        assert shared == {name == "shared"}
        folder = trainer.run()
        found.append((metrics(folder), adapter(folder)))
    assert found[0][0] == found[1][0]
    assert_equal(found[0][1], found[1][1])
    # An adapter that is still nothing has no noise; after the refresh the student has, and the reference has not.
    assert [line["ratio/real"] == 0 for line in found[0][0]] == [True, False, False]


def test_only_the_adapter_is_trained_copied_and_saved(configure):
    config = configure("run", "model.lora_targets=[q_proj,down_proj]")
    trainer = Trainer(config, make_accelerator(config))
    student, reference = trainer.student, trainer.reference
    learnt = {name for name, weight in student.named_parameters() if weight.requires_grad}
    assert {name.split(".")[4] for name in learnt} == {"q_proj", "down_proj"}
    assert {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]} == {
        id(student.get_parameter(name)) for name in learnt
    }
    for name, weight in reference.named_parameters():
        assert (weight.data_ptr() == student.get_parameter(name).data_ptr()) is (name not in learnt)
        assert not weight.requires_grad
    trainer.run()
    [state] = (trainer.folder / "state").iterdir()
    for file in ("model.safetensors", "reference.safetensors"):
        assert load_file(state / file).keys() == learnt


@pytest.mark.parametrize("way", ["recomputed", "accumulated", "packed"])
def test_the_ways_to_compute_a_step_train_the_same_adapter(fit, way):
    overrides = {
        "recomputed": ["training.gradient_checkpointing_enable=true"],
        "accumulated": ["training.batch_size_lm=1", "training.gradient_accumulation_steps=8"],
        "packed": ["training.tokens_per_batch=300"],
    }[way]
    epsilon = "optimizer.params.epsilon=1e-5"
    plain, other = adapter(fit("plain", epsilon)), adapter(fit(way, epsilon, *overrides))
    for name, weight in plain.items():
        torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(fit, tmp_path, recompute):
    """With dropout, whose random stream is part of the state; a round ends at the step that is resumed from."""
    overrides = ["model.lora_dropout=0.2", f"training.gradient_checkpointing_enable={recompute}"]
    overrides += ["training.max_steps=4", "experiment.save_every_steps=1"]
    whole = fit("whole", *overrides)
    fit("cut", *overrides)
    for step in ("000003", "000004"):
        shutil.rmtree(tmp_path / "cut/state" / f"step-{step}")
    resumed = fit("cut", *overrides, "experiment.resume_from=latest")
    assert_equal(adapter(whole), adapter(resumed))
    assert_equal(load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors"))
    assert metrics(whole) == metrics(resumed)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft
def test_peft_loads_the_adapter_and_computes_what_was_trained(checkpoint, configure):
    config = configure("run", "model.lora_alpha=3.5")
    trainer = Trainer(config, make_accelerator(config))
    folder = trainer.run()
    tuned = PeftModel.from_pretrained(load_model(checkpoint), folder / "adapter")
    assert torch.equal(logits(tuned), logits(trainer.student.eval()))
    merged = logits(load_model(folder))
    torch.testing.assert_close(merged, logits(tuned), atol=1e-4, rtol=0)
    assert (merged - logits(load_model(checkpoint))).abs().max() > 0.1
    network = load_model(checkpoint)
    copy_weights(network, trainer.student)
    assert_equal(dict(load_model(folder).named_parameters()), dict(network.named_parameters()))
    validated = decoding_copy(trainer.student, trainer.checkpoint.config, torch.device("cpu"))
    torch.testing.assert_close(logits(validated), merged, atol=1e-5, rtol=0)
    described = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"]) == (8, 3.5)
    assert described["base_model_name_or_path"] == str(checkpoint)


@pytest.fixture
def other_precision():
    """Lets a second Accelerator of this process compute in another precision than the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_frozen_weights_stay_in_bf16_where_they_are_stored_so_and_adapters_never(
    checkpoint, configure, tmp_path, stored
):
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    fields = json.loads((base / "config.json").read_text()) | dict.fromkeys(("dtype", "torch_dtype"), str(stored)[6:])
    (base / "config.json").write_text(json.dumps(fields))
    weights = {name: weight.to(stored) for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = configure("run", f"model.pretrained_model={base}", "training.mixed_precision=bf16")
    trainer = Trainer(config, make_accelerator(config))
    for network in (trainer.student, trainer.reference):
        for name, weight in network.named_parameters():
            assert weight.dtype == (torch.float32 if ".lora_" in name else stored), name
    folder = trainer.run()
    assert [line["ratio/real"] == 0 for line in metrics(folder)] == [True, False, True]
    merged, parts = load_file(folder / "model.safetensors"), adapter(folder)
    for name, weight in merged.items():
        expected, root = weights[name], f"base_model.model.{name.removesuffix('.weight')}"
        if f"{root}.lora_A.weight" in parts:
            product = parts[f"{root}.lora_B.weight"] @ parts[f"{root}.lora_A.weight"]
            expected = (expected.float() + product * (16 / 8)).to(stored)
        assert torch.equal(weight, expected), name


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.lora_rank=-1"], "model.lora_rank"),
        (["model.random_init=true"], "model.lora_rank"),
        (["model.lora_alpha=0"], "model.lora_alpha"),
        (["model.lora_rank=0", "model.lora_dropout=0.1"], "model.lora_rank"),
        (["model.lora_dropout=1"], "model.lora_dropout"),
        (["model.lora_targets=[q_proj,lm_head]"], "model.lora_targets"),
        (["model.lora_targets=[q_proj,q_proj]"], "model.lora_targets"),
        (["model.lora_targets=[]"], "model.lora_targets"),
    ],
)
def test_impossible_adapters_are_refused_by_key(configure, overrides, key):
    with pytest.raises(ConfigError, match=rf"^command line: {key}: expected .*, found ") as caught:
        configure("run", *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not STACKED, reason="transformers 4 has a linear layer per expert")
def test_layers_that_a_network_has_not_are_named(build_tiny_mixture):
    """A mixture's experts are no linear layers; its attention can be adapted."""
    model = ModelConfig(pretrained_model="base", lora_rank=2)
    with pytest.raises(ConfigError, match=r"of k_proj, o_proj, q_proj, v_proj\), found gate_proj, up_proj, down_proj"):
        add_adapter(build_tiny_mixture(), model)
    model.lora_targets = ["q_proj", "o_proj"]
    network = build_tiny_mixture()
    add_adapter(network, model)
    assert {name.split(".")[4] for name in trained(network)} == {"q_proj", "o_proj"}
