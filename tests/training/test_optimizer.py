"""The optimizer's choices that a CPU can see: which kernel, and what decays."""

import pytest
import torch
from torch import nn

from t3d.config.schema import OptimizerParams
from t3d.training.optimizer import is_fused, make_optimizer

CPU = torch.device("cpu")


def test_one_kernel_updates_on_cuda_unless_torchs_scaler_decides() -> None:
    assert is_fused("cuda", scaled=False)
    assert not is_fused("cuda", scaled=True)
    assert not is_fused("cpu", scaled=False)
    assert make_optimizer(nn.Linear(2, 2), OptimizerParams(), 0.1, CPU, scaled=False).defaults["fused"] is None


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "as ZeRO-3 cuts weights up"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_norms_and_biases_decay_only_if_asked_for(build_tiny_model, decay_norms: bool, cut: bool) -> None:
    student = build_tiny_model(attention_bias=True)
    names = {id(weight): name for name, weight in student.named_parameters()}
    if cut:
        for weight in student.parameters():
            weight.ds_shape = weight.shape
            weight.data = torch.empty(0)
    params = OptimizerParams(weight_decay=0.25, decay_norms=decay_norms)
    groups = make_optimizer(student, params, 0.1, CPU, scaled=False).param_groups
    decays = {names[id(weight)]: group["weight_decay"] for group in groups for weight in group["params"]}
    assert decays.keys() == set(names.values())
    small = {name for name in decays if "norm" in name or name.endswith("bias")}
    assert any(name.endswith("bias") for name in small)
    assert {name for name, decay in decays.items() if decay == 0} == (set() if decay_norms else small)
    assert {decays[name] for name in decays.keys() - small} == {0.25}


def test_a_weight_that_is_not_to_decay_keeps_its_value_where_it_has_no_gradient() -> None:
    layer = nn.LayerNorm(3)
    layer.bias.requires_grad_(False)
    optimizer = make_optimizer(layer, OptimizerParams(decay_norms=False), 0.1, CPU, scaled=False)
    layer.weight.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(layer.weight, torch.ones(3))
