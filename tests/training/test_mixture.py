"""Training a mixture of experts: exact accumulation, packing and recomputation, and the routers' balance."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from t3d.config import TrainConfig, load_config
from t3d.errors import CheckpointError, ConfigError
from t3d.rollout import rollout
from t3d.sdar import SDARMoeConfig, SDARMoeForCausalLM
from t3d.sdar.mixture import STACKED, recorded_routing
from t3d.sdar.opening import open_checkpoint
from t3d.training.forward import batch_losses
from t3d.training.models import _check_experts
from t3d.training.packing import Batch, collate
from t3d.training.settings import loss_settings
from t3d.training.states import StateSettings, TrainingSample, draw_state, sample_stream
from tests import launching

from .test_loop import arguments, assert_close, metrics, run
from .test_memory import config


@pytest.fixture(scope="session")
def mixture(checkpoint, tmp_path_factory) -> Path:
    """The session's checkpoint as a mixture of experts with random weights."""
    folder = tmp_path_factory.mktemp("mixture") / "model"
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    experts: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    fields = json.loads((checkpoint / "config.json").read_text()) | experts | {"model_type": "sdar_moe"}
    shape = SDARMoeConfig(**fields, norm_topk_prob=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SDARMoeForCausalLM(shape).save_pretrained(folder)
    return folder


BOTH = """
import sys
from t3d.config import EvalConfig, TrainConfig, load_config
from t3d.rollout import rollout
from t3d.training.loop import train

training, decoding = (" ".join(sys.argv[1:]).split(" -- "))
train(load_config(TrainConfig, training.split(), "", ""))
rollout(load_config(EvalConfig, decoding.split(), "", ""))
"""


@pytest.mark.slow
@pytest.mark.skipif(not STACKED, reason="this transformers keeps experts apart, which is refused")
def test_two_processes_train_it_as_one_and_decode_it_divided(mixture, trajectories, settings, tmp_path):
    script = tmp_path / "both.py"
    script.write_text(BOTH)
    common = ["training.objective=t3d", "training.router_aux_weight=0.1", "training.global_batch_size=8"]
    # Adam divides by the gradient's size: where that is rounding noise, the default epsilon makes it a step.
    common += ["optimizer.params.epsilon=1e-4", "optimizer.params.learning_rate=3e-4"]
    alone = run(mixture, trajectories, tmp_path / "alone", *common)
    decoding = [f"evaluation.checkpoint_path={mixture}", "rollout.temperature=0"]  # equal but for rounding: no dice
    whole = rollout(settings(*decoding))
    expected = whole.read_bytes()
    whole.unlink()
    whole.with_suffix(".meta.json").unlink()
    trained = arguments(mixture, trajectories, tmp_path / "two", *common)
    divided = [f"config={whole.with_suffix('.config.yaml')}", "rollout.tensor_parallel_size=2"]
    ended = launching.launch(2, [str(script), *trained, "--", *divided], ACCELERATE_USE_CPU="true")
    assert [rank.returncode for rank in ended] == [0, 0], [rank.stderr for rank in ended]
    assert_close(load_file(tmp_path / "two/ckpt/optimized/model.safetensors"), alone, tolerance=1e-6)
    assert whole.read_bytes() == expected


def tokens_of(*samples: int) -> Batch:
    """Some of three samples in their states, without random numbers of their own."""
    settings = StateSettings("trace", (4,), 47, 0, 47)
    drawn = [
        TrainingSample(list(range(1, 6 + n)), list(range(10, 20 + n)), list(range(1, 11 + n)), ended=True)
        for n in range(3)
    ]
    states = [draw_state(drawn[n], settings, sample_stream(0, 0, n)) for n in samples]
    return collate(states, 0, torch.device("cpu"))


def aux_of(model: SDARMoeForCausalLM, batch: Batch, weight: float = 1.0) -> dict[str, Tensor]:
    made = config("td")
    made.training.router_aux_weight = weight
    return batch_losses(model, None, batch, loss_settings(made.training))


def test_the_routers_loss_is_transformers_own_of_a_sample_in_training_layout(build_tiny_mixture):
    model = build_tiny_mixture().train()
    batch = tokens_of(1)
    losses = aux_of(model, batch, 0.25)
    with recorded_routing(model) as routing, torch.no_grad():
        model(batch.input_ids, batch.plan, batch.position_ids, logit_rows=batch.logit_rows)
    assert [len(logits) for logits in routing.logits] == [batch.input_ids.numel(), len(batch.logit_rows)]
    expected = load_balancing_loss_func(tuple(routing.logits), 6, 2)
    torch.testing.assert_close(losses["loss/router"], expected[None])
    torch.testing.assert_close(losses["loss/total"], losses["loss/cross_entropy"] + 0.25 * losses["loss/router"])
    assert "loss/router" not in aux_of(model, batch, 0.0)


def test_a_samples_routing_loss_does_not_depend_on_its_neighbours(build_tiny_mixture):
    model = build_tiny_mixture().double().train()
    alone = torch.cat([aux_of(model, tokens_of(n))["loss/router"] for n in range(3)])
    torch.testing.assert_close(aux_of(model, tokens_of(0, 1, 2))["loss/router"], alone)


def test_recomputed_activations_give_the_same_gradients(build_tiny_mixture):
    gradients = []
    for recompute in (False, True):
        model = build_tiny_mixture().double().train()
        if recompute:
            model.recompute_activations()
        aux_of(model, tokens_of(0, 2))["loss/total"].sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all("mlp.gate" not in name or grad.abs().sum() > 0 for name, grad in gradients[0].items())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("objective", ["t3d", "sft"])
def test_neither_accumulation_nor_packing_changes_a_weight(mixture, trajectories, tmp_path, objective):
    common = [f"training.objective={objective}", "training.router_aux_weight=0.1", "training.max_steps=2"]
    # Adam divides by the gradient's size: where that is rounding noise, the default epsilon makes it a step.
    common += ["optimizer.params.epsilon=1e-4", "optimizer.params.learning_rate=3e-4"]
    batches = [
        ["batch_size_lm=1", "gradient_accumulation_steps=8"],
        ["batch_size_lm=8", "gradient_accumulation_steps=1"],
        ["tokens_per_batch=300", "gradient_checkpointing_enable=true"],
    ]
    weights = [
        run(mixture, trajectories, tmp_path / f"{number}", *common, *(f"training.{key}" for key in batch))
        for number, batch in enumerate(batches)
    ]
    for others in weights[1:]:
        assert_close(weights[0], others, tolerance=1e-6)
    for number in range(3):
        lines = metrics(tmp_path / f"{number}")
        assert all(line["loss/router"] > 2 for line in lines), "2 experts per token, evenly used, would be 2"
    assert any("experts.5.down_proj" in name for name in weights[0])


def test_a_balance_weight_for_a_network_without_experts_is_one_error(checkpoint, trajectories, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.router_aux_weight: expected 0, as .* is no mixture of experts"):
        run(checkpoint, trajectories, tmp_path / "run", "training.router_aux_weight=0.1")


def test_several_processes_need_stacked_experts(mixture, monkeypatch):
    source = open_checkpoint(str(mixture), 4)
    made = load_config(TrainConfig, arguments(mixture, mixture, mixture), "", "")
    monkeypatch.setattr("t3d.training.models.STACKED", False)
    _check_experts(made, source, 1)
    with pytest.raises(CheckpointError, match="expected one process, or a transformers release that stacks experts"):
        _check_experts(made, source, 2)
    monkeypatch.setattr("t3d.training.models.STACKED", True)
    _check_experts(made, source, 2)
