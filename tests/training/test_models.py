"""Student and reference as a launch begins with them, in this process."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t3d.config import TrainConfig, load_config
from t3d.errors import ConfigError, UserError
from t3d.sdar.checkpoint import load_model
from t3d.training.launch import make_accelerator
from t3d.training.loop import Trainer
from t3d.training.reference import frozen_copy, frozen_view, load_reference, refresh, save_reference


def configure(checkpoint: Path, data: Path, folder: Path, *overrides: str) -> TrainConfig:
    settings = [
        f"model.pretrained_model={checkpoint}",
        f"dataset.optimization_data={data}",
        f"experiment.output_dir={folder}",
        *("training.mixed_precision=no", "training.gradient_checkpointing_enable=false", "training.batch_size_lm=4"),
        *("training.gradient_accumulation_steps=2", "training.max_steps=5", "lr_scheduler.params.warmup_steps=0"),
    ]
    return load_config(TrainConfig, [*settings, *overrides], "", "")


def test_a_view_costs_no_memory_and_a_copy_is_its_own(checkpoint):
    student = load_model(checkpoint)
    view, copy = frozen_view(student), frozen_copy(student)
    for theirs, shared, own in zip(student.parameters(), view.parameters(), copy.parameters(), strict=True):
        assert shared.data_ptr() == theirs.data_ptr() != own.data_ptr()
        assert torch.equal(own, theirs)
        assert not shared.requires_grad
        assert theirs.requires_grad
        assert not own.requires_grad
    assert copy.lm_head.weight is copy.model.embed_tokens.weight, "tied as the student's are"


def test_a_reference_is_read_as_it_was_written(checkpoint, tmp_path):
    student = load_model(checkpoint)
    written, read = frozen_copy(student), frozen_copy(student)
    with torch.no_grad():
        for weight in written.parameters():
            weight.add_(1)
    save_reference(written, tmp_path / "reference.safetensors", main=True)
    load_reference(read, tmp_path / "reference.safetensors")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read.parameters(), written.parameters(), strict=True))
    refresh(read, student)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read.parameters(), student.parameters(), strict=True))


def test_a_bf16_checkpoint_is_read_as_such_and_trained_in_single_precision(
    checkpoint, trajectories, tmp_path, monkeypatch
):
    folder, read = tmp_path / "bf16", []
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    fields = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(fields))
    stored = {name: weight.bfloat16() for name, weight in load_file(checkpoint / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

    def noted(*inputs, **options):
        read.append(load_model(*inputs, **options))
        assert {weight.dtype for weight in read[0].parameters()} == {torch.bfloat16}
        return read[0]

    monkeypatch.setattr("t3d.training.models.load_model", noted)
    config = configure(folder, trajectories, tmp_path / "run")
    trainer = Trainer(config, make_accelerator(config))
    assert read, "else nothing is tested"
    for network in (trainer.student, trainer.reference):
        for name, weight in network.named_parameters():
            assert torch.equal(weight, stored[name].float()), name


def test_a_sharded_reference_needs_zero_3(checkpoint, trajectories, tmp_path):
    config = configure(checkpoint, trajectories, tmp_path / "run", "training.shard_reference=true")
    with pytest.raises(
        ConfigError, match=r"training\.shard_reference: expected null or false without ZeRO-3 or FSDP2, found True"
    ):
        Trainer(config, make_accelerator(config))


def test_more_layers_to_recompute_than_there_are_is_an_error(checkpoint, trajectories, tmp_path):
    recompute = "training.gradient_checkpointing_enable=true"
    config = configure(checkpoint, trajectories, tmp_path / "run", recompute, "training.checkpoint_layers=5")
    with pytest.raises(
        ConfigError, match=r"training\.checkpoint_layers: expected null, or at most 4, the layers of the model, found 5"
    ):
        Trainer(config, make_accelerator(config))
    config = configure(checkpoint, trajectories, tmp_path / "run", recompute, "training.checkpoint_layers=3")
    layers = Trainer(config, make_accelerator(config)).student.model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [True, True, True, False]
    with pytest.raises(ConfigError, match=r"checkpoint_layers: expected null, unless gradient_checkpointing_enable is"):
        configure(checkpoint, trajectories, tmp_path / "run", "training.checkpoint_layers=3")


def test_without_deepspeed_too_scaled_updates_that_overflow_are_left_out_and_counted(
    checkpoint, trajectories, tmp_path
):
    """accelerate scales the loss in fp16 on a GPU; here its scaler is put in by hand."""
    config = configure(checkpoint, trajectories, tmp_path / "run")
    accelerator = make_accelerator(config)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = Trainer(config, accelerator)
    weight, factor, found = next(trainer.student.parameters()), torch.ones(()), []
    weight.register_hook(lambda gradient: gradient * factor)
    for factor_now in (1, math.inf, 1):
        factor.fill_(factor_now)
        before = weight.detach().clone()
        metrics = trainer.train_step()
        found.append((metrics["skipped_steps"], torch.equal(before, weight), accelerator.scaler.get_scale()))
    assert found == [(0, False, 8), (1, True, 4), (1, False, 4)]
    factor.fill_(math.inf)
    assert trainer.train_step()["skipped_steps"] == 2
    with pytest.raises(UserError, match=r"global step 5, .*: expected a finite gradient"):
        trainer.train_step()  # at a scale of 1 it is the gradient itself
