import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicCache

from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.attention import block_causal_mask
from t3d.sdar.backend import AttentionPlan, masked_attention

QWEN3_1_7B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
QWEN3_4B = QWEN3_1_7B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 47, (2, 11), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_no_mask_means_block_causal_by_the_configured_block_size(build_tiny_model, ids: torch.Tensor) -> None:
    positions = torch.arange(11)
    for size in (1, 3, 4, 16):
        model = build_tiny_model(block_size=size)
        mask = block_causal_mask(positions, positions, size).expand(2, 1, -1, -1)
        torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_are_qwen3s_under_the_same_weights_and_mask(tiny_model, build_tiny_model, ids, implementation) -> None:
    fields = {name: value for name, value in tiny_model.config.to_dict().items() if name != "model_type"}
    qwen = Qwen3ForCausalLM(Qwen3Config(**fields)).eval()
    qwen.load_state_dict(tiny_model.state_dict())
    qwen.set_attn_implementation("sdpa")
    mask = block_causal_mask(torch.arange(11), torch.arange(11), 4).expand(2, 1, -1, -1)
    expected = qwen(input_ids=ids, attention_mask=mask).logits
    ours = build_tiny_model(attn_implementation=implementation)
    torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_token_reaches_its_own_block_and_later_ones_alone(tiny_model, ids: torch.Tensor) -> None:
    before = tiny_model(ids).logits
    for changed in range(11):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % 47
        moved = (tiny_model(other).logits - before).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [position // 4 >= changed // 4 for position in range(11)]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logit_rows_are_rows_of_the_whole(build_tiny_model, ids: torch.Tensor, implementation: str) -> None:
    model = build_tiny_model(attn_implementation=implementation)
    rows = torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(2))[:9]
    picked = model(ids, logit_rows=rows).logits
    torch.testing.assert_close(picked, model(ids).logits.flatten(0, 1)[rows])
    assert model(ids, logit_rows=rows[:0]).logits.shape == (0, 48)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_of_some_rows_is_that_of_the_whole(build_tiny_model, ids: torch.Tensor, recompute: bool) -> None:
    rows = torch.tensor([0, 3, 4, 12, 21])
    gradients = []
    for picks in (True, False):
        model = build_tiny_model().train()
        if recompute and picks:
            model.recompute_activations()
        logits = model(ids, logit_rows=rows).logits if picks else model(ids).logits.flatten(0, 1)[rows]
        logits.log_softmax(-1)[:, 5].sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("num_layers", "expected"), [(None, 3), (2, 2), (1, 1)])
def test_the_first_layers_alone_are_computed_again_if_so_many_are_asked_for(
    build_tiny_model, ids: torch.Tensor, num_layers: int | None, expected: int
) -> None:
    plain, again = build_tiny_model(num_hidden_layers=3).train(), build_tiny_model(num_hidden_layers=3).train()
    again.recompute_activations(1)
    again.recompute_activations(num_layers)
    calls = []
    for number, layer in enumerate(again.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    for model in (plain, again):
        model(ids).logits.log_softmax(-1)[..., 5].sum().backward()
    assert calls == [0, 1, 2, *range(expected)[::-1]]
    for mine, other in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_last_layer_works_for_the_wanted_rows_alone(tiny_model, ids: torch.Tensor) -> None:
    sizes: list[int] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _module, inputs, _out: sizes.append(inputs[0].shape[-2]))
        for layer in tiny_model.model.layers
    ]
    tiny_model(ids[:1], logit_rows=torch.tensor([2, 5]))
    for hook in hooks:
        hook.remove()
    assert sizes == [11, 2]


@torch.no_grad()
def test_positions_decide_blocks_and_rotation(tiny_model, ids: torch.Tensor) -> None:
    shifted = torch.arange(4, 15).expand(2, -1)
    # A whole number of blocks further on nothing changes (rotary embeddings are relative) ...
    torch.testing.assert_close(
        tiny_model(ids, position_ids=shifted).logits, tiny_model(ids).logits, rtol=1e-4, atol=1e-4
    )
    # ... elsewhere the blocks change.
    assert not torch.allclose(tiny_model(ids, position_ids=shifted + 1).logits, tiny_model(ids).logits, atol=1e-2)


def test_a_cache_without_a_mask_is_refused(tiny_model, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="attention_mask: expected a mask over the cached keys"):
        tiny_model(ids, past_key_values=DynamicCache())


def test_generate_points_to_decode(tiny_model, ids: torch.Tensor) -> None:
    with pytest.raises(NotImplementedError, match=r"t3d\.decoding\.decode"):
        tiny_model.generate(ids)


@pytest.mark.parametrize(
    ("shape", "tied", "millions"), [(QWEN3_1_7B, True, 1720.6), (QWEN3_4B, False, 4411.4)], ids=["1.7B", "4B"]
)
def test_published_shapes_build_with_qwen3s_parameter_names(shape: dict, tied: bool, millions: float) -> None:
    with torch.device("meta"):
        model = SDARForCausalLM(SDARConfig(**shape, tie_word_embeddings=tied))
        qwen = Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=tied))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in qwen.state_dict().items()}
    assert "model.layers.0.self_attn.q_norm.weight" in ours
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    hidden, layers, vocab = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
    queries, keys = shape["num_attention_heads"] * 128, shape["num_key_value_heads"] * 128
    attention = 2 * hidden * queries + 2 * hidden * keys + 2 * 128
    per_layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    by_hand = layers * per_layer + hidden + vocab * hidden * (1 if tied else 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand


def test_sdar_is_registered_with_the_auto_classes() -> None:
    config = AutoConfig.for_model("sdar", block_size=8)
    assert isinstance(config, SDARConfig)
    with torch.device("meta"):
        assert isinstance(AutoModelForCausalLM.from_config(config), SDARForCausalLM)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 0}, "block_size: expected at least 1, found 0"),
        (
            {"mask_token_id": 48, "vocab_size": 48},
            "mask_token_id: expected an id below vocab_size 48, found 48",
        ),
        ({"mask_token_id": -1}, "mask_token_id: .* found -1"),
    ],
)
def test_impossible_configurations_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SDARConfig(**fields)


def test_rope_theta_stays_at_the_top_level_of_config_json(tmp_path) -> None:
    SDARConfig(rope_theta=1_000_000.0).save_pretrained(tmp_path)
    assert '"rope_theta": 1000000' in (tmp_path / "config.json").read_text()
    assert SDARConfig.from_pretrained(tmp_path).rotary_base == 1_000_000


def test_the_weights_type_is_written_where_older_readers_look(tmp_path) -> None:
    SDARConfig(dtype="bfloat16").save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    assert SDARConfig.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("base", [1_000.0, 1_000_000.0])
def test_rope_theta_reaches_the_rotation(build_tiny_model, base: float) -> None:
    inverse_frequencies = build_tiny_model(rope_theta=base).model.rotary_emb.inv_freq
    torch.testing.assert_close(inverse_frequencies, base ** (-torch.arange(0, 8, 2) / 8))


class TwoRows(AttentionPlan):
    """Two sequences of one block each, one after the other in a single row."""

    def __init__(self, length: int) -> None:
        self.length = length

    def attend(self, layer, query, key, value, scale):
        parts = [tensor.unflatten(2, (2, self.length))[0].transpose(0, 1) for tensor in (query, key, value)]
        return masked_attention(*parts, None, scale).transpose(1, 2).flatten(0, 1)[None]


@torch.no_grad()
def test_a_plan_computes_attention_over_a_flat_row(build_tiny_model, ids: torch.Tensor) -> None:
    model = build_tiny_model(block_size=16)
    flat = model(ids.reshape(1, -1), attention_mask=TwoRows(11), position_ids=torch.arange(11).repeat(2)[None]).logits
    torch.testing.assert_close(flat.reshape(2, 11, -1), model(ids).logits)
    model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="expected sdpa for an attention plan, found eager"):
        model(ids.reshape(1, -1), attention_mask=TwoRows(11))


@torch.no_grad()
def test_a_head_of_ones_own_gets_the_wanted_rows(tiny_model, ids: torch.Tensor) -> None:
    rows = torch.tensor([1, 4, 13])
    doubled = tiny_model(ids, logit_rows=rows, head=lambda head, hidden: 2 * head(hidden))
    torch.testing.assert_close(doubled, 2 * tiny_model(ids).logits.flatten(0, 1)[rows])


def test_an_attention_that_would_ignore_the_mask_is_refused(build_tiny_model, ids: torch.Tensor) -> None:
    model = build_tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation: expected sdpa or eager, found flash_attention_2"):
        model(ids)
