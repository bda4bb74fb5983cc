"""One copy each way: a packed buffer holds what went in."""

import numpy as np
import pytest
import torch

from t3d import parcel as parcel_module
from t3d.parcel import ALIGNED, Parcel, packed, unpacked

ARRAYS = [
    np.arange(7),
    np.array([True, False, True]),
    np.zeros((0, 3), dtype=np.float32),
    np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    np.arange(12, dtype=np.int32).reshape(3, 4).T,  # not in one piece
]


def test_a_buffer_gives_back_every_array() -> None:
    buffer = packed(ARRAYS, pinned=False)
    assert len(buffer) % ALIGNED == 0
    for array, tensor in zip(ARRAYS, unpacked(buffer.clone(), ARRAYS), strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.storage_offset() * tensor.element_size() % ALIGNED == 0


def test_no_arrays_are_an_empty_buffer() -> None:
    assert unpacked(packed([], pinned=False), []) == []


def test_everything_that_was_added_is_sent_together(monkeypatch) -> None:
    sent = []
    send = parcel_module.send
    monkeypatch.setattr(parcel_module, "send", lambda arrays, device: sent.append(len(arrays)) or send(arrays, device))
    parcel = Parcel(torch.device("cpu"))
    numbers = [parcel.add(array) for array in ARRAYS]
    assert sent == []
    for number, array in zip(numbers, ARRAYS, strict=True):
        assert np.array_equal(parcel[number].numpy(), array)
    late = parcel.add(np.array([5]))
    assert parcel[late].tolist() == [5]
    assert parcel[numbers[0]].tolist() == list(range(7))
    assert sent == [len(ARRAYS), 1]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_engine_sends_one_parcel_to_a_forward(tiny_model, monkeypatch, temperature: float) -> None:
    from t3d.decoding import DecodingConfig, decode

    sent, forwards = [], []
    send, forward = parcel_module.send, tiny_model.forward
    monkeypatch.setattr(parcel_module, "send", lambda arrays, device: sent.append(len(arrays)) or send(arrays, device))
    monkeypatch.setattr(tiny_model, "forward", lambda *ids, **rest: forwards.append(1) or forward(*ids, **rest))
    decode(tiny_model, [[5, 9, 1, 4, 4], [7], [6] * 13], DecodingConfig(47, 4, 2, 9, temperature))
    assert len(sent) == len(forwards) > 5


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_only_cuda_copies_while_the_host_goes_on(monkeypatch, device: str) -> None:
    """MPS reads a buffer that is gone by then, and calls memory of its own pinned."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, there, **given: asked.append(given) or self)
    parcel_module.send(ARRAYS, torch.device(device))
    assert asked == [{"non_blocking": False}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_card_receives_them() -> None:
    parcel = Parcel(torch.device("cuda"))
    for number, array in [(parcel.add(array), array) for array in ARRAYS]:
        assert np.array_equal(parcel[number].cpu().numpy(), array)
