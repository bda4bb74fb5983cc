import subprocess
import sys

import pytest
import torch
from torch import nn

from t3d.decoding import DecodingConfig, decode
from t3d.sdar.checkpoint import load_decoder, load_model
from t3d.sdar.decoding_layers import PackedLayer, pack_layers
from t3d.sdar.products import JOINED, JoinedLinear, PackedLinear, Products

# Shapes of the built-in teacher, of the bench's model and of SDAR-4B.
SHAPES = [(128, 128), (384, 128), (512, 512), (1664, 512), (2560, 1024)]


@torch.inference_mode()
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_does_not_depend_on_the_rows_beside_it(inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=False)
    packed, rows = PackedLinear(linear), torch.randn(300, inputs, generator=generator)
    together = packed(rows)
    torch.testing.assert_close(together, linear(rows), rtol=1e-4, atol=1e-5)
    for size in (1, 2, 3, 4, 7, 16, 33, 64, 257):
        assert torch.equal(packed(rows[5 : 5 + size]), together[5 : 5 + size]), size


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3), (1, 1), (2, 0)])
def test_any_shape_and_a_bias(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(8, 5)
    rows = torch.randn(*shape, 8)
    torch.testing.assert_close(PackedLinear(linear)(rows), linear(rows))


def test_what_cannot_be_packed_stays_as_it_is(build_tiny_model) -> None:
    model = build_tiny_model().bfloat16()
    pack_layers(model)
    assert not any(isinstance(module, (PackedLayer, PackedLinear)) for module in model.modules())


@torch.inference_mode()
@pytest.mark.parametrize("products", [None, JOINED], ids=["packed", "joined"])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layers_give_the_same_logits(build_tiny_model, bias: bool, products: Products | None) -> None:
    torch.manual_seed(0)
    model = build_tiny_model(attention_bias=bias)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases have effects of their own
    ids, rows = torch.randint(model.config.vocab_size, (2, 12)), torch.tensor([3, 4, 17])
    full, some = model(ids).logits, model(ids, logit_rows=rows).logits
    pack_layers(model, products)
    assert all(isinstance(layer, PackedLayer) for layer in model.model.layers)
    torch.testing.assert_close(model(ids).logits, full, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids, logit_rows=rows).logits, some, rtol=1e-4, atol=1e-5)
    if products is None:
        assert torch.equal(model(ids, logit_rows=rows).logits, model(ids).logits.flatten(0, 1)[rows])


@torch.inference_mode()
def test_joined_layers_keep_their_type_move_and_decode_the_same(build_tiny_model) -> None:
    model = build_tiny_model()
    config = DecodingConfig(model.config.mask_token_id, 4, 2, max_new_tokens=12, temperature=0.5)
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    expected = decode(model, prompts, config)
    pack_layers(model, JOINED)
    assert sum(isinstance(module, JoinedLinear) for module in model.modules()) == 4 * 2
    assert decode(model, prompts, config) == expected
    ids = torch.tensor([[1, 2, 3, 4]])
    exact = model(ids).logits
    model.bfloat16()
    assert {buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" not in name} == {torch.bfloat16}
    torch.testing.assert_close(model(ids).logits.float(), exact, rtol=0.1, atol=0.1)


def test_joined_layers_take_half_the_operations(build_tiny_model) -> None:
    """On a GPU each is a launch, and at few sequences launches are the time that a forward takes."""

    def operations(model: nn.Module) -> int:
        with torch.inference_mode(), torch.profiler.profile() as profiled:
            model(torch.tensor([[1, 2, 3, 4]]))
        made = ("aten::view", "aten::transpose", "aten::slice", "aten::unsqueeze", "aten::expand", "aten::select")
        names = [event.name for event in profiled.events() if event.cpu_parent is None]
        return sum(name.startswith("aten::") and name not in made for name in names)

    one, two = (build_tiny_model(num_hidden_layers=layers) for layers in (1, 2))
    before = operations(two) - operations(one)
    for model in (one, two):
        pack_layers(model, JOINED)
    assert 2 * (operations(two) - operations(one)) <= before, before


def test_a_model_without_its_own_weights_left_decodes_the_same(checkpoint) -> None:
    packed = load_decoder(checkpoint, "auto", torch.device("cpu"))
    assert isinstance(packed.lm_head, PackedLinear)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) > 7
    kinds = {name.split(".")[-2] for name, _ in packed.named_parameters()}
    assert kinds == {"embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"}
    mask_id = packed.config.mask_token_id
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    config = DecodingConfig(mask_id, 4, 2, max_new_tokens=12, temperature=0.5)
    assert decode(packed, prompts, config) == decode(load_model(checkpoint), prompts, config)


COMPILED = """
import sys
from pathlib import Path
import torch
from t3d.decoding import DecodingConfig, decode
from t3d.sdar.checkpoint import load_model
from t3d.sdar.decoding_layers import compile_layers

plain, compiled = (load_model(Path(sys.argv[1])) for _ in range(2))
compile_layers(compiled, backend="aot_eager")  # all of torch.compile but its C++ kernels
prompts = [[1, 2, 3, 4, 5], [6], list(range(20)), [7, 8]] * 2
for steps in (4, 2):
    config = DecodingConfig(plain.config.mask_token_id, 4, steps, max_new_tokens=12, temperature=0.5)
    assert decode(compiled, prompts, config, max_active=5) == decode(plain, prompts, config), steps
from torch._dynamo.utils import counters
assert counters["frames"]["ok"] > 0
assert not counters["unimplemented"], counters["unimplemented"]
"""


SHARED = """
import torch
from t3d.decoding import DecodingConfig, decode
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.decoding_layers import compile_layers
from torch._dynamo.utils import counters

shape = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
special = {"mask_token_id": 47, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
graphs = []
for num_layers in (2, 12):
    torch._dynamo.reset()
    counters.clear()
    config = SDARConfig(num_hidden_layers=num_layers, num_key_value_heads=2, **shape, **special)
    model = SDARForCausalLM(config).eval()
    compile_layers(model, backend="eager")
    decode(model, [[1, 2, 3, 4, 5], [6]], DecodingConfig(47, 4, 2, max_new_tokens=9))
    graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["unimplemented"], counters["unimplemented"]
assert graphs[0] == graphs[1] > 0, graphs
"""


@pytest.mark.slow
def test_compiled_layers_share_their_code_whatever_their_number() -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", SHARED], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
def test_compiled_layers_decode_the_same(checkpoint) -> None:
    # In a process of its own, as torch.compile cannot trace functions whose annotations are checked.
    command = [sys.executable, "-W", "ignore", "-c", COMPILED, str(checkpoint)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
