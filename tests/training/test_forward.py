"""The chunked output head: what one large logits tensor would give, without ever making one."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t3d.training import forward
from t3d.training.forward import RowHead, batch_losses
from t3d.training.loss import LossSettings
from t3d.training.packing import Batch, collate
from t3d.training.states import StateSettings, TrainingSample, draw_state, sample_stream

MASK, PAD, VOCAB = 47, 46, 48
SETTINGS = LossSettings(
    cross_entropy=0.3,
    ddo=1.0,
    path=0.2,
    certainty=0.5,
    alpha=0.5,
    beta=1.0,
    ddo_level="token",
    fake_expectation="argmax",
    reference_temp=0.0,
    path_loss="paper",
    num_coarse_steps=2,
)
KINDS = {
    "argmax": SETTINGS,
    "sample": dataclasses.replace(SETTINGS, fake_expectation="sample", reference_temp=1.5),
    "exact": dataclasses.replace(SETTINGS, fake_expectation="exact", reference_temp=1.5),
    "no reference": dataclasses.replace(SETTINGS, ddo=0.0),
    "visible rows": dataclasses.replace(SETTINGS, path_loss="release"),
}


def make_batch(settings: LossSettings = SETTINGS, num: int = 3) -> Batch:
    states = []
    for index in range(num):
        sample = TrainingSample([1, 2, 3], list(range(5 + index, 16 + index)), list(range(1, 12)), ended=True)
        drawn = StateSettings("trace", (4,), MASK, PAD, VOCAB, mask_ratios=(0.75,), random_ratio=0.2, path_k_steps=2)
        states.append(draw_state(sample, drawn, sample_stream(0, 0, index)))
    return collate(states, PAD, torch.device("cpu"), visible_rows=settings.needs_visible_rows)


@pytest.fixture(scope="module")
def models(build_tiny_model):
    return build_tiny_model(seed=0), build_tiny_model(seed=1).requires_grad_(False)


def gradients(models, settings: LossSettings, batch: Batch) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    student, reference = models
    losses = batch_losses(student, reference if settings.needs_reference else None, batch, settings)
    return losses, torch.autograd.grad(losses["loss/total"].sum(), list(student.parameters()))


def rows_per_chunk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(forward, "CHUNK_BYTES", rows * 4 * VOCAB)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_chunks_give_losses_and_gradients_of_the_whole(models, monkeypatch, kind: str, rows: int) -> None:
    batch = make_batch(KINDS[kind])
    assert len(batch.targets) % 7 != 0, "a last chunk that is not full"
    expected, expected_gradients = gradients(models, KINDS[kind], batch)
    rows_per_chunk(monkeypatch, rows)
    found, found_gradients = gradients(models, KINDS[kind], batch)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-5)
    for mine, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["argmax", "exact", "no reference"])
@pytest.mark.parametrize("rows", [3, 100])
def test_gradients_match_finite_differences(monkeypatch, kind: str, rows: int) -> None:
    rows_per_chunk(monkeypatch, rows)
    generator = torch.Generator().manual_seed(0)
    settings, batch = KINDS[kind], make_batch(num=1)
    batch = dataclasses.replace(batch, targets=batch.targets % 6)
    heads = [torch.nn.Linear(4, 6, bias=False).double() for _ in range(2)]
    hidden = [torch.randn(len(batch.targets), 4, dtype=torch.double, generator=generator) for _ in range(2)]
    for head in heads:
        torch.nn.init.normal_(head.weight, generator=generator)
    monkeypatch.setattr(forward, "CHUNK_BYTES", rows * 4 * 6)
    compared = (heads[1], hidden[1]) if settings.needs_reference else None
    row_head = RowHead(batch, settings, compared)

    def outputs(rows: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        head = torch.nn.Linear(4, 6, bias=False)
        del head.weight
        head.weight = weight
        return [values for name, values in row_head(head, rows).items() if name != "correct"]

    inputs = hidden[0].requires_grad_(), heads[0].weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(outputs, inputs)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_is_larger_than_a_chunk_of_logits(build_tiny_model, monkeypatch, kind: str) -> None:
    # So large a vocabulary that only the logits of 4 rows or more, and the head's own weights, have that many elements.
    vocab, rows = 8192, 4
    shape = {"vocab_size": vocab, "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 1}
    student, reference = (build_tiny_model(seed=seed, **shape, num_key_value_heads=1, head_dim=4) for seed in (0, 1))
    settings, batch = KINDS[kind], make_batch(KINDS[kind])
    assert len(batch.targets) > 3 * rows
    monkeypatch.setattr(forward, "CHUNK_BYTES", rows * 4 * vocab)
    with LargestTensor() as largest:
        gradients((student, reference.requires_grad_(False)), settings, batch)
    assert largest.elements == rows * vocab
    monkeypatch.setattr(forward, "CHUNK_BYTES", 2**30)
    with LargestTensor() as largest:
        gradients((student, reference), settings, batch)
    assert largest.elements == len(batch.targets) * vocab, "the test sees what it looks for"


class HeadProducts(TorchDispatchMode):
    """Counts products that give logits, and results as large as the head's weight beside the sum of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = self.gradients = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            self.logits += result.shape[-1] == VOCAB
            self.gradients += result.shape[0] == VOCAB
        return result


def test_one_chunk_computes_the_head_once_and_more_compute_it_again_into_one_gradient(
    build_tiny_model, monkeypatch
) -> None:
    batch = make_batch(KINDS["no reference"])
    student = build_tiny_model(intermediate_size=40)  # no other matrix has as many rows as the head
    for rows, logits, weights in ((1000, 1, 1), (math.ceil(len(batch.targets) / 2), 2 * 2, 0)):
        rows_per_chunk(monkeypatch, rows)
        with HeadProducts() as products:
            gradients((student, None), KINDS["no reference"], batch)
        assert (products.logits, products.gradients) == (logits, weights)


@pytest.mark.parametrize("frozen", ["head", "all but the head"])
def test_chunks_make_no_gradient_that_nobody_asked_for(build_tiny_model, monkeypatch, frozen: str) -> None:
    """As adapters train: the head itself need not be trained."""
    batch, found = make_batch(), []
    for rows in (1000, 4):
        rows_per_chunk(monkeypatch, rows)
        student = build_tiny_model(seed=0)
        for name, weight in student.named_parameters():
            weight.requires_grad_(name.startswith("lm_head") != (frozen == "head"))
        batch_losses(student, build_tiny_model(seed=1), batch, SETTINGS)["loss/total"].sum().backward()
        found.append([weight.grad for weight in student.parameters()])
    for mine, other in zip(*found, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_what_zero_3_hangs_on_the_head_runs_once_around_all_chunks(models, monkeypatch) -> None:
    """It gathers the head's weight before a call of the module, and again before the gradient of what that gave."""
    student, _ = models
    rows_per_chunk(monkeypatch, 4)
    calls = []
    handle = student.lm_head.register_forward_hook(lambda _module, _inputs, values: calls.append(values))
    gradients(models, SETTINGS, make_batch())
    handle.remove()
    assert len(calls) == 1
    assert all(isinstance(values, torch.Tensor) for values in calls[0])
    assert "forward" not in vars(student.lm_head), "the module is left as it was"


def test_each_model_runs_once(models, monkeypatch) -> None:
    calls = []
    handles = [model.model.register_forward_hook(lambda *_: calls.append(1)) for model in models]
    gradients(models, SETTINGS, make_batch())
    for handle in handles:
        handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("rows", [2, 1000])
def test_half_precision_networks_give_losses_in_single_precision(models, monkeypatch, rows: int) -> None:
    rows_per_chunk(monkeypatch, rows)
    expected, _ = gradients(models, SETTINGS, make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses, found = gradients(models, SETTINGS, make_batch())
    assert all(values.dtype == torch.float32 for values in losses.values())
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in found)
    torch.testing.assert_close(losses["loss/total"], expected["loss/total"], rtol=0.1, atol=0.1)


def test_recomputed_activations_change_nothing(build_tiny_model, models) -> None:
    student = build_tiny_model(seed=0).train()
    student.recompute_activations()
    batch = make_batch()
    _, expected = gradients(models, SETTINGS, batch)
    _, found = gradients((student, models[1]), SETTINGS, batch)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
