"""One network everywhere: no cast and no move changes the rotary frequencies."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.checkpoint import load_model
from t3d.sdar.decoding_layers import pack_layers

FREQUENCIES = 1e6 ** (-torch.arange(0, 128, 2) / 128)
CASTS: dict[str, Callable[[torch.nn.Module], object]] = {
    "to(dtype)": lambda model: model.to(torch.bfloat16),
    "to(device, dtype)": lambda model: model.to("cpu", torch.bfloat16),
    "to(tensor)": lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
    "bfloat16": lambda model: model.bfloat16(),
    "back and forth": lambda model: model.bfloat16().double().bfloat16().float().bfloat16(),
    "of the stack alone": lambda model: (model.model.bfloat16(), model.lm_head.bfloat16()),
    "one parameter after the other": lambda model: [
        setattr(weight, "data", weight.data.bfloat16()) for weight in model.parameters()
    ],
}


def build(seed: int = 0) -> SDARForCausalLM:
    """A network with the head size of the published ones, far enough from uniform for rounding to show."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SDARConfig(
        vocab_size=48,
        num_key_value_heads=1,
        head_dim=128,
        rope_theta=1e6,
        initializer_range=0.3,
        block_size=4,
        mask_token_id=47,
        **shape,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SDARForCausalLM(config).eval()


def assert_exact(model: torch.nn.Module) -> None:
    rotary = model.get_submodule("model.rotary_emb")
    torch.testing.assert_close(rotary.inv_freq, FREQUENCIES, rtol=1e-6, atol=0)
    assert torch.equal(rotary.original_inv_freq, rotary.inv_freq)
    assert {buffer.dtype for buffer in rotary.buffers()} == {torch.float32}


@torch.no_grad()
def far_logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits 1,000 positions apart, where rounded frequencies turn by whole radians."""
    positions = torch.tensor([[0, 1, 2, 3, 1000, 1001, 1002, 1003]])
    return model(torch.arange(8)[None], position_ids=positions).logits


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("cast", CASTS)
def test_however_a_network_is_cast_it_stays_the_same_one(tmp_path, cast, copied):
    model = build()
    model.bfloat16().save_pretrained(tmp_path)
    loaded = SDARForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_exact(loaded)
    model = build() if not copied else copy.deepcopy(build())
    CASTS[cast](model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert_exact(model)
    assert torch.equal(far_logits(model), far_logits(loaded))


def test_every_way_to_load_keeps_the_frequencies(tmp_path):
    build().bfloat16().save_pretrained(tmp_path)
    for dtype in (None, torch.bfloat16, torch.float16, torch.float32):
        assert_exact(load_model(tmp_path, dtype))
        assert_exact(load_model(tmp_path, dtype, random_init=True))
    assert_exact(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"))


def test_frequencies_follow_the_network_to_its_device():
    model = build()
    assert {buffer.device.type for buffer in model.to("meta", torch.bfloat16).buffers()} == {"meta"}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert {buffer.dtype for buffer in model.to_empty(device="cpu").buffers()} == {torch.float32}


def test_packed_layers_leave_the_frequencies():
    model = build()
    pack_layers(model)
    assert_exact(model.bfloat16())


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_no_precision_reaches_the_frequencies(cast):
    model = build()
    assert_exact(getattr(model, cast)())
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
