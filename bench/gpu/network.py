"""The network: the same on the device as on the host, and nothing casts its rotary frequencies."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.gpu.findings import Finding
from bench.gpu.world import World, draw_prompts
from t3d.sdar import SDARForCausalLM
from t3d.sdar.backend import relative_error
from t3d.sdar.decoding_layers import pack_layers

LAYERS = 4
ERROR_LIMIT = 1e-4
DIVERGENCE_LIMIT = 1e-3


def rotary_frequencies(world: World) -> Iterator[Finding]:
    """Frequencies stay in single precision, to the bit, whatever casts the network."""
    model = world.network(world.shape("4B", num_hidden_layers=1, vocab_size=512), torch.float32)
    expected = model.model.rotary_emb.inv_freq.clone()
    for name, cast in {
        "to(bfloat16)": lambda: model.to(torch.bfloat16),
        "half()": model.half,
        "bfloat16()": model.bfloat16,
        "float()": model.float,
    }.items():
        cast()
        found = model.model.rotary_emb.inv_freq
        same = found.dtype == torch.float32 and torch.equal(found, expected)
        yield Finding(f"frequencies after {name}", {"type": str(found.dtype).removeprefix("torch.")}, same)
    built = world.network(world.shape("4B", num_hidden_layers=1, vocab_size=512), torch.bfloat16)
    same = torch.equal(built.model.rotary_emb.inv_freq, expected)
    yield Finding(
        "frequencies of a network made in bfloat16",
        {"type": str(built.model.rotary_emb.inv_freq.dtype).removeprefix("torch.")},
        same,
    )


def _logits(model: SDARForCausalLM, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids.to(model.device)).logits[0].float().cpu()


def host_and_device(world: World) -> Iterator[Finding]:
    """Four layers of the 4B network: single precision against the host's, bfloat16 by the distributions it gives."""
    model = world.network(world.shape("4B", num_hidden_layers=LAYERS), torch.float32)
    ids = torch.tensor(draw_prompts(model.config, [32 if world.tiny else 128]))
    expected = _logits(copy.deepcopy(model).cpu(), ids)
    decoder = copy.deepcopy(model) if world.tiny else model
    pack_layers(decoder)  # as the scripts do when they load one
    error = relative_error(_logits(decoder, ids), expected)
    yield Finding("logits, float32", {"error": error, "limit": ERROR_LIMIT}, error <= ERROR_LIMIT)
    found = _logits(model.bfloat16(), ids).log_softmax(-1)
    expected = expected.log_softmax(-1)
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    values = {
        "nats": divergence,
        "limit": DIVERGENCE_LIMIT,
        "entropy": float(-(expected.exp() * expected).sum(-1).mean()),
    }
    yield Finding("divergence of bfloat16", values, divergence <= DIVERGENCE_LIMIT)
