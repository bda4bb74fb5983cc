"""The mixture of experts as a network: what it computes, and that no token's result depends on its neighbours."""

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.plain import decode_plain
from t3d.sdar import SDARMoeConfig, SDARMoeForCausalLM
from t3d.sdar.decoding_layers import PackedLayer, pack_layers
from t3d.sdar.experts import PackedExperts
from t3d.sdar.mixture import STACKED, SparseMLP, build_network, experts_of, stored_weights
from t3d.training.reference import frozen_copy

MASK = 47
PROMPTS = [[5, 6, 7], [9], list(range(11)), [1, 2, 3, 4], [30, 31, 32, 33, 34, 35]]
LAYOUTS = [{}, {"norm_topk_prob": False}, {"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}]
THEIRS = {"experts_implementation": "eager"} if STACKED else {}  # grouped products have no double precision


def copied_weights(model: SDARMoeForCausalLM) -> Qwen3MoeForCausalLM:
    """transformers' own network with the weights of ours."""
    fields = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    theirs = Qwen3MoeForCausalLM._from_config(Qwen3MoeConfig(**fields), **THEIRS).to(model.dtype).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_transformers_own_under_a_causal_mask(build_tiny_mixture, layout):
    model = build_tiny_mixture(num_hidden_layers=3, **layout).double()
    ids = torch.randint(MASK, (2, 12), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, 12, 12)
    expected = copied_weights(model)(ids, attention_mask=causal).logits
    torch.testing.assert_close(model(ids, attention_mask=causal).logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layout", "sparse"),
    [
        ({}, [0, 1, 2]),
        ({"mlp_only_layers": [0, 2]}, [1]),
        ({"decoder_sparse_step": 2}, [1]),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [2]}, []),
    ],
)
def test_the_configuration_says_which_layers_have_experts(build_tiny_mixture, layout, sparse):
    model = build_tiny_mixture(num_hidden_layers=3, **layout)
    assert [place for place, layer in enumerate(model.model.layers) if isinstance(layer.mlp, SparseMLP)] == sparse
    for place in sparse:
        experts = list(experts_of(model.model.layers[place].mlp))
        assert [tuple(map(tuple, (gate.shape, up.shape, down.shape))) for gate, up, down in experts] == [
            ((20, 32), (20, 32), (32, 20))
        ] * 6
        assert all(0.2 < weight.std() < 0.4 for expert in experts for weight in expert), "initializer_range is 0.3"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": 0}, "num_experts: expected at least 1, found 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: expected at least 1, found 0"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: expected at most num_experts = 8, found 9"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        SDARMoeConfig(**({"num_experts": 8} | changes))


def test_a_stack_of_experts_is_stored_under_a_name_for_each():
    both, down = torch.randn(2, 6, 4), torch.randn(2, 4, 3)
    layer, norm = "model.layers.0.mlp", torch.ones(4)
    stacked = {f"{layer}.experts.gate_up_proj": both, f"{layer}.experts.down_proj": down, "model.norm.weight": norm}
    expected = {
        "model.norm.weight": norm,
        f"{layer}.experts.0.gate_proj.weight": both[0, :3],
        f"{layer}.experts.0.up_proj.weight": both[0, 3:],
        f"{layer}.experts.0.down_proj.weight": down[0],
        f"{layer}.experts.1.gate_proj.weight": both[1, :3],
        f"{layer}.experts.1.up_proj.weight": both[1, 3:],
        f"{layer}.experts.1.down_proj.weight": down[1],
    }
    stored = stored_weights(stacked)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], weight) for name, weight in expected.items())
    assert stored_weights(expected) == expected, "what is apart stays apart"


def test_a_network_is_built_again_from_its_configuration_and_copied(build_tiny_mixture):
    model = build_tiny_mixture()
    assert isinstance(build_network(model.config), SDARMoeForCausalLM)
    copy = frozen_copy(model)
    ids = torch.randint(MASK, (1, 8))
    assert torch.equal(copy(ids).logits, model(ids).logits)


@torch.inference_mode()
def test_packed_layers_give_the_same_logits(build_tiny_mixture):
    for layout in LAYOUTS:
        model = build_tiny_mixture(**layout)
        ids, rows = torch.randint(MASK, (2, 12)), torch.tensor([3, 4, 17])
        full, some = model(ids).logits, model(ids, logit_rows=rows).logits
        pack_layers(model)
        assert all(isinstance(layer, PackedLayer) for layer in model.model.layers)
        torch.testing.assert_close(model(ids).logits, full, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(ids, logit_rows=rows).logits, some, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_rows_beside_it(build_tiny_mixture):
    """An expert gets one row here and dozens there: single precision, and not a bit may differ."""
    model = build_tiny_mixture(hidden_size=64, moe_intermediate_size=48, num_experts=16, num_experts_per_tok=4)
    packed = PackedExperts(model.model.layers[0].mlp)
    rows, residual = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0))
    together = packed(rows, residual)
    for size in (1, 2, 3, 7, 16, 33, 64, 257):
        places = slice(5, 5 + size)
        assert torch.equal(packed(rows[places], residual[places]), together[places]), size
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(packed(rows[shuffled], residual[shuffled]), together[shuffled])


@pytest.fixture(scope="module")
def exact(build_tiny_mixture) -> SDARMoeForCausalLM:
    """In double precision: no two ways of adding up the same logits may part at a near-tie."""
    return build_tiny_mixture().double()


@pytest.mark.parametrize(
    ("size", "steps", "strategy"),
    [
        (4, 4, "low_confidence_static"),
        (4, 1, "sequential"),
        (8, 2, "low_confidence_dynamic"),
        (3, 2, "entropy_bounded"),
    ],
)
def test_the_engine_equals_the_plain_decoder(exact, size, steps, strategy):
    for temperature in (0.0, 0.7):
        config = DecodingConfig(
            MASK, size, steps, max_new_tokens=13, temperature=temperature, remasking_strategy=strategy, stop_ids=(3, 17)
        )
        expected = [decode_plain(exact, prompt, config, stream) for stream, prompt in enumerate(PROMPTS)]
        assert decode(exact, PROMPTS, config, max_active=3) == expected


def test_in_single_precision_no_result_depends_on_how_many_decode_together(build_tiny_mixture):
    model = build_tiny_mixture()
    pack_layers(model)
    for size, steps in ((4, 2), (8, 1)):
        config = DecodingConfig(MASK, size, steps, max_new_tokens=24, temperature=0.7)
        alone, *others = (decode(model, PROMPTS, config, max_active=number) for number in (1, 4, 5))
        assert all(other == alone for other in others)
